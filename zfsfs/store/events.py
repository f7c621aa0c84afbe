"""What has happened in a store, for people and metrics: a bounded list and counts."""

from __future__ import annotations

import enum
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass


class Outcome(enum.Enum):
    """How a session ended."""

    PUBLISHED = "published"
    SUPERSEDED = "superseded"
    UNCHANGED = "unchanged"
    DISCARDED = "discarded"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened: seconds since the epoch, a kind, what it happened to, and a sentence."""

    time: float
    kind: str
    subject: str
    text: str


class EventLog:
    """The last thousand events, how many there were of each kind, and whoever wants to hear of them."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.recent: deque[Event] = deque(maxlen=1000)
        self.counts: Counter[str] = Counter()
        self.subscribers: list[Callable[[Event], None]] = []

    def append(self, kind: str, subject: str, text: str) -> None:
        """Note an event."""
        event = Event(self._clock(), kind, subject, text)
        self.recent.append(event)
        self.counts[kind] += 1
        for subscriber in self.subscribers:
            subscriber(event)

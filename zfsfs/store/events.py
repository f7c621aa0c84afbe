"""What happens in a store, as a log that status, metrics and people read."""

from __future__ import annotations

import enum
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass


class Outcome(enum.Enum):
    """How a session of a cache ended. PRIVATE: by the cache's rules it could not be published; UNSUCCESSFUL: nobody
    has said that what it was for has succeeded. POSTPONED is no end: the destruction of what it left behind waits."""

    PUBLISHED = "published"
    SUPERSEDED = "superseded"
    UNCHANGED = "unchanged"
    DISCARDED = "discarded"
    PRIVATE = "private"
    UNSUCCESSFUL = "unsuccessful"
    POSTPONED = "postponed"


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened: when, of which kind, to what, as a sentence, and in detail.

    Kinds: build-started, published, discarded, failed, reopened, failed-deleted, builder-started, builder-ended,
    deleted, cache-created, opened,
    released, cache-deleted, cache-rules, postponed, destroyed, recovered, warning.
    """

    time: float
    kind: str
    subject: str
    text: str
    fields: dict[str, object]


class EventLog:
    """The last 1000 events, their number by kind (and `outcome-…` by outcome), and who wants to be told."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self.recent: deque[Event] = deque(maxlen=1000)
        self.counts: Counter[str] = Counter()
        self.subscribers: list[Callable[[Event], None]] = []

    def append(self, kind: str, subject: str, text: str, **fields: object) -> Event:
        """Record that something happened. Subscribers are called at once and must not raise."""
        event = Event(self._clock(), kind, subject, text, fields)
        self.recent.append(event)
        self.counts[kind] += 1
        if isinstance(fields.get("outcome"), str):
            self.counts[f"outcome-{fields['outcome']}"] += 1
        for tell in list(self.subscribers):
            tell(event)
        return event

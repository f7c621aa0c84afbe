"""What the load has done, a line of JSON for each step, and what may be found on the strength of it.

A line is written before a step that may change what is found, and another after it has returned. What is found
later must be one of the states between. The lines may arrive anywhere but must not be lost once `settle` returned.
"""

from __future__ import annotations

import fcntl
import json
import random
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

_MOST_LINES = 40


class Journal:
    """Lines from several threads. `settle` waits until those written so far are where they can't be lost."""

    def __init__(self, write: Callable[[str], None], settle: Callable[[], None] = lambda: None) -> None:
        self._write, self.settle = write, settle
        self._lock = threading.Lock()
        self._count = 0

    def line(self, kind: str, **fields: object) -> None:
        with self._lock:
            self._write(json.dumps({"kind": kind, **fields}) + "\n")
            self._count += 1

    def wait(self, chance: random.Random, longest: float) -> None:
        """Until a random instant: after some lines, however long they take on this machine, and a moment."""
        lines, end = self._count + chance.randint(0, _MOST_LINES), time.monotonic() + longest
        while self._count < lines and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(chance.uniform(0, 0.5))


def on_stdout() -> Journal:
    """Lines on a pipe that a cat(1) carries off the machine."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def taken() -> None:
        while struct.unpack("i", fcntl.ioctl(1, termios.FIONREAD, b"\0" * 4))[0]:
            time.sleep(0.005)

    def settle() -> None:
        # When the second line is taken, the first has been passed on.
        for _ in range(2):
            journal.line("settle")
            taken()

    journal = Journal(write, settle)
    return journal


@dataclass
class State:
    """What must be there, as far as is known: of each result its version, of each cache the newest release that was
    seen as published, [generation, version]. `perhaps` are results that may be there, `going` may be gone."""

    results: dict[str, str] = field(default_factory=dict)
    perhaps: dict[str, str] = field(default_factory=dict)
    going: set[str] = field(default_factory=set)
    never: set[str] = field(default_factory=set)
    caches: dict[str, list[Any]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)  # versions of sessions that ended otherwise
    operations: int = 0
    complaints: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, text: str) -> State:
        found = json.loads(text)
        return cls(
            **{key: set(value) if key in ("going", "never", "lost") else value for key, value in found.items()}
        )

    def dump(self) -> str:
        return json.dumps(asdict(self), default=sorted)

    def learn(self, line: dict[str, Any]) -> None:
        """Take in one line of the journal."""
        match line["kind"]:
            case "publishing":
                self.perhaps[line["id"]] = line["version"]
            case "published":
                self.results[line["id"]] = line["version"]
                self.perhaps.pop(line["id"], None)
                self.operations += 1
            case "discarding":
                self.never.add(line["id"])
            case "discarded" | "read":
                self.operations += 1
            case "deleting":
                self.going.add(line["id"])
            case "kept":
                self.going.discard(line["id"])
            case "deleted":
                self.results.pop(line["id"], None)
                self.going.discard(line["id"])
                self.never.add(line["id"])
                self.operations += 1
            case "released":
                self._released(line)
            case "wrong":
                self.complaints.append(line["text"])

    def _released(self, line: dict[str, Any]) -> None:
        self.operations += 1
        if line["outcome"] == "published":
            known = self.caches.get(line["cache"], [0, ""])
            self.caches[line["cache"]] = max(known, [line["generation"], line["version"]])
        elif line["outcome"] in ("superseded", "discarded"):
            self.lost.add(line["version"])

"""Which of many things go, where only so many may stay: those that were used the longest ago."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """At most so many things, and besides those that may not go now. They are asked the longest unused first, and who
    may not go is not asked again before all others were."""

    def __init__(self, most: int, may_go: Callable[[T], bool]) -> None:
        self.most = most
        self._may_go = may_go
        self._things: dict[T, None] = {}  # what was used last at the end

    def __contains__(self, thing: T) -> bool:
        return thing in self._things

    def add(self, thing: T) -> list[T]:
        """It is used. Returned are those that go: they are not among these any more."""
        self._things.pop(thing, None)
        going = []
        for each in list(self._things) if len(self._things) >= self.most else ():
            if len(self._things) < self.most:
                break
            del self._things[each]
            if self._may_go(each):
                going.append(each)
            else:
                self._things[each] = None
        self._things[thing] = None
        return going

    def drop(self, thing: T) -> None:
        """It is gone by itself."""
        self._things.pop(thing, None)

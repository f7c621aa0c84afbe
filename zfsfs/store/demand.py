"""How many of a kind were needed in one go, of late: so many are worth being kept ready. And when to make them: as
long as others ask for something they would only be slower."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

#: Seconds without a request after which a go is over, and after which it is forgotten.
QUIET = 2.0
HOT = 600.0
#: Seconds after which what is due is made whatever goes on.
PATIENCE = 30.0


@dataclass(slots=True)
class Activity:
    """When somebody last asked the store for something (trio's time)."""

    last: float = -math.inf

    def pause(self, due: float) -> float:
        """When what is due at a time is to be made, as far as is known."""
        return min(max(due, self.last + QUIET), due + PATIENCE)


@dataclass(slots=True)
class Demand:
    """See the module. Times are trio's."""

    last: float = -math.inf  # when one was last needed
    count: int = 0  # how many, in the go that is not over
    _goes: list[tuple[float, int]] = field(default_factory=list)

    def need(self, now: float, together: int) -> None:
        """One is needed, and in this go so many are together."""
        self.last = now
        self.count = max(self.count, together)

    def over(self, now: float) -> None:
        """The go is over."""
        if self.count:
            self._goes.append((now, self.count))
            self.count = 0

    def wanted(self, now: float) -> int:
        """How many were needed in the largest of the last."""
        self._forget(now)
        return max((count for _, count in self._goes), default=0)

    def begun(self, now: float) -> int:
        """How many were needed in all, in the last gos and in this one."""
        self._forget(now)
        return self.count + sum(count for _, count in self._goes)

    def _forget(self, now: float) -> None:
        self._goes = [each for each in self._goes if each[0] + HOT > now]

    def changes(self) -> float:
        """When that will be another number at the earliest."""
        return min((when + HOT for when, _ in self._goes), default=math.inf)

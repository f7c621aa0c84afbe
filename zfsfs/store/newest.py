"""Which results somebody may be about to build on: the newest, where builds go on from new ones, as the steps of a
chain do.

Guarantees
- They are so many of the newest, of those that nobody has built on, that each build of the last ten minutes (see
  `demand`) which was the first on its result would have found that among them; `MOST` at most.
- There are none as long as there was but one such build.
"""

from __future__ import annotations

import math

import trio

from zfsfs.names import BuildId
from zfsfs.store.demand import HOT, QUIET, Demand

MOST = 4
#: Seconds after the last one was published, when something is made ready for them: sooner it would be in the way of
#: who publishes more, and who goes on sooner would wait for it as long as for his own.
PAUSE = 0.05


class Newest:
    """See the module. Times are trio's."""

    def __init__(self) -> None:
        self._unused: dict[BuildId, None] = {}  # the last that nobody has built on, the newest last
        self._demand = Demand()
        self._last = -math.inf  # when one was published
        self._uses = (-math.inf, -math.inf)  # the last two

    def published(self, id: BuildId) -> None:
        """There is a new result."""
        self._unused[id] = None
        self._last = trio.current_time()
        if len(self._unused) > MOST:
            del self._unused[next(iter(self._unused))]

    def used(self, id: BuildId) -> None:
        """A build on a result begins."""
        if id in self._unused:
            now = trio.current_time()
            self._uses = self._uses[1], now
            self._demand.need(now, len(self._unused) - list(self._unused).index(id))
            del self._unused[id]

    def deleted(self, id: BuildId) -> None:
        """A result is no more."""
        self._unused.pop(id, None)

    def promising(self, now: float) -> list[BuildId]:
        """They, at a time."""
        if self._demand.last + QUIET <= now:
            self._demand.over(now)
        if self._uses[0] + HOT <= now:
            return []
        return list(self._unused)[-max(self._demand.count, self._demand.wanted(now)) :]

    def is_due(self, now: float) -> bool:
        """Whether something is to be made ready for them."""
        return self._last + PAUSE <= now

    def changes(self, now: float) -> float:
        """When one of these will be otherwise at the earliest, if nothing else happens."""
        over = self._demand.last + QUIET if self._demand.count else math.inf
        return min(over, self._demand.changes(), math.inf if self.is_due(now) else self._last + PAUSE)

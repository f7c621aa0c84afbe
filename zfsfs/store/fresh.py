"""Datasets kept ready for builds, empty ones and clones of results that are built on often, so that who begins one
waits for no clone and no first look.

Guarantees
- There are as many of a kind as builds were begun in one go in the last ten minutes (see `demand`), `MOST_ALIKE` at
  most, and `MOST` clones in all: each result gets one before another gets more, the last that was built on first. A
  result counts once it was built on twice in that time.
- On the disk one is rubbish until a build gets it, so after a crash it is destroyed. Nobody has written in it. It
  keeps no result from being deleted, and is given up when that is done.
- The oldest goes first: what ZFS says of when a build's dataset was made is some minutes early at most.

They are made when no build of their kind has begun for `QUIET`, where looking into a dataset for the first time takes
its time.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from dataclasses import dataclass, field

import trio

from zfsfs.driver import Driver, View
from zfsfs.errors import ZfsfsError
from zfsfs.names import BuildId, Dataset, Snapshot, result
from zfsfs.store.demand import QUIET, Activity, Demand
from zfsfs.store.layout import SNAP, Numbers, junk
from zfsfs.store.reaper import Reaper
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)

MOST = 32
#: The most of a kind.
MOST_ALIKE = 16


def make(driver: Driver, dataset: Dataset, base: BuildId | None) -> None:
    """The dataset of a build, by one verb. Raises what that raises."""
    if base is None:
        driver.create(dataset)
    else:
        driver.clone(Snapshot(result(base), SNAP), dataset)


@dataclass(eq=False, slots=True)
class _Kind:
    """What builds begin with: nothing, or a result."""

    base: BuildId | None
    demand: Demand = field(default_factory=Demand)
    ready: dict[Dataset, View] = field(default_factory=dict)

    def wanted(self, now: float) -> int:
        begun = self.demand.begun(now)
        return min(self.demand.wanted(now), MOST_ALIKE) if self.base is None or begun > 1 else 0

    def oldest(self) -> tuple[Dataset, View]:
        dataset = next(iter(self.ready))
        return dataset, self.ready.pop(dataset)


class Fresh:
    """See the module. Only `run`, by `provide`, makes any."""

    def __init__(self, driver: Driver, reaper: Reaper, numbers: Numbers, activity: Activity) -> None:
        self._driver = driver
        self._reaper = reaper
        self._numbers = numbers
        self._activity = activity
        self._kinds: dict[BuildId | None, _Kind] = {}  # the one that was last needed last
        self._making = trio.Lock()
        self._wake = trio.Event()
        self._closed = not driver.cheap_clones

    @property
    def ready(self) -> list[Dataset]:
        """All there are."""
        return [dataset for kind in self._kinds.values() for dataset in kind.ready]

    def take(self, base: BuildId | None) -> tuple[Dataset, View] | None:
        """One for a build that begins, if there is one; it is the caller's."""
        if self._closed:
            return None
        kind = self._kinds[base] = self._kinds.pop(base, _Kind(base))
        kind.demand.need(trio.current_time(), kind.demand.count + 1)
        if len(self._kinds) > MOST:
            self.drop(next(iter(self._kinds)))
        self._wake.set()
        return kind.oldest() if kind.ready else None

    def give_up(self, dataset: Dataset, view: View) -> None:
        """Nobody will need it."""
        self._reaper.add(dataset, with_foreign=True, view=view)

    def drop(self, base: BuildId | None) -> None:
        """Nobody will build on a result any more."""
        kind = self._kinds.pop(base, None)
        while kind is not None and kind.ready:
            self.give_up(*kind.oldest())

    async def run(self) -> None:
        """Make and give up what is due, until cancelled."""
        while not self._closed:
            self._wake = trio.Event()
            await self.provide(trio.current_time())
            kinds = self._kinds.values()
            ends = [
                *(self._due(kind) for kind in kinds if kind.demand.count),
                *(kind.demand.changes() for kind in kinds),
            ]
            with trio.move_on_at(min(ends, default=math.inf)):
                await self._wake.wait()

    def _due(self, kind: _Kind) -> float:
        return self._activity.pause(kind.demand.last + QUIET)

    async def provide(self, now: float) -> None:
        """Make and give up what is due at a time (trio's)."""
        async with self._making:
            for kind in list(self._kinds.values()):
                if kind.demand.count and self._due(kind) <= now:
                    kind.demand.over(now)
                if not kind.demand.begun(now):
                    self.drop(kind.base)
            shares = self._shares(now)
            for kind, share in shares.items():
                while len(kind.ready) > share:
                    self.give_up(*kind.oldest())
            if not self._driver.trouble():
                async with trio.open_nursery() as nursery:
                    for kind, share in shares.items():
                        for _ in range(0 if kind.demand.count else share - len(kind.ready)):
                            nursery.start_soon(self._make, kind)

    def _shares(self, now: float) -> dict[_Kind, int]:
        """How many of each kind there are to be."""
        shares = {kind: kind.wanted(now) for kind in reversed(self._kinds.values())}
        clones = {kind: count for kind, count in shares.items() if kind.base is not None}
        # The first of each kind comes before the second of any.
        turns = [kind for turn in range(MOST_ALIKE) for kind, count in clones.items() if turn < count]
        return shares | dict.fromkeys(clones, 0) | Counter(turns[:MOST])

    async def _make(self, kind: _Kind) -> None:
        dataset = junk(self._numbers.take(), "ready", "result")
        try:
            with trio.CancelScope(shield=True):
                # One verb, and after a crash the dataset is there, rubbish by its name.
                await in_thread(make, self._driver, dataset, kind.base)
                try:
                    view = await in_thread(lambda: self._driver.view(dataset, writable=True))
                except BaseException:
                    self._reaper.add(dataset, with_foreign=True)
                    raise
        except ZfsfsError as failure:
            log.info("no dataset is kept ready: %s", failure)
            return
        if self._closed or self._kinds.get(kind.base) is not kind:
            self.give_up(dataset, view)
        else:
            kind.ready[dataset] = view

    async def close(self) -> None:
        """Give up all there are, and make no more."""
        self._closed = True
        async with self._making:
            for base in list(self._kinds):
                self.drop(base)

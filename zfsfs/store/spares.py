"""Clones kept ready, so that who opens a cache that is opened often waits for nothing.

Guarantees
- Spares are of a cache's newest version: as many as sessions were open at once in the last ten minutes (see
  `demand`), and of all caches together `MOST`.
- On the disk a spare is a session's clone without a decision, which recovery destroys: nobody has written in it. It
  is no session: it keeps no cache from being released or deleted, and is given up when that is done.

They are made when a cache has been quiet for `QUIET` after its last session, which may have made them obsolete; and
the clones of sessions that changed nothing are kept. Only where a clone costs next to nothing.
"""

from __future__ import annotations

import logging
import math

import trio

from zfsfs.driver import Driver
from zfsfs.errors import ZfsfsError
from zfsfs.names import Snapshot, cache, cache_tmp
from zfsfs.store.demand import QUIET, Activity, Demand
from zfsfs.store.entries import Entry, Spare
from zfsfs.store.layout import SNAP, Numbers
from zfsfs.store.reaper import Reaper
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)

MOST = 32


class Spares:
    """See the module. Only `run`, by `provide`, makes any."""

    def __init__(self, driver: Driver, reaper: Reaper, numbers: Numbers, activity: Activity) -> None:
        self._driver = driver
        self._reaper = reaper
        self._numbers = numbers
        self._activity = activity
        self._demands: dict[Entry, Demand] = {}  # the one that was last opened last
        self._due: dict[Entry, float] = {}  # when spares are to be made (trio's time)
        self._count = 0  # of all that there are, and that are being made
        self._making = trio.Lock()
        self._wake = trio.Event()
        self._closed = not driver.cheap_clones

    def take(self, entry: Entry) -> Spare | None:
        """A spare of a cache, for a session that is being opened, if there is one of its newest version."""
        if entry.spares and entry.spares[0].generation != entry.generation:
            self.outdated(entry)
        if not entry.spares:
            return None
        self._count -= 1
        return entry.spares.pop(0)

    def keep(self, entry: Entry, spare: Spare) -> bool:
        """Take the clone of a session that has changed nothing, if a spare of its version is wanted."""
        demand = self._demands.get(entry)
        if self._closed or demand is None or spare.generation != entry.generation or entry.swap is not None:
            return False
        if len(entry.spares) >= _wanted(demand, trio.current_time()) or self._count >= MOST:
            return False
        self._count += 1
        entry.spares.append(spare)
        return True

    def opened(self, entry: Entry) -> None:
        """A session was opened."""
        self._due.pop(entry, None)
        if self._closed:
            return
        demand = self._demands[entry] = self._demands.pop(entry, Demand())
        demand.need(trio.current_time(), len(entry.sessions))
        if len(self._demands) > MOST:
            self.drop(next(iter(self._demands)))

    def ended(self, entry: Entry) -> None:
        """A session has ended."""
        if entry in self._demands and not entry.sessions:
            self._due[entry] = trio.current_time() + QUIET
            self._wake.set()

    def outdated(self, entry: Entry) -> None:
        """There is, or will be, another version."""
        self._shrink(entry, 0, with_foreign=False)

    def drop(self, entry: Entry, *, with_foreign: bool = False) -> None:
        """Nobody will open a cache soon. Foreign snapshots of its spares go too when it is deleted."""
        self._demands.pop(entry, None)
        self._due.pop(entry, None)
        self._shrink(entry, 0, with_foreign=with_foreign)

    def _shrink(self, entry: Entry, count: int, *, with_foreign: bool) -> None:
        while len(entry.spares) > count:
            self._count -= 1
            self._give_up(entry.spares.pop(0), with_foreign=with_foreign)

    def _give_up(self, spare: Spare, *, with_foreign: bool) -> None:
        self._reaper.add(spare.dataset, with_foreign=with_foreign, view=spare.view)

    async def close(self) -> None:
        """Give up all there are, and make no more."""
        self._closed = True
        async with self._making:
            for entry in list(self._demands):
                self.drop(entry)

    async def run(self) -> None:
        """Make and give up spares, until cancelled."""
        while not self._closed:
            self._wake = trio.Event()
            await self.provide(trio.current_time())
            ends = [
                *map(self._activity.pause, self._due.values()),
                *(each.changes() for each in self._demands.values()),
            ]
            with trio.move_on_at(min(ends, default=math.inf)):
                await self._wake.wait()

    async def provide(self, now: float) -> None:
        """Make and give up what is due at a time (trio's)."""
        wanting: dict[Entry, int] = {}
        async with self._making, trio.open_nursery() as nursery:
            for entry, demand in list(self._demands.items()):
                due = self._activity.pause(self._due.get(entry, math.inf)) <= now
                if due:
                    del self._due[entry]
                    demand.over(now)
                wanted = _wanted(demand, now)
                self._shrink(entry, wanted, with_foreign=False)
                if not wanted:
                    self.drop(entry)
                elif due and wanted > len(entry.spares):
                    wanting[entry] = wanted - len(entry.spares)
            while wanting and self._count < MOST and not self._driver.trouble():
                # In turn, so that each gets one before another gets more.
                entry, more = next(iter(wanting.items()))
                del wanting[entry]
                if more > 1:
                    wanting[entry] = more - 1
                self._count += 1
                nursery.start_soon(self._provide_one, entry)

    async def _provide_one(self, entry: Entry) -> None:
        made = False
        try:
            made = await self._make(entry)
        except ZfsfsError as failure:
            log.info("cache %s has no clone kept ready: %s", entry.name, failure)
        finally:
            self._count -= not made

    async def _make(self, entry: Entry) -> bool:
        async with entry.lock:
            if entry.sessions or entry.swap is not None or entry not in self._demands:
                return False
            entry.cloning += 1
        try:
            # One verb: after a crash the clone is there without a decision, and is destroyed.
            with trio.CancelScope(shield=True):
                generation, dataset = entry.generation, cache_tmp(self._numbers.take(), entry.name)
                await in_thread(self._driver.clone, Snapshot(cache(entry.name), SNAP), dataset)
        finally:
            entry.has_cloned()
        try:
            with trio.CancelScope(shield=True):
                view = await in_thread(lambda: self._driver.view(dataset, writable=True))
        except BaseException:
            self._reaper.add(dataset, with_foreign=False)
            raise
        spare = Spare(dataset, generation, view)
        if generation != entry.generation or entry not in self._demands or self._closed:
            self._give_up(spare, with_foreign=False)
            return False
        entry.spares.append(spare)
        return True


def _wanted(demand: Demand, now: float) -> int:
    """How many spares there are to be at most. What was left in the go that is not over counts as well."""
    return max(demand.count, demand.wanted(now))

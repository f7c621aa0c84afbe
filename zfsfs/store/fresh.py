"""Empty datasets kept ready, so that a build that begins with nothing waits for one rename, and no first look.

Guarantees
- There are as many as builds were begun in one go in the last ten minutes (`demand`), and `MOST` at most.
- On the disk one is rubbish until a build gets it, so after a crash it is destroyed. Nobody has written in it.
- The oldest goes first: what ZFS says of when a build's dataset was made is some minutes early at most.

They are made when no build has begun for `QUIET`, where looking into a dataset for the first time takes its time.
"""

from __future__ import annotations

import logging
import math

import trio

from zfsfs.driver import Driver, View
from zfsfs.errors import ZfsfsError
from zfsfs.names import Dataset
from zfsfs.store.demand import QUIET, Activity, Demand
from zfsfs.store.layout import Numbers, junk
from zfsfs.store.reaper import Reaper
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)

MOST = 16


class Fresh:
    """See the module. Only `run`, by `provide`, makes any."""

    def __init__(self, driver: Driver, reaper: Reaper, numbers: Numbers, activity: Activity) -> None:
        self._driver = driver
        self._reaper = reaper
        self._numbers = numbers
        self.ready: dict[Dataset, View] = {}
        self._activity = activity
        self._demand = Demand()
        self._making = trio.Lock()
        self._wake = trio.Event()
        self._closed = not driver.cheap_clones

    def take(self) -> tuple[Dataset, View] | None:
        """One for a build that begins, if there is one; it is the caller's."""
        if self._closed:
            return None
        self._demand.need(trio.current_time(), self._demand.count + 1)
        self._wake.set()
        return self._oldest() if self.ready else None

    def _oldest(self) -> tuple[Dataset, View]:
        dataset = next(iter(self.ready))
        return dataset, self.ready.pop(dataset)

    def give_up(self, dataset: Dataset, view: View) -> None:
        """Nobody will need it."""
        self._reaper.add(dataset, with_foreign=True, view=view)

    async def run(self) -> None:
        """Make and give up what is due, until cancelled."""
        while not self._closed:
            self._wake = trio.Event()
            await self.provide(trio.current_time())
            pause = self._pause() if self._demand.count else math.inf
            with trio.move_on_at(min(pause, self._demand.changes())):
                await self._wake.wait()

    def _pause(self) -> float:
        return self._activity.pause(self._demand.last + QUIET)

    async def provide(self, now: float) -> None:
        """Make and give up what is due at a time (trio's)."""
        async with self._making:
            if self._pause() <= now:
                self._demand.over(now)
            wanted = min(self._demand.wanted(now), MOST)
            while len(self.ready) > wanted:
                self.give_up(*self._oldest())
            if not self._demand.count and not self._driver.trouble():
                async with trio.open_nursery() as nursery:
                    for _ in range(wanted - len(self.ready)):
                        nursery.start_soon(self._make)

    async def _make(self) -> None:
        dataset = junk(self._numbers.take(), "ready", "result")
        try:
            with trio.CancelScope(shield=True):
                # One verb, and after a crash the dataset is there, rubbish by its name.
                await in_thread(self._driver.create, dataset)
                try:
                    view = await in_thread(lambda: self._driver.view(dataset, writable=True))
                except BaseException:
                    self._reaper.add(dataset, with_foreign=True)
                    raise
        except ZfsfsError as failure:
            log.info("no dataset is kept ready: %s", failure)
            return
        if self._closed:
            self.give_up(dataset, view)
        else:
            self.ready[dataset] = view

    async def close(self) -> None:
        """Give up all there are, and make no more."""
        self._closed = True
        async with self._making:
            while self.ready:
                self.give_up(*self._oldest())

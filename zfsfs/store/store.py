"""The store: builds, results and caches in a pool, for whoever has a driver."""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from zfsfs.driver import Driver
from zfsfs.names import Dataset
from zfsfs.store import recovery
from zfsfs.store.builds import Builds
from zfsfs.store.caches import Caches
from zfsfs.store.events import EventLog
from zfsfs.store.layout import is_temporary
from zfsfs.store.reaper import Reaper


class Store:
    """See the module. `start` first, then `run` beside everything else, `close` last."""

    def __init__(self, driver: Driver, clock: Callable[[], float] = time.time) -> None:
        self.driver = driver
        self.events = EventLog(clock)
        self.reaper = Reaper(driver, self.events)
        self.builds = Builds(driver, self.events, self.reaper)
        self.caches = Caches(driver, self.events, self.reaper)

    async def start(self) -> list[str]:
        """Take the lock, recover, and learn what is there. Returns what recovery did, in sentences.

        Raises Locked before anything was touched, Unavailable, and what the verbs raise.
        """
        return await trio.to_thread.run_sync(self._start)

    def _start(self) -> list[str]:
        self.driver.lock()
        self.driver.prepare()
        done = recovery.carry_out(self.driver)
        for sentence in done:
            self.events.append("recovered", self.driver.name, sentence)
        listing = self.driver.list()
        self.builds.load(listing)
        self.caches.load(listing)
        for dataset in listing:
            if dataset.group == "cache-tmp" and is_temporary(dataset):
                self.reaper.later(dataset, "recovery could not destroy it")
            elif dataset.group == "cache-tmp" and dataset.leaf:
                self.events.append("warning", str(dataset), f"{dataset} is not ours; it is left alone")
        return done

    async def run(self) -> None:
        """What goes on in the background, until cancelled."""
        await self.reaper.run()

    async def complete_deletes(self) -> None:
        """Wait until what was deleted has given its space back: nothing queued that can go, `freeing` at zero."""
        pause = 0.01
        await self.reaper.once()
        while await trio.to_thread.run_sync(self.driver.freeing):
            await trio.sleep(pause)
            pause = min(2 * pause, 1.0)

    async def close(self) -> None:
        """Give the store up. Views must be closed."""
        await trio.to_thread.run_sync(self.driver.close)

    def session_datasets(self) -> frozenset[Dataset]:
        """The datasets of open sessions, and those that wait to be destroyed."""
        infos = [self.caches.get(name) for name in self.caches.names()]
        return frozenset(each.dataset for info in infos if info for each in info.sessions) | frozenset(
            self.reaper.queue
        )

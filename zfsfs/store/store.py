"""The store: builds, caches, what happened, and what still has to go.

Guarantees: after `start`, the tables are what is stored. Nothing here touches a pool that another process has.
Assumes: nobody else uses the groups' names meanwhile; snapshots may come and go.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import trio

from zfsfs.driver import Driver
from zfsfs.names import Dataset
from zfsfs.store.builds import Builds
from zfsfs.store.caches import Caches
from zfsfs.store.demand import Activity
from zfsfs.store.events import Event, EventLog
from zfsfs.store.fresh import Fresh
from zfsfs.store.layout import Numbers, free_number
from zfsfs.store.reaper import Explain, Reaper, nobody
from zfsfs.store.recovery import RecoveryReport, carry_out
from zfsfs.store.spares import Spares
from zfsfs.threads import in_thread, lasting

#: The kinds of events that nobody has asked for.
BACKGROUND = ("postponed", "destroyed", "recovered", "warning")


class Store:
    """One store. `start` it, keep `run` running, and `close` it whatever happened."""

    def __init__(self, driver: Driver, *, clock: Callable[[], float] = time.time, explain: Explain = nobody) -> None:
        self.driver = driver
        self.explain = explain
        self.events = EventLog(clock)
        self.reaper = Reaper(driver, self.events, explain)
        self._numbers = Numbers()
        self._activity = Activity()
        self.events.subscribers.append(self._happened)
        kept = driver, self.reaper, self._numbers, self._activity
        self.builds = Builds(driver, self.events, self.reaper, self._numbers, Fresh(*kept), clock)
        self.caches = Caches(driver, self.events, self.reaper, self._numbers, Spares(*kept), clock)

    def _happened(self, event: Event) -> None:
        if event.kind not in BACKGROUND:
            self._activity.last = trio.current_time()

    async def start(self) -> RecoveryReport:
        """Lock the pool, make what is missing, recover, and fill the tables.

        Raises Locked (before anything was touched), Unavailable, and what listing raises.
        """
        with trio.CancelScope(shield=True):
            report = await in_thread(self._start)
        self._numbers.next = free_number(report.listing)
        self.builds.load(report.listing)
        self.caches.load(report.listing, report.broken)
        for action in report.done:
            self.events.append("recovered", str(action.cache or ""), action.text)
        for text in report.warnings:
            self.events.append("warning", "", text)
        for dataset, (with_foreign, reason) in report.postponed.items():
            self.reaper.add(dataset, with_foreign=with_foreign, reason=reason)
        return report

    def _start(self) -> RecoveryReport:
        self.driver.lock()
        self.driver.prepare()
        return carry_out(self.driver)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tidy after releases and destroy what is queued, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lasting, self.caches.run)
            nursery.start_soon(lasting, self.caches.spares.run)
            nursery.start_soon(lasting, self.builds.fresh.run)
            nursery.start_soon(self.builds.naming.run)
            nursery.start_soon(lasting, self.reaper.run)
            task_status.started()

    def ready(self) -> list[Dataset]:
        """The datasets that are kept ready, and those that a build has got and that wait for their name."""
        infos = [info for name in self.caches.names() if (info := self.caches.get(name)) is not None]
        builds = self.builds.fresh.ready + self.builds.naming.unnamed()
        return [*builds, *(each for info in infos for each in info.ready)]

    async def keep_nothing_ready(self) -> None:
        """Give up what is kept ready, for good."""
        await self.caches.spares.close()
        await self.builds.fresh.close()

    async def complete_deletes(self) -> None:
        """Wait until all that was deleted is destroyed, unless somebody holds it, and its space is free again."""
        await self.caches.settle()
        await self.reaper.try_all()
        delay = 0.01
        while await in_thread(self.driver.freeing):
            await trio.sleep(delay)
            delay = min(delay * 2, 1.0)

    async def close(self) -> None:
        """Let go of the pool; whatever is open or queued is for the next start."""
        with trio.CancelScope(shield=True):
            await self.keep_nothing_ready()
            await self.reaper.let_go()
            await in_thread(self.driver.close)

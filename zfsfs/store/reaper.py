"""Destroys, which never block a caller: what is Busy is queued, retried with a growing pause, and says why it waits.

Guarantees: only what was handed in is destroyed, and no snapshot that somebody else made. The queue need not be
stored: recovery finds the same datasets in cache-tmp.
"""

from __future__ import annotations

from dataclasses import dataclass

import trio

from zfsfs.driver import Driver
from zfsfs.errors import Missing, StoreError
from zfsfs.names import Dataset
from zfsfs.store.events import EventLog
from zfsfs.store.layout import foreign
from zfsfs.store.swap import destruction

FIRST_PAUSE = 0.2
LONGEST_PAUSE = 60.0


@dataclass(slots=True)
class Waiting:
    """A dataset that could not be destroyed yet: why, and how often it was tried."""

    reason: str
    tries: int = 0


class Reaper:
    """The queue. `queue` may be read at any time."""

    def __init__(self, driver: Driver, events: EventLog) -> None:
        self._driver = driver
        self._events = events
        self.queue: dict[Dataset, Waiting] = {}
        self._wake = trio.Event()
        self._lock = trio.Lock()

    async def destroy(self, dataset: Dataset) -> bool:
        """Destroy now, or queue; returns whether it is gone."""
        with trio.CancelScope(shield=True):
            async with self._lock:
                reason = await trio.to_thread.run_sync(self._try, dataset)
        if reason is None:
            if self.queue.pop(dataset, None) is not None:
                self._events.append("destroyed", str(dataset), f"{dataset} is destroyed at last")
            return True
        waiting = self.queue.get(dataset)
        if waiting is None:
            self.queue[dataset] = waiting = Waiting(reason)
            self._events.append("postponed", str(dataset), f"{dataset} can't be destroyed yet: {reason}")
            self._wake.set()
        waiting.reason = reason
        waiting.tries += 1
        return False

    def later(self, dataset: Dataset, reason: str) -> None:
        """Queue what is known not to go now."""
        self.queue.setdefault(dataset, Waiting(reason))
        self._wake.set()

    def _try(self, dataset: Dataset) -> str | None:
        try:
            info = self._driver.info(dataset)
            if info is None:
                return None
            if others := foreign(info):
                return f"somebody made {', '.join(map(str, others))}; destroy that snapshot to let it go"
            self._driver.batch(destruction(info))
        except Missing:
            return None
        except StoreError as error:
            return str(error)
        return None

    async def once(self) -> None:
        """Try all that is queued, once."""
        for dataset in list(self.queue):
            await self.destroy(dataset)

    async def run(self) -> None:
        """Retry until cancelled."""
        pause = FIRST_PAUSE
        while True:
            if not self.queue:
                await self._wake.wait()
                self._wake = trio.Event()
                pause = FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            await self.once()

"""Clones kept ready, so that who opens a cache that is opened often waits for nothing.

Guarantees
- A cache has one spare at most, of its newest version; all caches together have `MOST`.
- On the disk a spare is a session's clone without a decision, which recovery destroys: nobody has written in it. It
  is no session: it keeps no cache from being released or deleted, and is given up when that is done.

A spare is made when a cache has been quiet for `QUIET` after its last session, which may have made it obsolete, and
given up when nobody has opened the cache for `HOT`. Only where a clone costs next to nothing.
"""

from __future__ import annotations

import logging
import math

import trio

from zfsfs.driver import Driver
from zfsfs.errors import ZfsfsError
from zfsfs.names import Snapshot, cache, cache_tmp
from zfsfs.store.entries import Entry, Spare
from zfsfs.store.layout import SNAP, Numbers
from zfsfs.store.reaper import Reaper
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)

MOST = 32
#: Seconds.
QUIET = 1.0
HOT = 600.0


class Spares:
    """See the module. Only `run`, by `provide`, makes any."""

    def __init__(self, driver: Driver, reaper: Reaper, numbers: Numbers) -> None:
        self._driver = driver
        self._reaper = reaper
        self._numbers = numbers
        self._opened: dict[Entry, float] = {}  # when, the latest last (trio's time)
        self._due: dict[Entry, float] = {}  # when a spare is to be made
        self._making = trio.Lock()
        self._wake = trio.Event()
        self._closed = not driver.cheap_clones

    def take(self, entry: Entry) -> Spare | None:
        """The spare of a cache, for a session that is being opened, if there is one of its newest version."""
        spare, entry.spare = entry.spare, None
        if spare is not None and spare.generation != entry.generation:
            self._give_up(spare, with_foreign=False)
            return None
        return spare

    def opened(self, entry: Entry) -> None:
        """A session was opened."""
        self._due.pop(entry, None)
        again = self._opened.pop(entry, None) is not None
        if self._closed:
            return
        self._opened[entry] = trio.current_time()
        if not again and len(self._opened) > MOST:
            self.drop(next(iter(self._opened)))

    def ended(self, entry: Entry) -> None:
        """A session has ended."""
        if entry in self._opened and not entry.sessions:
            self._due[entry] = trio.current_time() + QUIET
            self._wake.set()

    def outdated(self, entry: Entry) -> None:
        """There is, or will be, another version."""
        spare, entry.spare = entry.spare, None
        if spare is not None:
            self._give_up(spare, with_foreign=False)

    def drop(self, entry: Entry, *, with_foreign: bool = False) -> None:
        """Nobody will open a cache soon. Foreign snapshots of its spare go too when it is deleted."""
        self._opened.pop(entry, None)
        self._due.pop(entry, None)
        spare, entry.spare = entry.spare, None
        if spare is not None:
            self._give_up(spare, with_foreign=with_foreign)

    def _give_up(self, spare: Spare, *, with_foreign: bool) -> None:
        self._reaper.add(spare.dataset, with_foreign=with_foreign, view=spare.view)

    async def close(self) -> None:
        """Give up all there are, and make no more."""
        self._closed = True
        async with self._making:
            for entry in list(self._opened):
                self.drop(entry)

    async def run(self) -> None:
        """Make and give up spares, until cancelled."""
        while not self._closed:
            self._wake = trio.Event()
            await self.provide(trio.current_time())
            ends = [*self._due.values(), *(opened + HOT for opened in self._opened.values())]
            with trio.move_on_at(min(ends, default=math.inf)):
                await self._wake.wait()

    async def provide(self, now: float) -> None:
        """Make and give up what is due at a time (trio's)."""
        async with self._making:
            for entry in [each for each, opened in self._opened.items() if opened + HOT <= now]:
                self.drop(entry)
            due = [each for each, when in self._due.items() if when <= now]
            async with trio.open_nursery() as nursery:
                for entry in due:
                    del self._due[entry]
                    nursery.start_soon(self._provide_one, entry)

    async def _provide_one(self, entry: Entry) -> None:
        try:
            if not self._driver.trouble():
                await self._make(entry)
        except ZfsfsError as failure:
            log.info("cache %s has no clone kept ready: %s", entry.name, failure)

    async def _make(self, entry: Entry) -> None:
        async with entry.lock:
            if entry.sessions or entry.spare is not None or entry.swap is not None or entry not in self._opened:
                return
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
        if generation == entry.generation and entry.spare is None and entry in self._opened and not self._closed:
            entry.spare = spare
        else:
            self._give_up(spare, with_foreign=False)

"""Caches: published versions, and sessions on clones of them.

Guarantees: for each cache one lock orders opening and releasing. A session keeps its own contents to its end. The
first of the sessions on one version to be released with changes is published, the others are superseded.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import trio

from zfsfs.driver import Driver, Listing
from zfsfs.errors import Busy, Exists, Missing, StoreError
from zfsfs.names import CacheName, Dataset, Snapshot, cache, cache_of, cache_tmp, shown
from zfsfs.store.builds import give
from zfsfs.store.events import EventLog, Outcome
from zfsfs.store.layout import SNAP, foreign, free_number, generation
from zfsfs.store.reaper import Reaper
from zfsfs.store.swap import decide, destruction, exchange, finish

#: Longer than any number that a dataset in cache-tmp gets: a cache must have room for its sessions' names.
_LARGEST = 10**9


@dataclass(eq=False, slots=True)
class Session:
    """An open session: `dataset` is its clone, the cache's own dataset once it was published. `generation` is the
    version that it was cloned from."""

    cache: CacheName
    label: bytes | None
    dataset: Dataset
    generation: int
    opened: float


@dataclass(eq=False, slots=True)
class CacheInfo:
    """A cache. `sessions` are the open ones."""

    name: CacheName
    dataset: Dataset
    generation: int
    created: float
    sessions: list[Session] = field(default_factory=list)
    lock: trio.Lock = field(default_factory=trio.Lock)


class Caches:
    """See the module; `load` fills the table from a listing."""

    def __init__(self, driver: Driver, events: EventLog, reaper: Reaper) -> None:
        self._driver = driver
        self._events = events
        self._reaper = reaper
        self._caches: dict[CacheName, CacheInfo] = {}
        self._next = 1
        self._making: set[CacheName] = set()

    def load(self, listing: Listing) -> None:
        """Know the caches that are there. Numbers of cache-tmp go on behind the largest."""
        self._next = free_number(listing)
        for dataset, info in listing.items():
            if dataset.group == "cache" and (name := cache_of(dataset)) is not None and info.snapshot(SNAP):
                self._caches[name] = CacheInfo(name, dataset, generation(info), info.created)

    def names(self) -> list[CacheName]:
        """All caches."""
        return list(self._caches)

    def get(self, name: CacheName) -> CacheInfo | None:
        """One of them."""
        return self._caches.get(name)

    def _need(self, name: CacheName) -> CacheInfo:
        info = self._caches.get(name)
        if info is None:
            raise Missing(f"there is no cache {name}")
        return info

    def _temporary(self, name: CacheName) -> Dataset:
        number, self._next = self._next, self._next + 1
        return cache_tmp(number, name)

    async def create(self, name: CacheName, owner: tuple[int, int], mode: int) -> CacheInfo:
        """An empty cache, its root owned by `owner` with `mode`. Raises Exists, NoSpace, InvalidName (too long)."""
        if name in self._caches or name in self._making:
            raise Exists(f"cache {name} exists already")
        self._making.add(name)
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._create, name, owner, mode)
            info = self._caches[name] = CacheInfo(name, cache(name), 0, time.time())
        finally:
            self._making.discard(name)
        self._events.append("cache-created", str(name), f"cache {name} is created")
        return info

    def _create(self, name: CacheName, owner: tuple[int, int], mode: int) -> None:
        self._driver.info(cache_tmp(_LARGEST, name))  # only to see whether that name has room
        dataset = cache(name)
        # 1: no dataset.  2: an empty one without @snap, which recovery gives it: mkdir had been asked for.
        self._driver.create(dataset)
        try:
            give(self._driver, dataset, owner, mode)
            self._driver.snapshot(Snapshot(dataset, SNAP))
        except StoreError:
            self._driver.destroy(dataset)
            raise

    async def open(self, name: CacheName, label: bytes | None) -> Session:
        """Clone the newest version for a session. Raises Missing, NoSpace."""
        info = self._need(name)
        with trio.CancelScope(shield=True):
            async with info.lock:
                if self._caches.get(name) is not info:
                    raise Missing(f"there is no cache {name}")
                dataset = self._temporary(name)
                origin = Snapshot(info.dataset, SNAP)
                await trio.to_thread.run_sync(self._driver.clone, origin, dataset)
                session = Session(name, label, dataset, info.generation, time.time())
                info.sessions.append(session)
        self._events.append("opened", self._called(session), f"a session of version {session.generation}")
        return session

    @staticmethod
    def _called(session: Session) -> str:
        return shown(session.cache.name if session.label is None else session.cache.name + b"@" + session.label)

    async def release(self, session: Session, *, changed: bool) -> Outcome:
        """End a session whose users have gone. Views of the published version must be closed before; the session's
        own may stay open if it is going to win. `session.dataset` then is the cache's.

        Raises NoSpace and what else the verbs raise; the session is still open then and may be released again.
        """
        info = self._need(session.cache)
        with trio.CancelScope(shield=True):
            async with info.lock:
                if not changed:
                    outcome = Outcome.UNCHANGED
                elif session.generation != info.generation:
                    outcome = Outcome.SUPERSEDED
                else:
                    outcome = Outcome.PUBLISHED
                    left_over = await trio.to_thread.run_sync(self._swap, session, info)
                info.sessions.remove(session)
            if outcome is not Outcome.PUBLISHED:
                left_over = session.dataset
            await self._reaper.destroy(left_over)
        self._events.append("released", self._called(session), outcome.value)
        return outcome

    def _swap(self, session: Session, info: CacheInfo) -> Dataset:
        clone, head = self._driver.info(session.dataset), self._driver.info(info.dataset)
        if clone is None or head is None:
            raise Missing(f"{session.dataset} or {info.dataset} is gone: somebody else destroyed it")
        # The sequence, with what each crash leaves, stands in `swap`.
        old = self._temporary(session.cache)
        self._driver.batch(decide(clone, head, self._next))
        exchange(self._driver, session.dataset, info.dataset, old)
        after = finish(self._driver, info.dataset)
        session.dataset = info.dataset
        info.generation = generation(after)
        return old

    async def discard(self, session: Session) -> Outcome:
        """End a session and throw its contents away."""
        info = self._need(session.cache)
        info.sessions.remove(session)
        await self._reaper.destroy(session.dataset)
        self._events.append("released", self._called(session), Outcome.DISCARDED.value)
        return Outcome.DISCARDED

    async def delete(self, name: CacheName) -> None:
        """Delete a cache. Snapshots that others made of it go with it, and an event says so.

        Raises Missing; Busy: a session is open, or a snapshot is held.
        """
        info = self._need(name)
        with trio.CancelScope(shield=True):
            async with info.lock:
                if info.sessions:
                    who = ", ".join(self._called(each) for each in info.sessions)
                    raise Busy(f"cache {name} has open sessions: {who}")
                others = await trio.to_thread.run_sync(self._delete, info.dataset)
                del self._caches[name]
        with_them = f", and with it {', '.join(others)}" if others else ""
        self._events.append("cache-deleted", str(name), f"cache {name} is deleted{with_them}")

    def _delete(self, dataset: Dataset) -> list[str]:
        listing = self._driver.list()
        for clone in listing.values():
            # Clones of ended sessions that the reaper has not got rid of yet.
            if clone.origin is not None and clone.origin.dataset == dataset:
                if clone.dataset.group != "cache-tmp" or foreign(clone):
                    raise Busy(f"{dataset} can't go: {clone.dataset} is a clone of it")
                self._driver.batch(destruction(clone))
        head = self._driver.info(dataset)
        if head is None:
            return []
        if held := [each.snapshot for each in head.snapshots if each.holds]:
            raise Busy(f"{dataset} can't go: {held[0]} has a hold; zfs holds shows it, zfs release lifts it")
        self._driver.batch(destruction(head))
        return [str(each) for each in foreign(head)]

"""Sessions of caches, as the tree sees them: opened by the first use, closed when nothing holds them any more.

Guarantees
- What an idle area shows is the published version; an open one shows its own clone to its end.
- Opening, closing and switching of one cache's areas are ordered by its lock; areas are opened side by side, and
  nothing else goes on meanwhile.
- Of the paths with a label that nobody has a session by, any of which may be named, no more than `MOST_LABELS` stay
  known: the kernel is made to forget the others, those in use (as working directories) apart.
- Kernel caches are told after the lock was given up: the kernel may wait for a request that waits for the lock.
  Nothing is opened in an area until they have been.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress

import trio

from zfsfs.driver import Driver, View
from zfsfs.errors import Busy, DriverError, Missing, Stopped, ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.ending import Endings
from zfsfs.fs.insisting import insist
from zfsfs.fs.nodes import NodeTable, stale
from zfsfs.fs.places import CachePlace, SharedCache, cache_place
from zfsfs.fs.recent import Recent
from zfsfs.fs.rules import CacheRuling
from zfsfs.fs.showing import Showing, show_last
from zfsfs.fs.turns import Holds, Turns, open_by
from zfsfs.fs.users import SESSION, WAIT, Users
from zfsfs.names import CacheName, SessionName, cache
from zfsfs.native.processes import Process
from zfsfs.store import Outcome, Session, Store
from zfsfs.store.views import close_view
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)

#: Seconds between two looks at who still holds a session without an open file.
HOLDER_PAUSE = 0.25
#: Seconds before a session is closed again that could not be (a full pool).
RETRY = 5.0
MOST_LABELS = 1000


class Sessions:
    """All caches' areas. `scan` tells who holds an area without an open handle; `tell` makes the kernel forget
    an area's names and the attributes of inodes; `holds` tells whether one of some processes holds an area."""

    def __init__(
        self,
        store: Store,
        table: NodeTable,
        linger: float,
        scan: Callable[[Area, bool], Awaitable[list[str]]],
        tell: Callable[[bytes, list[int]], Awaitable[None]],
        users: Users,
        ruling: CacheRuling,
        holds: Holds,
    ) -> None:
        self.ruling = ruling
        self._store = store
        self._users = users
        self._driver: Driver = store.driver
        self.showing = Showing(store)
        self._endings = Endings(store, self.showing, ruling)
        self._table = table
        self._linger = linger
        self._scan = scan
        self._tell = tell
        self._shared: dict[CacheName, SharedCache] = {}
        self._labels = Recent[Area](MOST_LABELS, lambda area: cache_place(area).session is None)
        self.nursery: trio.Nursery
        self.open_areas: set[Area] = set()
        self._turns = Turns(self.open_areas, holds)
        self._leaving = False
        store.caches.renewed = self._renewed

    def area(self, name: SessionName) -> Area:
        """The area of a path under caches/. Raises Missing when there is no such cache."""
        if self._store.caches.get(name.cache) is None:
            raise Missing(f"there is no cache {name.cache}")
        shared = self._shared.get(name.cache)
        if shared is None:
            shared = self._shared[name.cache] = SharedCache(name.cache)
        area = shared.areas.get(bytes(name))
        if area is None:
            area = shared.areas[bytes(name)] = Area(
                self._table, CachePlace(name, shared, outcome=shared.outcomes.get(bytes(name), ""))
            )
            if shared.last is not None:
                show_last(area, shared.last)
            if not self._driver.stable_inodes:
                area.shown = 0
            area.on_forgotten = self.forgotten
            area.is_guest = self.ruling.is_guest
            self.ruling.apply(area)
            for other in self._labels.add(area) if name.label is not None else ():
                self.nursery.start_soon(self._tell, bytes(cache_place(other).name), [])
        return area

    def waiters(self, name: CacheName) -> int:
        """How many wait for their turn in a locked cache."""
        return self._shared[name].waiters if name in self._shared else 0

    def labelled(self) -> list[bytes]:
        """The paths of open sessions with a label, without what was removed and somebody still has open."""
        names = ((area, cache_place(area).cache, cache_place(area).name) for area in self.open_areas)
        return [
            bytes(name)
            for area, cache, name in names
            if name.label is not None and cache.areas.get(bytes(name)) is area
        ]

    def all(self) -> list[Area]:
        """The areas of all caches that the kernel may know, and of sessions that are being discarded."""
        known = {area for shared in self._shared.values() for area in shared.areas.values()}
        return list(known | self.open_areas)

    def forgotten(self, area: Area) -> None:
        """The kernel knows an area no more, or it was removed."""
        self._labels.drop(area)
        place = cache_place(area)
        if place.cache.areas.get(bytes(place.name)) is area:
            del place.cache.areas[bytes(place.name)]

    # Showing.

    async def ready(self, area: Area) -> None:
        """See to it that the area shows something. Raises ESTALE when its cache is gone."""
        place = cache_place(area)
        if place.discarded and area.view is None:
            raise stale()
        async with place.cache.lock:
            if area.view is None:
                if place.discarded:
                    raise stale()
                view = await self.showing.published(place.cache)
                if area.view is None:  # no session was opened meanwhile
                    if area.as_before:
                        area.attach(view)
                    else:
                        area.attach_anew(view)
        while self.showing.surplus:
            self.nursery.start_soon(self.showing.let_go, self.showing.surplus.pop())

    def begun(self, area: Area, pid: int) -> bool:
        """Whether `begin` would have nothing to wait for."""
        place = cache_place(area)
        if place.discarded:
            return True
        if not place.usable:
            return False
        return not place.locked or self._turns.has(place, pid)

    async def begin(self, area: Area, caller: Caller, *, opens: bool = False) -> None:
        """Open a session, unless it is open: a user is about to change something in it, or only to open it. Raises
        Refused; and what `Turns.take` does."""
        place = cache_place(area)
        if place.discarded:
            if area.view is None:
                raise stale()
            return
        while not self.begun(area, caller.pid):
            # What the kernel still has of an older version must not be read in the session. No request that the
            # kernel's forgetting waits for comes here.
            await area.until(lambda: not place.telling)
            if place.locked:
                with self._users.taking(WAIT, caller.uid):
                    await self._turns.take(area, caller, opens=opens)
            async with place.cache.lock:
                if place.stuck is not None:
                    raise DriverError(f"{place.name} can't be published yet: {place.stuck}", place.stuck.errno)
                other = place.opening or (place.locked and place.cache.opening)
                mine = not other and place.session is None and not place.telling and self._may_open(area, place)
                if mine and place.discarded:
                    raise stale()
                place.opening |= mine
                place.cache.opening += mine
            if mine:
                await self._open_for(area, place, caller)
                return
            if other:
                await place.cache.opened.wait()
        if place.session is None:
            raise stale()

    def _may_open(self, area: Area, place: CachePlace) -> bool:
        """That nobody's turn has come since it was ours."""
        others = (each for each in self.open_areas if cache_place(each).cache is place.cache and each is not area)
        return not place.locked or not any(others)

    async def _open_for(self, area: Area, place: CachePlace, caller: Caller) -> None:
        try:
            with self._users.taking(SESSION, caller.uid):
                await self._open(area, place)
            place.uid = caller.uid
            if place.locked:  # else nobody asks, and it costs more than all the rest
                open_by(place, caller.pid)
        finally:
            place.opening = False
            place.cache.opening -= 1
            place.cache.opened.set()
            place.cache.opened = trio.Event()

    async def _open(self, area: Area, place: CachePlace) -> None:
        session = await self._store.caches.open(place.name.cache, place.name.label)
        try:
            view = await self._view_of(session)
        except BaseException:
            with trio.CancelScope(shield=True):
                try:
                    await self._store.caches.discard(session)
                except (ZfsfsError, OSError):
                    self.nursery.start_soon(self._give_up, session)
            raise
        if area.opens:
            # By readers of what was published before. Not here and now, in a request of one of them.
            self.nursery.start_soon(self._tell, bytes(place.name), self._table.outlive(area))
        if self._driver.stable_inodes:
            area.attach(view)
        else:
            area.attach_anew(view)
        area.changed = area.was_native = area.mappable = False
        area.written = None
        place.session, place.outcome = session, ""
        place.cache.outcomes.pop(bytes(place.name), None)
        place.success = place.publisher = None
        place.guests.clear()
        self._table.hold(area.root)
        self.open_areas.add(area)
        self.nursery.start_soon(self._keep, area)

    async def _give_up(self, session: Session) -> None:
        def say(why: Exception) -> None:
            text = f"{session}, which could not be opened, can't be discarded yet: {why}"
            self._store.events.append("warning", str(session), text)

        await insist(lambda: self._store.caches.discard(session), say)

    async def _view_of(self, session: Session) -> View:
        ready = session.take_view()
        if ready is not None:
            return ready
        with trio.CancelScope(shield=True):
            view = await in_thread(lambda: self._driver.view(session.dataset, writable=True))
        return view  # noqa: RET504 - mypy believes that the scope may swallow an exception

    # Builders.

    def use(self, area: Area, uid: int, groups: Collection[int]) -> None:
        """A builder, of this user, uses an open session. Raises as `CacheRuling.claim`."""
        if area.gate is not None:
            self.ruling.claim(area, uid, groups)
        cache_place(area).uses += 1
        area.opened(writing=False)

    def admit(self, area: Area, pid: int) -> None:
        """Its command will come of this process."""
        process = Process.of(pid)
        if process is not None:
            cache_place(area).openers.add(process)

    def release(self, area: Area, *, success: bool, publishes: bool) -> None:
        """It has ended; what it has left in a session of its own may be published or not."""
        place = cache_place(area)
        place.uses -= 1
        if place.session is not None:
            self.ruling.say(place, b"yes" if success else b"no")
            if not publishes and place.name.label is not None:
                place.publisher = False
        area.closed(writing=False)

    # Closing.

    async def _keep(self, area: Area) -> None:
        """Close the session when its last holder has gone."""
        place = cache_place(area)
        said = ""
        while place.session is not None:
            if area.keepers:
                place.holders = []  # who was seen may have gone, and nobody looks as long as files are open
            await area.until(lambda: not area.keepers)
            try:
                if not place.discarded and await self._is_held(area):
                    continue
                await self.close(area)
                if (said or place.refused) and place.discarded and place.session is None:
                    place.refused = False
                    self.forgotten(area)  # whose rmdir has failed, so that the kernel still knows it
                    place.telling += 1
                    await self._tell_all([(area, [])])
            except (ZfsfsError, OSError, MemoryError) as failure:
                # What is published has to move, so whoever holds that is in the way.
                who = ""
                if isinstance(failure, Busy):
                    with suppress(ZfsfsError, OSError):
                        who = await self._store.explain(cache(place.name.cache))
                text = f"{place.name} can't be closed yet: {failure}" + (f": {who}" if who else "")
                if text != said:
                    self._store.events.append("warning", str(place.name), text)
                said = text
                await trio.sleep(RETRY)

    async def _is_held(self, area: Area) -> bool:
        """Whether somebody came in the linger time, or holds the area otherwise."""
        place = cache_place(area)

        def somebody() -> bool:
            return area.keepers > 0 or place.discarded

        # Who came while we looked at others was not seen: he has changed something, or he will be seen next time.
        area.touched = False
        with trio.move_on_after(self._linger):
            # Who waits for their turn has waited long enough.
            await area.until(lambda: somebody() or place.cache.waiters > 0)
            if somebody():
                return True
        place.holders = await self._scan(area, not area.may_have_changed)
        if not place.holders:
            place.holders = await self._mappings(area)
        if not place.holders:
            return area.keepers > 0 or area.touched
        with trio.move_on_after(HOLDER_PAUSE):
            await area.until(somebody)
        return True

    async def _mappings(self, area: Area) -> list[str]:
        count = await self._table.mapped(area)
        return [f"{count} files that are mapped to be written"] if count else []

    async def close(self, area: Area, *, force: bool = False) -> None:
        """End an open session: published, superseded, unchanged or discarded. With `force` open handles don't
        count. Does nothing when somebody came meanwhile."""
        place = cache_place(area)
        told: list[tuple[Area, list[int]]] = []
        with trio.CancelScope(shield=True):
            async with place.cache.alone():
                session = place.session
                wanted = area.keepers or (area.touched and not place.discarded)
                if session is None or (wanted and not force):
                    return
                if area.frozen:
                    # Whoever has it natively goes on writing, whatever becomes of us: nothing of it is whole.
                    place.discarded = True
                    text = f"session {place.name} is dropped: it was native for somebody at the end"
                    self._store.events.append("warning", str(place.name), text)
                if stopped := self._driver.trouble():
                    raise Stopped(stopped)
                # From here on who wants to open or change something waits for the next session: what came after
                # the snapshot would be lost.
                place.closing = True
                try:
                    outcome = await self._endings.end(area, place)
                except (ZfsfsError, OSError) as failure:
                    decided = self._store.caches.is_decided(session)
                    place.stuck = DriverError(str(failure), failure.errno or errno.EIO) if decided else None
                    raise
                finally:
                    place.closing = False
                place.stuck = None
                place.session, place.outcome, place.holders = None, outcome.value, []
                place.cache.remember(bytes(place.name), outcome.value)
                place.cache.look_again()
                self._users.give(SESSION, place.uid)
                self.open_areas.discard(area)
                if outcome is Outcome.PUBLISHED:
                    told += await self.showing.refresh_idle(place.cache, area)
                    if area.opens:
                        # The next session writes elsewhere than what its readers have open.
                        told.append((area, self._table.outlive(area)))
                elif not place.discarded:
                    news = await self.showing.refresh(area, place.cache)
                    if outcome is not Outcome.UNCHANGED or not self._endings.is_newest(session):
                        told.append(news)
                for other, _ in told:
                    cache_place(other).telling += 1
            self._table.closed(area.root)
        await self._tell_all(told)

    async def _tell_all(self, told: list[tuple[Area, list[int]]]) -> None:
        try:
            for other, inodes in told if not self._leaving else ():
                await self._tell(bytes(cache_place(other).name), inodes)
        finally:
            for other, _ in told:
                cache_place(other).telling -= 1
                other.stir()

    def _renewed(self, name: CacheName) -> None:
        """The store has completed a release, or a repair, by itself."""
        if not self._leaving:
            self.nursery.start_soon(self._renew, name)

    async def _renew(self, name: CacheName) -> None:
        shared = self._shared.get(name)
        if shared is None:
            return
        told: list[tuple[Area, list[int]]] = []

        async def show() -> None:
            async with shared.alone():
                if shared.last is None:
                    await close_view(self.showing.take_view(shared))
                    told.extend(await self.showing.refresh_idle(shared))
                    for other, _ in told:
                        cache_place(other).telling += 1

        def say(why: Exception) -> None:
            log.warning("cache %s has a new version that can't be shown yet: %s", name, why)

        await insist(show, say)
        await self._tell_all(told)

    # For those who end sessions by name.

    async def holders(self, area: Area) -> list[str]:
        """Who holds an area without an open handle."""
        return await self._scan(area, False) + await self._mappings(area)

    def tell_soon(self, area: Area, inodes: list[int]) -> None:
        """Have the kernel forget an area's names and the attributes of inodes. It may hold locks for our caller."""
        cache_place(area).telling += 1
        self.nursery.start_soon(self._tell_all, [(area, inodes)])

    def gone(self, shared: SharedCache) -> None:
        """A cache is deleted: its areas stand for nothing any more."""
        areas = list(shared.areas.values())
        shared.areas.clear()
        del self._shared[shared.name]
        for each in areas:
            place = cache_place(each)
            if place.name.label is not None:
                # Not here and now: the kernel holds the directory's lock until the rmdir is answered.
                self.nursery.start_soon(self._tell, bytes(place.name), [each.root.ino])

    async def close_all(self) -> None:
        """The end: every session is closed as if its holders had gone, and nothing is looked into any more."""
        # The kernel is told nothing more: it would wait for requests that are no longer answered.
        self._leaving = True
        for area in list(self.open_areas):
            try:
                await self.close(area, force=True)
            except (ZfsfsError, OSError) as failure:
                log.warning("session %s can't be closed: %s", cache_place(area).name, failure)
                await self._endings.bequeath(area, cache_place(area))
        async with trio.open_nursery() as nursery:
            for shared in self._shared.values():
                nursery.start_soon(close_view, self.showing.take_view(shared))

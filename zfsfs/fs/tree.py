"""The tree's own directories: what stands under builds/, results/ and caches/, and what their verbs mean.

One rule: mkdir begins, mv publishes, rmdir discards; a cache publishes itself when its last user closes it.
Errors are ZfsfsError with the errno that the path answers, or OSError.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import trio

from zfsfs.config import CacheRules
from zfsfs.driver import View
from zfsfs.errors import Busy, Exists, InvalidName, Missing, Stopped, ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller, error
from zfsfs.fs.control import FIRST_INODE
from zfsfs.fs.failures import Failures
from zfsfs.fs.holders import Holder, Wanted, holders
from zfsfs.fs.idle import Idle
from zfsfs.fs.nodes import NodeTable, stale
from zfsfs.fs.permission import WRITE, permits
from zfsfs.fs.places import BuildPlace, CachePlace, FailedPlace, Place, ResultPlace
from zfsfs.fs.quiet import closed, not_native, not_written
from zfsfs.fs.removing import Removals
from zfsfs.fs.rules import CacheRuling
from zfsfs.fs.sessions import Sessions
from zfsfs.fs.sharing import Shared
from zfsfs.fs.starting import start_build
from zfsfs.fs.troubles import Troubles
from zfsfs.fs.users import BUILD, Users
from zfsfs.names import FAILED_BUILDS, BuildId, BuildName, CacheName, Dataset, SessionName, Snapshot
from zfsfs.store import Store
from zfsfs.store.arriving import Arrive, at_once
from zfsfs.store.views import close_view
from zfsfs.threads import UNLIMITED, in_thread

if TYPE_CHECKING:
    from zfsfs.fs.building import Builders, Run

log = logging.getLogger(__name__)

#: Seconds between two looks whether the storage works again, at the end.
PAUSE = 0.5

BUILDS, RESULTS, CACHES, FAILED = b"builds", b"results", b"caches", b"builds/.failed"


class Tree:
    """See the module. `device` is the mounted tree's st_dev, known once it is mounted."""

    def __init__(
        self,
        store: Store,
        linger: float,
        tell: Callable[[bytes, list[int]], Awaitable[None]],
        users: Users,
        rules: Mapping[CacheName, CacheRules] | None = None,
    ) -> None:
        self.store = store
        self.users = users
        self.troubles = Troubles(lambda text: store.events.append("warning", "storage", text), self.statvfs)
        self.table = NodeTable(FIRST_INODE)
        self.builds: dict[BuildId, Area] = {}
        self._results: dict[BuildId, Area] = {}
        self._numbers: dict[BuildId, int] = {}  # of the roots of those that the kernel has forgotten
        self.failures = Failures(self)
        self.idle = Idle(self.let_go)
        self._lingering: set[Area] = set()  # of builds and results that are gone, with handles that are open
        self.sessions = Sessions(
            store, self.table, linger, self.holders_of, tell, users, CacheRuling(store, rules or {}), self.is_held_by
        )
        self._removals = Removals(store, self.table, self.sessions)
        self.device = -1
        self.stopped = ""
        self.builders: Builders | None = None
        self._state: View | None = None
        self._everybody = Shared(self._look_at_everybody)

    async def start(self) -> None:
        """What is needed before the first request."""
        self._state = await in_thread(lambda: self.store.driver.view(Dataset("state"), writable=True))

    def state(self, name: str) -> int:
        """A directory of our own in the store's state, as a descriptor that belongs to the caller. Raises OSError."""
        if self._state is None:
            raise stale()
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=self._state.fd)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return os.open(name, flags, dir_fd=self._state.fd)

    # Names.

    def names(self, group: bytes) -> list[bytes]:
        """What a group lists."""
        if group == BUILDS:
            kept = [FAILED_BUILDS] if self.store.builds.failed() else []
            return [*kept, *(bytes(_build(area).name) for area in self.builds.values())]
        if group == FAILED:
            return self.failures.names()
        if group == RESULTS:
            return [ident.name for ident in self.store.builds.results()]
        return [name.name for name in self.store.caches.names()] + self.sessions.labelled()

    def find(self, group: bytes, name: bytes) -> Area:
        """The area of a name. Raises Missing."""
        try:
            if group == BUILDS:
                return self.build(name)
            if group == RESULTS:
                return self.result(BuildId(name))
            if group == FAILED:
                return self.failures.find(BuildId(name))
            return self.sessions.area(SessionName.parse(name))
        except InvalidName as failure:
            raise error(errno.ENAMETOOLONG if failure.errno == errno.ENAMETOOLONG else errno.ENOENT) from None

    def build(self, name: bytes) -> Area:
        """The area of a build that runs. Raises Missing, InvalidName."""
        build = BuildName.parse(name)
        area = self.builds.get(build.id)
        if area is None or _build(area).name != build:
            raise Missing(f"{build.id} is not being built")
        return area

    def result(self, ident: BuildId) -> Area:
        """The area of a result. Raises Missing."""
        if self.store.builds.result(ident) is None:
            raise Missing(f"there is no result {ident}")
        area = self._results.get(ident)
        if area is None:
            area = self._results[ident] = Area(self.table, ResultPlace(ident), self._numbers.pop(ident, 0))
            area.finish()
            area.on_forgotten = self._result_forgotten
        return area

    def _result_forgotten(self, area: Area) -> None:
        assert isinstance(area.place, ResultPlace)
        if self._results.get(area.place.id) is area:
            del self._results[area.place.id]
            self._numbers[area.place.id] = area.root.ino
        self.let_go(area)

    def let_go(self, area: Area) -> None:
        """Show nothing in an area any more."""
        self.idle.drop(area)
        if area.view is not None:  # else it has nothing open: most that were only listed have not
            self.sessions.nursery.start_soon(close_view, area.detach())

    # Access.

    def storage_seen(self, trouble: str) -> None:
        """The storage has stopped, and why, or works again. From any thread."""
        self.stopped = trouble

    def running(self) -> None:
        """Raises Stopped while the storage would let everybody wait."""
        if self.stopped:
            raise Stopped(self.stopped)

    async def ready(self, area: Area) -> None:
        """See to it that an area shows what it stands for, before something in it is looked at."""
        self.running()
        if isinstance(area.place, CachePlace):
            await self.sessions.ready(area)
            return
        target, writable = self._behind(area.place)
        await self.store.builds.naming.settle(area.place.dataset)
        view = await in_thread(lambda: self.store.driver.view(target, writable=writable))
        try:
            self._behind(area.place)
        except OSError:
            await close_view(view)  # it has gone meanwhile, and nobody would close this
            raise
        if area.view is not None:
            await close_view(view)  # another was faster
        else:
            area.attach(view)
            if not writable:
                self.idle.add(area)

    def _behind(self, place: Place) -> tuple[Dataset | Snapshot, bool]:
        """What is to be looked into, and whether to write there. Raises ESTALE when it has gone."""
        if isinstance(place, ResultPlace):
            info = self.store.builds.result(place.id)
            if info is not None and not place.deleted:
                return Snapshot(info.dataset, "snap"), False
        elif isinstance(place, FailedPlace) and not place.deleted:
            return place.dataset, False
        elif isinstance(place, BuildPlace) and place.name.id in self.builds and not place.discarded:
            return place.dataset, True  # it could not be discarded
        raise stale()

    async def begin(self, area: Area, caller: Caller, *, opens: bool = False) -> None:
        """Something in an area is about to be opened (if `opens`, no more than that) or changed."""
        if isinstance(area.place, CachePlace):
            if area.place.discarded or not self.sessions.begun(area, caller.pid):
                await self.sessions.begin(area, caller, opens=opens)
        elif area.view is None:
            await self.ready(area)

    def begun(self, area: Area, pid: int) -> bool:
        """Whether `begin` would have nothing to wait for."""
        if isinstance(area.place, CachePlace) and not self.sessions.begun(area, pid):
            return False
        return area.view is not None

    # Verbs.

    async def mkdir(self, group: bytes, name: bytes, mode: int, caller: Caller, arrive: Arrive = at_once) -> Area:
        """Begin a build, or make a cache. `arrive` is awaited before its name is there."""
        self.running()
        owner = (caller.uid, caller.gid)
        if group == BUILDS:
            with self.users.taking(BUILD, caller.uid):
                return await start_build(self, BuildName.parse(name), mode, caller, arrive)
        if group == CACHES:
            session = SessionName.parse(name)
            if session.label is not None:
                self.sessions.area(session)  # there is such a cache
                raise Exists(f"{session} needs no mkdir: any label may be used")
            await self.store.caches.create(session.cache, owner, mode, arrive)
            return self.sessions.area(session)
        raise error(errno.EPERM)

    def may_make(self, group: bytes, name: bytes) -> None:
        """Raises what `mkdir` would, as far as it is known."""
        self.running()
        if group == BUILDS:
            self.store.builds.may_begin(BuildName.parse(name))
        elif group == CACHES:
            self.store.caches.may_create(SessionName.parse(name).cache)
        else:
            raise error(errno.EPERM)

    def may_remove(self, group: bytes, name: bytes) -> None:
        """Raises what `rmdir` would, as far as it is known."""
        self.running()
        place = self.find(group, name).place
        if isinstance(place, ResultPlace):
            self.store.builds.may_delete(place.id)

    async def rmdir(self, group: bytes, name: bytes, arrive: Arrive = at_once) -> None:
        """Discard a build or session, delete a result, cache or failed build. `arrive` is awaited before its name is
        gone; until then that shows as it was, but is not looked into any more."""
        self.running()
        area = self.find(group, name)
        if _builder_of(area) is not None:
            await arrive()
        run = _builder_of(area)
        if run is not None:
            self._cancel(area, _build(area), run)
            return
        await not_native(area, arrive)
        if group == BUILDS:
            await self._discard_build(area, arrive)
        elif group == RESULTS:
            await self._delete_result(area, arrive)
        elif group == FAILED:
            await self.failures.forget(BuildId(name), arrive)
        else:
            session = SessionName.parse(name)
            if session.label is None:
                await self._removals.delete(session.cache, arrive)
            else:
                await self._removals.discard(session, arrive)

    def may_publish(self, old: bytes, new: bytes) -> Area:
        """The build's area. Raises what `publish` would, as far as it is known."""
        self.running()
        area = self.find(BUILDS, old)
        build, target = _build(area), BuildId(new)
        if build.name.id != target:
            raise InvalidName(f"build {build.name.id} can only be published as results/{build.name.id}")
        if self.store.builds.result(target) is not None:
            raise Exists(f"there is a result {target} already")
        if build.run is not None and not build.run.success:
            raise Busy(f"build {target} is its builder's to publish")
        return area

    async def publish(self, old: bytes, new: bytes, arrive: Arrive = at_once) -> None:
        """mv builds/ID[@BASE] results/ID; `arrive` is awaited before that shows. Raises Missing, Exists, Busy (a file
        is open for writing), InvalidName (another id), NoSpace."""
        area = self.may_publish(old, new)
        build, target = _build(area), BuildId(new)
        await not_native(area, arrive)
        await not_written(area, f"{target} can't be published", arrive)
        area.read_only = True  # before the snapshot: what it holds is what the result shows
        self.table.let_go(area)
        try:
            await area.write_out()
            await self.store.builds.publish(target, arrive)
        except BaseException:
            area.read_only = False
            raise
        del self.builds[target]
        self.users.give(BUILD, build.uid)
        area.place = ResultPlace(target)
        area.finish()
        self._results[target] = area
        area.on_forgotten = self._result_forgotten
        self.idle.add(area)
        self.table.closed(area.root)

    def _cancel(self, area: Area, build: BuildPlace, run: Run) -> None:
        """Answered before the builder has ended: the kernel holds the lock of builds/ until the answer."""
        build.cancelled = True
        del self.builds[build.name.id]
        self.users.give(BUILD, build.uid)
        self._lingering.add(area)
        run.cancel()

    async def discard_cancelled(self, area: Area) -> None:
        """The builder of a build whose directory was removed has ended."""
        self._lingering.discard(area)
        try:
            await self._discard_build(area)
        except BaseException:
            self._lingering.add(area)
            raise

    async def _discard_build(self, area: Area, arrive: Arrive = at_once) -> None:
        build = _build(area)
        await closed(area, arrive)
        build.discarded = True
        build.grave = await self.remove(area, lambda view: self.store.builds.discard(build.name.id, arrive, view))
        if self.builds.pop(build.name.id, None) is not None:
            self.users.give(BUILD, build.uid)
        await self.end(area)

    async def _delete_result(self, area: Area, arrive: Arrive) -> None:
        place = area.place
        assert isinstance(place, ResultPlace)
        await closed(area, arrive)
        delete = partial(self.remove, area, lambda view: self.store.builds.delete(place.id, arrive, view))
        place.grave = await self.failures.go_with(place.id, arrive, delete)
        place.deleted = True
        self._results.pop(place.id, None)
        self._numbers.pop(place.id, None)
        self.table.hold(area.root)
        await self.end(area)

    async def remove(self, area: Area, verb: Callable[[View | None], Awaitable[Dataset | None]]) -> Dataset | None:
        """Let a verb give up what is behind an area, and close the view of it. Nothing that is open in it is
        disturbed. Whatever the kernel forgets, the area is there until then, and shows as it was."""
        self.table.hold(area.root)
        view = None
        try:
            if area.view is None and area.last is None and isinstance(area.place, ResultPlace):
                with suppress(ZfsfsError, OSError):  # somebody else may have destroyed it
                    await self.ready(area)
            view = area.hide()
            return await verb(view)
        except BaseException:
            await close_view(view)
            # It is looked into again as soon as somebody wants to; until then `last` is true.
            if isinstance(area.place, BuildPlace):
                area.place.discarded = False
            elif isinstance(area.place, FailedPlace):
                area.place.deleted = False
            raise
        finally:
            self.table.closed(area.root)

    async def end(self, area: Area) -> None:
        """A build or result is gone. What is open in it goes on working, as in a removed directory."""
        self.idle.drop(area)
        if area.opens:
            self._lingering.add(area)
            self.sessions.nursery.start_soon(self._linger, area)
        else:
            await close_view(area.detach())
            self.table.closed(area.root)

    async def _linger(self, area: Area) -> None:
        await area.until(lambda: not area.opens)
        self._lingering.discard(area)
        await close_view(area.detach())
        self.table.closed(area.root)
        self.store.reaper.hurry()

    # What is going on.

    def natives(self) -> list[Area]:
        """What somebody has natively."""
        return [area for area in self.areas() if area.held is not None]

    async def holders_of(self, area: Area, guests: bool) -> list[str]:
        """Who holds an area without an open handle; with `guests`, those too who may only read in it."""
        if self.device < 0:
            return []
        mine = [each for each in await self._everybody.result() if self._is_in(each, area)]
        if not guests and area.view is not None:
            root = area.fd
            mine = [each for each in mine if permits(root, WRITE, each.uid, each.groups)]
        return [str(each) for each in mine]

    async def _look_at_everybody(self) -> list[Holder]:
        return await in_thread(holders, Wanted(self.device), abandon_on_cancel=True)

    async def is_held_by(self, area: Area, pids: Collection[int]) -> bool:
        """Whether one of these processes holds an area. A mount counts only in a namespace that is not ours: what is
        in that is everybody's."""
        wanted = Wanted(self.device)
        # Looking so may wait for a process that waits for us.
        found = await in_thread(lambda: holders(wanted, thorough=True, pids=pids), limiter=UNLIMITED)
        mine = os.stat("/proc/self/ns/mnt").st_ino
        return any(self._is_in(each, area) for each in found if each.namespace != mine)

    def _is_in(self, holder: Holder, area: Area) -> bool:
        if not holder.ino:
            path = area.place.path()
            return holder.path == path or holder.path.startswith(path + b"/")
        node = self.table.showing(holder.ino)
        return node is not None and node.area is area

    def areas(self) -> list[Area]:
        """Every area that somebody may hold."""
        return [
            *self.builds.values(),
            *self._results.values(),
            *self.failures.areas(),
            *self.sessions.all(),
            *self._lingering,
        ]

    def showing(self, dataset: Dataset) -> set[Area]:
        """The areas with this dataset behind them."""
        return {area for area in self.areas() if area.place.dataset == dataset}

    def statvfs(self) -> os.statvfs_result:
        """The pool's space, or the quota's."""
        if self._state is None:
            raise stale()
        return os.fstatvfs(self._state.fd)

    async def close(self) -> None:
        """The end: sessions are closed, running builds discarded, nothing is looked into any more."""
        with trio.CancelScope(shield=True):
            await self._storage()
            await self.sessions.close_all()
            for ident in list(self.builds):
                await close_view(self.builds.pop(ident).detach())
                try:
                    await self.store.builds.discard(ident)
                except ZfsfsError as failure:
                    # It is a left-over then, as after a crash.
                    log.warning("build %s can't be discarded: %s", ident, failure)
            async with trio.open_nursery() as nursery:
                for area in (*self._results.values(), *self.failures.areas(), *self._lingering):
                    nursery.start_soon(close_view, area.detach())
            await self.store.caches.settle()
            await self.store.keep_nothing_ready()
            await self.store.reaper.try_all()
            state, self._state = self._state, None
            if state is not None:
                state.close()

    async def _storage(self) -> None:
        """Wait for the storage, where it has stopped: what is in open sessions would be lost."""
        said = ""
        while self.sessions.open_areas and (trouble := self.store.driver.trouble()):
            if trouble != said:
                log.warning("sessions are open, and can't be closed: %s", trouble)
            said = trouble
            await trio.sleep(PAUSE)


def _builder_of(area: Area) -> Run | None:
    """The builder that is at work in an area."""
    run = area.place.run if isinstance(area.place, BuildPlace) else None
    return run if run is not None and run.ended is None else None


def _build(area: Area) -> BuildPlace:
    assert isinstance(area.place, BuildPlace)
    return area.place

"""Builds that failed and are kept: builds/.failed/ID, read-only, and how they come there, run again and go."""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio

from zfsfs.errors import Busy, InvalidName, Missing
from zfsfs.fs import control
from zfsfs.fs.area import FOREVER, Area
from zfsfs.fs.places import BuildPlace, FailedPlace
from zfsfs.fs.quiet import not_native, not_written
from zfsfs.fs.users import BUILD
from zfsfs.names import BuildId, BuildName
from zfsfs.store.arriving import Arrive, again, at_once
from zfsfs.store.views import close_view
from zfsfs.threads import UNLIMITED, in_thread, lasting

if TYPE_CHECKING:
    from zfsfs.fs.tree import Tree

T = TypeVar("T")

#: Seconds that the kernel may take to be told of names, before a verb goes on all the same.
TELLING = 1.0


class Failures:
    """See the module: a part of the tree. `look_again` has the kernel look up names again, each with its directory's
    number; it blocks."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self.look_again: Callable[[list[tuple[int, bytes]]], None] = lambda names: None
        self._areas: dict[BuildId, Area] = {}

    def names(self) -> list[bytes]:
        """What the directory lists."""
        return [ident.name for ident in self._tree.store.builds.failed()]

    def areas(self) -> list[Area]:
        """Those that the kernel may know."""
        return list(self._areas.values())

    def find(self, ident: BuildId) -> Area:
        """The area of an id. Raises Missing."""
        info = self._tree.store.builds.failed().get(ident)
        if info is None:
            raise Missing(f"there is no failed build {ident}")
        area = self._areas.get(ident)
        if area is None or area.place.dataset != info.dataset:
            area = self._areas[ident] = Area(self._tree.table, FailedPlace(ident, info.dataset))
            area.read_only = True
            area.on_forgotten = self._forgotten
        return area

    def _forgotten(self, area: Area) -> None:
        if isinstance(area.place, FailedPlace) and self._areas.get(area.place.id) is area:
            del self._areas[area.place.id]
        self._tree.let_go(area)

    def may_keep(self, old: bytes, new: bytes) -> tuple[Area, BuildPlace]:
        """The build's area and what it is. Raises what `keep` would, as far as it is known."""
        self._tree.running()
        area = self._tree.build(old)
        build, target = area.place, BuildId(new)
        assert isinstance(build, BuildPlace)
        if build.name.id != target:
            raise InvalidName(f"build {build.name.id} can only be kept as .failed/{build.name.id}")
        if build.run is not None and (build.run.ended is None or build.run.success):
            raise Busy(f"build {target} is its builder's to end")
        return area, build

    async def keep(self, old: bytes, new: bytes, arrive: Arrive = at_once) -> None:
        """mv builds/ID[@BASE] builds/.failed/ID: a build has failed, and what it left is to be looked at; `arrive` is
        awaited before that shows. Raises as `Tree.publish`."""
        tree = self._tree
        area, build = self.may_keep(old, new)
        target = build.name.id
        await not_native(area, arrive)
        await not_written(area, f"{target} can't be kept", arrive)
        facts = {} if build.run is None else build.run.facts
        area.read_only = True
        try:
            await self._let_go(target)
            info = await tree.store.builds.keep(target, facts, time.time(), arrive)
        except BaseException:
            area.read_only = False
            raise
        del tree.builds[target]
        tree.users.give(BUILD, build.uid)
        area.place = FailedPlace(target, info.dataset)
        self._areas[target] = area
        area.on_forgotten = self._forgotten
        tree.idle.add(area)
        tree.table.closed(area.root)
        if tree.builders is not None:
            tree.builders.tidy_soon()

    def may_reopen(self, old: bytes, new: bytes) -> tuple[Area, BuildName]:
        """The failed build's area and what it will be called. Raises what `reopen` would, as far as it is known."""
        self._tree.running()
        ident, build = BuildId(old), BuildName.parse(new)
        area, kept = self.find(ident), self._tree.store.builds.failed()[ident]
        if build.id != ident or build.builder or build.base not in (None, kept.base):
            raise InvalidName(f"a failed build {ident} can only be opened again under its own name")
        self._tree.store.builds.may_reopen(ident)
        return area, build

    async def reopen(self, old: bytes, new: bytes, arrive: Arrive = at_once) -> None:
        """mv builds/.failed/ID builds/ID[@BASE]: a failed build runs again, as anybody's; `arrive` is awaited before
        that shows. Raises Missing, Exists, InvalidName (another id or base)."""
        tree = self._tree
        area, build = self.may_reopen(old, new)
        await not_native(area, arrive)
        if area.view is None:
            await tree.ready(area)
        uid, place = os.fstat(area.fd).st_uid, area.place
        assert isinstance(place, FailedPlace)
        # Before it gets its new name, which would have to be undone where it can't be looked into.
        with trio.CancelScope(shield=True):
            view = await in_thread(lambda: tree.store.driver.view(place.dataset, writable=True))
        try:
            if area.place is not place or place.deleted:
                raise Missing(f"{build.id} is no failed build any more")
            with tree.users.taking(BUILD, uid):
                info = await tree.store.builds.reopen(build.id, arrive)
        except BaseException:
            await close_view(view)
            raise
        area.place = BuildPlace(build, info.created, uid)
        self._areas.pop(build.id, None)
        area.on_forgotten = None
        tree.idle.drop(area)
        before = area.detach()
        area.attach(view)
        area.read_only = False
        tree.table.hold(area.root)
        tree.builds[build.id] = area
        await close_view(before)

    async def forget(self, ident: BuildId, arrive: Arrive = at_once) -> None:
        """Delete a failed build; what is open in it goes on working. `arrive` is awaited before its name is gone."""
        area, forget = self._areas.get(ident), self._tree.store.builds.forget
        if area is None:
            await forget(ident, arrive)
        else:
            await not_native(area, arrive)
            assert isinstance(area.place, FailedPlace)
            area.place.deleted = True
            await self._tree.remove(area, lambda view: forget(ident, arrive, view))
        await self._let_go(ident)

    async def go_with(self, base: BuildId, arrive: Arrive, verb: Callable[[], Awaitable[T]]) -> T:
        """Carry out a verb that deletes a result, and the failed builds with it that are based on that: what is open
        in them goes on working. Raises Busy while one is native for somebody, and what the verb does: then those are
        looked into again."""
        for each in self._based_on(base):
            await not_native(each, arrive)
        going = self._based_on(base)
        await self._hide(going, arrive)
        try:
            return await verb()
        finally:
            left = self._tree.store.builds.failed()
            for area in going:
                place = _failed(area)
                if place.id in left and left[place.id].dataset == place.dataset:
                    place.deleted, area.timeout = False, FOREVER
                elif self._areas.get(place.id) is area:  # else another of that id has made it go
                    await self._let_go(place.id)

    def _based_on(self, base: BuildId) -> list[Area]:
        return [self.find(each.id) for each in self._tree.store.builds.failed().values() if each.base == base]

    async def _hide(self, areas: list[Area], arrive: Arrive) -> None:
        """Failed builds are about to go: they show as they were, and are not looked into any more, and the kernel
        asks for their names from now on. It is not told when they have gone, for then it holds locks."""
        if not areas:
            return
        names, told = [(control.FAILED, _failed(area).id.name) for area in areas], trio.Event()

        async def tell() -> None:
            # In a thread: the kernel may hold the directory's lock for a request to us.
            tell = partial(in_thread, self.look_again, names, abandon_on_cancel=True, limiter=UNLIMITED)
            await lasting(tell)
            told.set()

        async with trio.open_nursery() as nursery:
            for area in areas:
                _failed(area).deleted, area.timeout = True, 0
                nursery.start_soon(close_view, area.hide())
        self._tree.sessions.nursery.start_soon(tell)
        # It may hold the lock that the answer to us needs, for whoever waits for one that it holds for our caller: it
        # does with these two, and else if he has not had to look anything up.
        if arrive not in (at_once, again):
            with trio.move_on_after(TELLING):
                await told.wait()

    async def _let_go(self, ident: BuildId) -> None:
        area = self._areas.pop(ident, None)
        if area is not None and isinstance(area.place, FailedPlace):
            area.place.deleted = True
            self._tree.table.hold(area.root)
            await self._tree.end(area)


def _failed(area: Area) -> FailedPlace:
    assert isinstance(area.place, FailedPlace)
    return area.place

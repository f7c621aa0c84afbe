"""rmdir in caches/: of a session, which is then discarded, and of a cache, with the sessions that nobody holds.

Guarantees
- Until its name is gone, what is being removed shows as it was. No session is opened in it meanwhile.
- What is refused leaves a cache, and the sessions that were not ended yet, as before, for the kernel too. A session
  whose own rmdir fails goes nowhere all the same.
"""

from __future__ import annotations

import os

import trio

from zfsfs.errors import Busy
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.places import SharedCache, cache_place
from zfsfs.fs.quiet import closed, patience
from zfsfs.fs.sessions import Sessions
from zfsfs.fs.showing import show_last
from zfsfs.names import CacheName, SessionName
from zfsfs.store import Store
from zfsfs.store.arriving import Arrive
from zfsfs.store.views import close_view


class Removals:
    """See the module."""

    def __init__(self, store: Store, table: NodeTable, sessions: Sessions) -> None:
        self._store = store
        self._table = table
        self._sessions = sessions

    async def discard(self, name: SessionName, arrive: Arrive) -> None:
        """rmdir of a session's directory: what is in it goes nowhere. `arrive` is awaited before another begins."""
        area = self._sessions.area(name)
        place = cache_place(area)
        show_last(area, await self._last(area))
        if place.session is not None:
            await closed(area, arrive)
            try:
                await self._sessions.close(area)
            except BaseException:
                place.refused = True
                raise
        await arrive()
        place.refused = False
        self._sessions.forgotten(area)

    async def delete(self, name: CacheName, arrive: Arrive) -> None:
        """rmdir of a cache. Sessions that nobody holds any more don't count. `arrive` is awaited before the name is
        gone. Raises Missing, Busy."""
        area = self._sessions.area(SessionName(name))
        shared = cache_place(area).cache
        ended: list[Area] = []
        mine = False
        try:
            await self._end_unheld(shared, arrive, ended)
            last = await self._last(area)
            async with shared.alone():
                if shared.last is not None:
                    raise Busy(f"cache {name} is being deleted")
                # From here on nobody waits for this lock: the kernel holds one that the answer waits for.
                shared.last, mine = last, True
                for each in shared.areas.values():
                    if cache_place(each).session is None:  # else somebody came, and the store says so
                        show_last(each, last)
                await close_view(self._sessions.showing.take_view(shared))
            await self._store.caches.delete(name, arrive)
        except BaseException:
            if mine or shared.last is None:  # else it is another's to say
                self._restore(shared, ended)
            raise
        self._sessions.gone(shared)

    def _restore(self, shared: SharedCache, ended: list[Area]) -> None:
        """A cache is not deleted after all. Of what it had in the sessions that were ended for that, the kernel still
        knows."""
        shared.last = None
        for each in shared.areas.values():
            place = cache_place(each)
            if place.session is None:
                place.discarded, each.last = False, None
                if each in ended:
                    inodes = [each.root.ino, *(node.ino for node in self._table.beneath(each))]
                    self._sessions.tell_soon(each, inodes)

    async def _last(self, area: Area) -> os.stat_result:
        """The root of an area that is being removed."""
        if area.last is None and area.view is None:
            await self._sessions.ready(area)
        return area.last or os.fstat(area.fd)

    async def _end_unheld(self, shared: SharedCache, arrive: Arrive, ended: list[Area]) -> None:
        """Close a cache's sessions, which are to be thrown away, and add them to `ended`. Raises Busy when somebody
        holds one."""
        looked_at = self._open(shared)
        for area in looked_at:
            with trio.move_on_after(patience(arrive)):
                await area.until(lambda area=area: area.opens <= area.guests)  # type: ignore[misc]
            _not_open(area)
            held = await self._sessions.holders(area)
            if held:
                raise Busy(f"cache {shared.name} has a session that is held by {', '.join(held)}")
        # Somebody may have come meanwhile; and before the first is thrown away it must be known that all can be.
        mine = self._open(shared)
        if shared.opening or not set(mine) <= set(looked_at):
            raise Busy(f"cache {shared.name} has a session that was opened just now")
        for area in mine:
            _not_open(area)
        for area in mine:
            await self._end(area)
            ended.append(area)

    def _open(self, shared: SharedCache) -> list[Area]:
        return [each for each in self._sessions.open_areas if cache_place(each).cache is shared]

    async def _end(self, area: Area) -> None:
        """Throw a session away that nobody holds. Raises Busy when somebody has come into it: it goes on then."""
        place = cache_place(area)
        show_last(area, os.fstat(area.fd))
        try:
            await self._sessions.close(area, force=area.opens == area.guests)
        finally:
            if place.session is not None and area.view is not None:
                place.discarded, area.last = False, None
        if place.session is not None:
            raise Busy(f"cache {place.name.cache} has a session that somebody has come into")


def _not_open(area: Area) -> None:
    """Raises Busy while files of a session are open, but for those of who may only read there."""
    opens = area.opens - area.guests
    if opens > 0:
        raise Busy(f"cache {cache_place(area).name.cache} has a session that is held by {opens} open files")

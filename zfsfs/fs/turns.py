"""Locked caches: one session at a time, and whose it is.

A session belongs to the process that opened it, to all that come of that, and to all that hold it already: with their
working directory, an open file, or a mount of it in a mount namespace of their own (so a container is one). Whoever
else opens something in the cache waits, until it has closed. That must be an open of what is there: who makes or
removes something waits with a directory of the kernel's locked, and would stop those whose turn it is; so he waits
only for what nobody holds any more, to be released: one command after another may change something. For the same
reason nobody waits who holds another session of the same cache (EDEADLK).

Guarantee: who waits stops nobody, and can be interrupted.
"""

from __future__ import annotations

import errno
import math
from collections.abc import Awaitable, Callable, Collection

import trio

from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller, error
from zfsfs.fs.places import CachePlace, SharedCache, cache_place
from zfsfs.fs.quiet import DRAIN
from zfsfs.native.processes import Process, lineage
from zfsfs.threads import in_thread

Holds = Callable[[Area, Collection[int]], Awaitable[bool]]


class Turns:
    """See the module. `holds` tells whether one of some processes holds an area."""

    def __init__(self, open_areas: set[Area], holds: Holds) -> None:
        self._open = open_areas
        self._holds = holds

    @staticmethod
    def has(place: CachePlace, pid: int) -> bool:
        """Whether it is known already that a process may come into the session."""
        return place.usable and Process.of(pid) in place.openers

    async def take(self, area: Area, caller: Caller, *, opens: bool) -> None:
        """Return when a process may come into a locked cache's area, or open a session there, or the cache is locked
        no more. Raises EBUSY: it would have to wait and can't, for it doesn't just open something; EINTR, EDEADLK."""
        place = cache_place(area)
        family: list[Process] = []
        while place.locked:
            ended = place.cache.ended  # it tells of what closes while we look, too
            others = [each for each in self._open if cache_place(each).cache is place.cache and each is not area]
            mine = place.session is not None
            if not others and (not mine or self.has(place, caller.pid)):
                return
            if not family:
                family = await in_thread(lineage, caller.pid)
            if mine and not others and await self._comes_of(area, place, family):
                continue
            if not opens and any(each.keepers or cache_place(each).holders for each in others or [area]):
                raise error(errno.EBUSY)
            for other in others if opens else ():
                if await self._keeps(other, family):
                    raise error(errno.EDEADLK)
            with trio.move_on_after(math.inf if opens else DRAIN) as patience:
                await self._wait(place.cache, ended, caller)
            if patience.cancelled_caught:
                raise error(errno.EBUSY)

    async def _comes_of(self, area: Area, place: CachePlace, family: list[Process]) -> bool:
        session = place.session
        if not family or not await self._belongs(area, family):
            return False
        if place.session is session:
            place.openers.add(family[0])
        return True

    async def _keeps(self, area: Area, family: list[Process]) -> bool:
        """Whether a session is held, and not only was opened, by one of these; we hold what builders use."""
        return await (self._belongs if cache_place(area).uses else self._held)(area, family)

    async def _belongs(self, area: Area, family: list[Process]) -> bool:
        return not cache_place(area).openers.isdisjoint(family) or await self._held(area, family)

    async def _held(self, area: Area, family: list[Process]) -> bool:
        return bool(family) and await self._holds(area, [each.pid for each in family])

    async def _wait(self, shared: SharedCache, ended: trio.Event, caller: Caller) -> None:
        """Until a session of the cache has closed, or its rules are others."""
        shared.waiters += 1
        try:
            for area in shared.areas.values():
                area.stir()  # it need not linger
            with caller.interruptible():  # a builder is ended by cancellation
                await ended.wait()
        finally:
            shared.waiters -= 1


def open_by(place: CachePlace, pid: int) -> None:
    """A session was opened by a process: it is its own, and its descendants'."""
    place.openers = {each for each in (Process.of(pid),) if each is not None}

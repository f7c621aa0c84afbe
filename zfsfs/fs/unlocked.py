"""Verbs on the groups' own directories, out of the kernel's locks.

The kernel holds a directory's lock until a mkdir or rename in it is answered, and a lock of the whole mount for a
rename from one directory to another. So one build after another would wait for a transaction group of its own.
Therefore the first request of a verb is answered with ESTALE as soon as the verb has begun. The kernel then gives up
its locks, walks the path anew, asking for each name of it, and sends the request again (`retry_estale` and
LOOKUP_REVAL in fs/namei.c, since Linux 3.8). What it asks for while it has no lock, the group's name, is answered
when the verb has nothing more to wait for; the second request, with what came of it.

Guarantees
- A verb that has begun is carried out, once, whether or not its second request comes. What the tree shows changes
  when that comes: until then the kernel looks for what was there before, with its locks held.
- What fails is tried anew by the second request, with the locks held: by then the kernel may have ended the call by
  itself, and the request be another call's.
- Nobody waits for what can't come: who asks a second time without having asked for the group (with a working
  directory in it, or where the group alone is mounted) waits as if nothing of this were here.

Assumes: a request tells its thread, which is in one system call at a time. That isn't so of who can't be seen from
here (number 0), and threads of the kernel (nfsd) don't ask again: those wait with the locks held.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio

from zfsfs.fs.caller import Caller
from zfsfs.fs.nodes import stale
from zfsfs.native.processes import runs
from zfsfs.store.arriving import Arrive, at_once
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks whether the caller is still there, and for which it is waited for in all.
PAUSE = 1.0
PATIENCE = 60.0

#: A name in a directory, by the directory's number.
Name = tuple[int, bytes]


@dataclass(eq=False, slots=True)
class _Verb:
    what: str
    names: tuple[Name, ...]
    caller: Caller
    ready: trio.Event = field(default_factory=trio.Event)  # there is nothing more to wait for
    again: trio.Event = field(default_factory=trio.Event)  # it was asked for a second time, or will not be
    over: trio.Event = field(default_factory=trio.Event)
    given_up: bool = False
    failed: bool = False
    result: Any = None

    def is_same(self, what: str, names: tuple[Name, ...], caller: Caller) -> bool:
        """Whether this is what is asked for."""
        return (self.what, self.names, self.caller.uid) == (what, names, caller.uid)


class Unlocked:
    """See the module. `look_again` has the kernel look up names again that it may know wrongly; it blocks."""

    def __init__(self, look_again: Callable[[tuple[Name, ...]], None]) -> None:
        self._look_again = look_again
        self._by_thread: dict[int, _Verb] = {}  # those that are to be asked for a second time
        self._under_way: list[_Verb] = []
        self._closing = False
        self.nursery: trio.Nursery

    async def run(
        self, what: str, names: tuple[Name, ...], caller: Caller, verb: Callable[[Arrive], Awaitable[T]]
    ) -> T:
        """What the verb returns or raises; ESTALE when its request is to come again. `what` and `names` tell it from
        the caller's others."""
        mine = self._by_thread.pop(caller.pid, None)
        if mine is not None:
            mine.given_up = not mine.is_same(what, names, caller)
            mine.again.set()
            if not mine.given_up:
                await mine.over.wait()
                if mine.failed:
                    return await verb(at_once)
                result: T = mine.result
                return result
        if self._closing or caller.pid <= 0 or not runs(caller.pid):
            return await verb(at_once)
        self._drop_old()
        mine = _Verb(what, names, caller)
        earlier = [each for each in self._under_way if not set(each.names).isdisjoint(names)]
        self._by_thread[caller.pid] = mine
        self._under_way.append(mine)
        self.nursery.start_soon(self._carry_out, mine, earlier, verb)
        raise stale()

    def _drop_old(self) -> None:
        """Forget of what threads that are gone failed to do."""
        for pid, each in list(self._by_thread.items()):
            if each.over.is_set() and not runs(pid):
                del self._by_thread[pid]

    async def looked_up(self, pid: int) -> None:
        """A thread looks up a group: wait for its verb, if it has begun one."""
        mine = self._by_thread.get(pid)
        if mine is not None:
            await mine.ready.wait()

    async def _carry_out(
        self, mine: _Verb, earlier: list[_Verb], verb: Callable[[Arrive], Awaitable[object]]
    ) -> None:
        try:
            if earlier:
                await self._wait_for(earlier, mine)
            try:
                mine.result = await verb(lambda: self._arrive(mine))
            except Exception as failure:
                log.debug("%s of %s: %s", mine.what, mine.names, failure)
                mine.failed = True
                mine.ready.set()
        finally:
            self._under_way.remove(mine)
            mine.over.set()
        if mine.given_up and not mine.failed and not self._closing:
            log.info("%s of %s: whoever asked for it has gone", mine.what, mine.names)
            # In a thread: the kernel may hold the directory's lock for a request to us.
            await in_thread(self._look_again, mine.names, abandon_on_cancel=True)

    async def _wait_for(self, earlier: list[_Verb], mine: _Verb) -> None:
        """Let verbs on the same names go first; but not when the kernel holds the lock that they need to end."""
        async with trio.open_nursery() as nursery:

            async def asked_again() -> None:
                await mine.again.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(asked_again)
            for each in earlier:
                await each.over.wait()
            nursery.cancel_scope.cancel()

    async def _arrive(self, mine: _Verb) -> None:
        mine.ready.set()
        pid, end = mine.caller.pid, trio.current_time() + PATIENCE
        while not mine.again.is_set() and trio.current_time() < end and runs(pid):
            with trio.move_on_after(PAUSE):
                await mine.again.wait()
        if not mine.again.is_set():
            mine.given_up = True
            mine.again.set()
            if self._by_thread.get(pid) is mine:
                del self._by_thread[pid]

    async def close(self) -> None:
        """No request comes any more: bring to its end what has begun."""
        self._closing = True
        for each in self._by_thread.values():
            each.given_up = True
            each.again.set()
        self._by_thread.clear()
        while self._under_way:
            await self._under_way[0].over.wait()

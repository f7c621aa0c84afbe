"""Verbs on the groups' own directories, out of the kernel's locks.

The kernel holds a directory's lock until a mkdir or rename in it is answered, and a lock of the whole mount for a
rename from one directory to another. So one build after another would wait for a transaction group of its own.
Therefore the first request of a verb is answered with ESTALE as soon as the verb has begun. The kernel then gives up
its locks, walks the path anew, asking for each name of it, and sends the request again (`retry_estale` and
LOOKUP_REVAL in fs/namei.c, since Linux 3.8). What it asks for while it has no lock, the group's name (of two groups,
the second one's), is answered when the verb has nothing more to wait for; the second request, with what came of it.

Guarantees
- A verb that has begun is carried out, once, whether or not its second request comes. What the tree shows changes
  when that comes: until then the kernel looks for what was there before, with its locks held.
- What fails is tried anew by the second request, with the locks held: by then the kernel may have ended the call by
  itself, and the request be another call's. What was waited for before is not waited for again (`again`).
- What is known to be refused is refused by the first request; but who wants what another is making waits for that,
  and then finds it.
- Nobody waits for what can't come: who asks a second time without having asked for the group (with a working
  directory in it, or where the group alone is mounted) waits as if nothing of this were here.

Assumes: a request tells its thread, which is in one system call at a time. That isn't so of who can't be seen from
here (number 0), and threads of the kernel (nfsd) don't ask again: those wait with the locks held.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, TypeVar

import trio

from zfsfs.fs.caller import Caller
from zfsfs.fs.nodes import stale
from zfsfs.native.processes import runs
from zfsfs.store.arriving import Arrive, again, at_once
from zfsfs.threads import at_last

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds between two looks whether the caller is still there, and for which it is waited for in all.
PAUSE = 1.0
PATIENCE = 60.0
#: How many that failed are looked at when one is begun, whether their callers are there.
FEW = 2

#: A name in a directory, by the directory's number.
Name = tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class Asked(Generic[T]):
    """A verb on names in groups, which together with who asks tell it from others; `refused` raises where it is known
    that the verb would."""

    what: str
    names: tuple[Name, ...]
    caller: Caller
    verb: Callable[[Arrive], Awaitable[T]]
    refused: Callable[[], object] = lambda: None

    def is_same(self, other: Asked[Any]) -> bool:
        """Whether the other is the same, asked for again."""
        mine, others = (self.what, self.names, self.caller.uid), (other.what, other.names, other.caller.uid)
        return mine == others


@dataclass(eq=False, slots=True)
class _Verb:
    asked: Asked[Any]
    ready: trio.Event = field(default_factory=trio.Event)  # there is nothing more to wait for
    again: trio.Event = field(default_factory=trio.Event)  # it was asked for a second time, or will not be
    over: trio.Event = field(default_factory=trio.Event)
    given_up: bool = False
    failed: bool = False
    result: Any = None


class Unlocked:
    """See the module. `look_again` has the kernel look up names again that it may know wrongly; it blocks."""

    def __init__(self, look_again: Callable[[tuple[Name, ...]], None]) -> None:
        self._look_again = look_again
        self._by_thread: dict[int, _Verb] = {}  # those that are to be asked for a second time
        self._under_way: list[_Verb] = []
        self._closing = False
        self.nursery: trio.Nursery

    def begin(self, asked: Asked[Any]) -> bool:
        """Begin a verb, where this is the first of two requests: its answer is ESTALE. Raises what `refused` does."""
        pid = asked.caller.pid
        if pid in self._by_thread:
            if self._by_thread[pid].asked.is_same(asked):
                return False
            # Another call: the thread does not come back for the first.
            other = self._by_thread.pop(pid)
            other.given_up = True
            other.again.set()
        if self._closing or pid <= 0 or not runs(pid):
            return False
        earlier = [each for each in self._under_way if not set(each.asked.names).isdisjoint(asked.names)]
        if not earlier:
            asked.refused()
        self._drop_old()
        mine = self._by_thread[pid] = _Verb(asked)
        self._under_way.append(mine)
        self.nursery.start_soon(self._carry_out, mine, earlier)
        return True

    async def run(self, asked: Asked[T]) -> T:
        """What the verb returns or raises; ESTALE when its request is to come again."""
        if self.begin(asked):
            raise stale()
        arrive = at_once
        mine = self._by_thread.pop(asked.caller.pid, None)
        if mine is not None:
            mine.again.set()
            await mine.over.wait()
            if not mine.failed:
                result: T = mine.result
                return result
            arrive = again
        return await asked.verb(arrive)

    def _drop_old(self) -> None:
        """Forget of what threads failed to do that are gone: a few, to take no longer the more there are."""
        for pid, each in list(islice(self._by_thread.items(), FEW)):
            del self._by_thread[pid]
            if not each.over.is_set() or runs(pid):
                self._by_thread[pid] = each  # as the last one

    def waits(self, pid: int, group: int) -> bool:
        """Whether `looked_up` has something to wait for."""
        mine = self._by_thread.get(pid)
        return mine is not None and not mine.ready.is_set() and group == mine.asked.names[-1][0]

    async def looked_up(self, pid: int, group: int) -> None:
        """A thread looks up a group: wait for its verb, if it has begun one and looks up no other group after it."""
        if self.waits(pid, group):
            await self._by_thread[pid].ready.wait()

    async def _carry_out(self, mine: _Verb, earlier: list[_Verb]) -> None:
        try:
            if earlier:
                await self._wait_for(earlier, mine)
            try:
                mine.result = await mine.asked.verb(lambda: self._arrive(mine))
            except Exception as failure:
                log.debug("%s of %s: %s", mine.asked.what, mine.asked.names, failure)
                mine.failed = True
        finally:
            mine.ready.set()
            self._under_way.remove(mine)
            mine.over.set()
        if mine.given_up and not mine.failed and not self._closing:
            log.info("%s of %s: whoever asked for it has gone", mine.asked.what, mine.asked.names)
            # In a thread: the kernel may hold the directory's lock for a request to us.
            await at_last(self._look_again, mine.asked.names)

    async def _wait_for(self, earlier: list[_Verb], mine: _Verb) -> None:
        """Let verbs on the same names go first; but not when the kernel holds the lock that they need to end."""
        async with trio.open_nursery() as nursery:

            async def asked_again() -> None:
                await mine.again.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(asked_again)
            for each in earlier:
                if not each.over.is_set():
                    await each.over.wait()
            nursery.cancel_scope.cancel()

    async def _arrive(self, mine: _Verb) -> None:
        mine.ready.set()
        pid, end = mine.asked.caller.pid, trio.current_time() + PATIENCE
        waiting = True
        while waiting:
            with trio.move_on_after(PAUSE):
                await mine.again.wait()
            waiting = not mine.again.is_set() and trio.current_time() < end and runs(pid)
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

"""Waiting for one's turn in a locked cache."""

from __future__ import annotations

import errno
import os

import trio
import trio.testing
from errnos import failing

from zfsfs.fs.caller import NOBODY, Caller, Interruption
from zfsfs.fs.places import CachePlace, SharedCache
from zfsfs.fs.turns import Turns
from zfsfs.names import CacheName, SessionName


class Area:
    """What `Turns` needs of an area of a locked cache."""

    def __init__(self, shared: SharedCache, label: bytes) -> None:
        self.place = CachePlace(SessionName(shared.name, label), shared, locked=True)
        shared.areas[label] = self

    def stir(self) -> None:
        pass


async def nobody_holds(area: Area, pids: list[int]) -> bool:
    return False


async def waits_for(pid: int) -> None:
    """A caller waits for an hour, and then it is its turn."""
    shared = SharedCache(CacheName(b"c"))
    other, mine = Area(shared, b"other"), Area(shared, b"mine")
    opened = {other}
    turns = Turns(opened, nobody_holds)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: turns.take(mine, Caller(0, 0, pid), opens=True))
        while not shared.waiters:
            await trio.testing.wait_all_tasks_blocked(0.01)  # whose family it is of is looked at in a thread
        await trio.sleep(3600)
        assert shared.waiters == 1
        opened.clear()
        shared.look_again()


async def test_who_is_interrupted_waits_no_longer():
    shared = SharedCache(CacheName(b"c"))
    other, mine = Area(shared, b"other"), Area(shared, b"mine")
    turns, caller = Turns({other}, nobody_holds), Caller(0, 0, 0, interruption=Interruption())

    async def interrupt() -> None:
        while not shared.waiters:
            await trio.testing.wait_all_tasks_blocked(0.01)
        caller.interruption.come()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt)
        with failing(errno.EINTR):
            await turns.take(mine, caller, opens=True)
    assert shared.waiters == 0


async def test_a_session_that_closes_while_its_holders_are_looked_for_is_waited_for_no_more():
    shared = SharedCache(CacheName(b"c"))
    opened, mine = {Area(shared, b"other")}, Area(shared, b"mine")

    async def it_closes(area: Area, pids: list[int]) -> bool:
        opened.clear()
        shared.look_again()
        return False

    with trio.fail_after(10):
        await Turns(opened, it_closes).take(mine, Caller(0, 0, os.getpid()), opens=True)


async def test_a_builder_that_has_no_process_yet_waits_as_long_as_it_takes(autojump_clock):
    await waits_for(NOBODY)


async def test_who_is_not_to_be_seen_from_here_waits_as_long_as_it_takes(autojump_clock):
    await waits_for(0)

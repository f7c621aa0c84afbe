"""Who waits for a build's end: how they are told, and how they are let go."""

from __future__ import annotations

import errno
import json
import os
from types import SimpleNamespace

import pytest
import trio
from errnos import failing

from zfsfs.errors import Refused
from zfsfs.fs.caller import Caller, Interruption
from zfsfs.fs.control import Asker
from zfsfs.fs.users import WAIT, Users
from zfsfs.fs.waiting import Ends, WaitFolder
from zfsfs.names import BuildId
from zfsfs.store import EventLog

ONE = BuildId(b"one")


class World:
    """A store in which `one` is built."""

    def __init__(self) -> None:
        self.running = {ONE: None}
        builds = SimpleNamespace(running=lambda: self.running, result=lambda ident: None, results=list)
        self.events = EventLog(lambda: 7.0)
        users = Users({WAIT: 200}, lambda user, text: None)
        self.ends = Ends(SimpleNamespace(builds=builds, events=self.events), users)

    async def open(self, flags: int = os.O_RDONLY, uid: int = 0):
        return await WaitFolder(self.ends).find(b"one").open(Asker(uid, flags))

    def end(self) -> None:
        self.running = {}
        self.events.append("discarded", "one", "")


@pytest.fixture
def world():
    return World()


async def test_all_readers_are_told_how_it_has_ended_and_one_users_are_not_all_there_may_be(world):
    said = []

    async def read(uid: int) -> None:
        file = await world.open(uid=uid)
        said.append(json.loads(await file.read(0, 4096))["outcome"])
        file.close()

    async with trio.open_nursery() as nursery:
        for uid in [1] * 200 + [2, 0]:
            nursery.start_soon(read, uid)
        await trio.testing.wait_all_tasks_blocked()
        assert said == []
        with pytest.raises(Refused) as refusal:
            await read(1)
        assert refusal.value.errno == errno.EAGAIN
        world.end()
    assert said == ["discarded"] * 202


async def test_who_is_interrupted_is_let_go_alone(world):
    readers = [Caller(0, 0, number, interruption=Interruption()) for number in range(3)]
    file, ended = await world.open(), []

    async def read(reader: Caller) -> None:
        try:
            with reader.interruptible():
                await file.read(0, 4096)
            ended.append((reader.pid, 0))
        except OSError as failure:
            ended.append((reader.pid, failure.errno))

    async with trio.open_nursery() as nursery:
        readers[2].interruption.come()  # before it waits
        for each in readers:
            nursery.start_soon(read, each)
        await trio.testing.wait_all_tasks_blocked()
        readers[1].interruption.come()
        await trio.testing.wait_all_tasks_blocked()
        assert ended == [(2, errno.EINTR), (1, errno.EINTR)]
        world.end()
    assert ended[2:] == [(0, 0)]
    readers[0].interruption.come()  # too late


async def test_however_often_a_file_is_polled_one_poll_is_told(world):
    file, told = await world.open(os.O_RDONLY | os.O_NONBLOCK), []
    with failing(errno.EAGAIN):
        await file.read(0, 1)
    for number in range(100):
        assert not file.ready(lambda number=number: told.append(number))
        assert not file.ready(None)
    world.end()
    world.events.append("discarded", "one", "")
    assert told == [99]
    assert file.ready(None)
    file.close()

"""A request for what may not be in memory: a worker looks first, for a moment or for as long as it takes."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from beneath import Beneath

from zfsfs import syscalls
from zfsfs.fs import lane as lanes
from zfsfs.fs import wire
from zfsfs.fs.area import Area
from zfsfs.fs.asked import Context
from zfsfs.fs.control import FIRST_INODE
from zfsfs.fs.lane import Lane
from zfsfs.fs.nodes import Node, NodeTable
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import ResultPlace
from zfsfs.fs.users import Users
from zfsfs.fs.workers import Workers
from zfsfs.names import BuildId

NAME = b"name\0"


class Waiting:
    """A directory on a disk, of which nothing is in memory."""

    def __init__(self, folder: Path) -> None:
        self.workers = Workers(1)
        files = Passthrough(NodeTable(FIRST_INODE), self.workers, Users({}, lambda *_: None))
        self.area = Area(files.table, ResultPlace(BuildId(b"x")))
        self.area.attach(Beneath(folder))
        files.table.hold(self.area.root)
        self.lane = Lane(
            cast(Any, SimpleNamespace(table=files.table, stopped=False)),
            files,
            cast(Any, SimpleNamespace(node=self.node, looked_up=files.lookup)),
            lambda *_: None,
        )

    async def node(self, ino: int) -> Node:
        return self.area.root

    def ask(self, ctx: Context) -> bytes | None:
        return self.lane.lookup(2, self.area.root.ino, ctx, memoryview(NAME))

    def close(self) -> None:
        self.workers.close()
        view = self.area.detach()
        assert view is not None
        view.close()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Finds the name once it is set; the kernel then has it in memory."""
    ready = threading.Event()
    stat = os.stat

    def slow(path: Any, **more: Any) -> os.stat_result:
        if path == NAME[:-1]:
            assert ready.wait(60)
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", slow)
    monkeypatch.setattr(syscalls, "is_cached", lambda *_: ready.is_set())
    return ready


@pytest.fixture
async def waiting(tmp_path: Path, disk: threading.Event) -> AsyncIterator[Waiting]:
    (tmp_path / "name").touch()
    made = Waiting(tmp_path)
    yield made
    disk.set()
    made.close()


async def test_what_a_worker_finds_in_a_moment_is_answered_at_once(
    waiting: Waiting, disk: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "PATIENCE", 60)
    ctx = Context(0, 0)
    assert waiting.ask(ctx) is None
    disk.set()
    assert waiting.lane.look_at_once(ctx)
    assert waiting.ask(ctx)
    assert (ctx.cold, ctx.look) == (None, None)


async def test_who_takes_longer_is_waited_for_and_not_asked_again(waiting: Waiting, disk: threading.Event) -> None:
    ctx = Context(0, 0)
    assert waiting.ask(ctx) is None
    assert not waiting.lane.look_at_once(ctx)
    looking = ctx.look
    assert looking is not None
    assert not waiting.lane.look_at_once(ctx)
    assert ctx.look is looking
    disk.set()
    await waiting.lane.prepare(wire.LOOKUP, waiting.area.root.ino, ctx, memoryview(NAME))
    assert waiting.ask(ctx)
    assert (ctx.cold, ctx.look, ctx.looked) == (None, None, ((waiting.area.root, NAME[:-1]),))


async def test_what_was_left_for_another_reason_is_not_looked_at(waiting: Waiting) -> None:
    ctx = Context(0, 0)
    assert not waiting.lane.look_at_once(ctx)
    assert ctx.look is None

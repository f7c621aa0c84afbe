"""How many of what nobody has open are looked into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from beneath import Beneath

from zfsfs.fs.area import Area
from zfsfs.fs.idle import Idle
from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.places import ResultPlace
from zfsfs.names import BuildId


class World:
    """Results a, b, c, …, two of which may be looked into."""

    def __init__(self, top: Path) -> None:
        self.table = NodeTable(64)
        self.top = top
        self.idle = Idle(self.let_go)
        self.idle.recent.most = 2
        self.areas = {name: Area(self.table, ResultPlace(BuildId(name.encode()))) for name in "abcd"}

    def let_go(self, area: Area) -> None:
        self.idle.drop(area)
        view = area.detach()
        assert view is not None
        view.close()

    def look(self, name: str) -> None:
        if self.areas[name].view is None:
            self.areas[name].attach(Beneath(self.top))
            self.idle.add(self.areas[name])

    def shown(self) -> str:
        return "".join(name for name, area in self.areas.items() if area.view is not None)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    for name in world.shown():
        world.let_go(world.areas[name])


def test_what_was_looked_into_first_goes_first_and_its_root_is_remembered(world: World) -> None:
    for name in "abc":
        world.look(name)
    assert world.shown() == "bc"
    last = world.areas["a"].last
    assert last is not None
    assert last.st_ino == world.top.stat().st_ino
    world.look("a")
    assert world.shown() == "ac"


def test_what_is_open_stays_and_what_was_goes_later(world: World) -> None:
    world.look("a")
    world.areas["a"].opened(writing=False)
    for name in "bc":
        world.look(name)
    assert world.shown() == "ac"
    for name in "bd":
        world.look(name)
        assert world.shown() == f"{''.join(sorted('a' + name))}"
    world.areas["a"].closed(writing=False)
    for name in "cb":
        world.look(name)
    assert world.shown() == "bc"


def test_all_that_are_open_stay(world: World) -> None:
    for name in "abc":
        world.look(name)
        world.areas[name].opened(writing=False)
    assert world.shown() == "abc"
    for name in "abc":
        world.areas[name].closed(writing=False)
    world.look("d")
    world.idle.drop(world.areas["d"])
    world.look("d")
    assert "d" in world.shown()


def test_what_can_be_written_again_stays(world: World) -> None:
    world.look("a")
    world.idle.drop(world.areas["a"])
    for name in "bcd":
        world.look(name)
    assert world.shown() == "acd"

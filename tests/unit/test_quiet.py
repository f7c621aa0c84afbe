"""What is waited for before an area ends or becomes something else."""

from __future__ import annotations

import pytest
import trio

from zfsfs.errors import Busy
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.places import ResultPlace
from zfsfs.fs.quiet import DRAIN, GONE, abandoned, not_native, not_written
from zfsfs.names import BuildId
from zfsfs.store.arriving import again, at_once


class Held:
    """Somebody who has an area natively, until it was looked at so often whether he still has."""

    def __init__(self, area: Area, looks: int) -> None:
        self.area = area
        self.looks = looks

    def names(self) -> list[str]:
        return ["a process"]

    def look(self) -> None:
        self.looks -= 1
        if not self.looks:
            self.area.held = None
            self.area.stir()


@pytest.fixture
def area() -> Area:
    return Area(NodeTable(64), ResultPlace(BuildId(b"x")))


async def test_who_was_killed_has_the_time_to_be_gone(autojump_clock, area: Area) -> None:
    area.held = Held(area, looks=6)
    start = trio.current_time()
    await abandoned(area)
    assert area.held is None
    assert trio.current_time() - start == pytest.approx(5 * DRAIN)
    await not_native(area)


async def test_who_does_not_go_is_named_in_the_end(autojump_clock, area: Area) -> None:
    area.held = Held(area, looks=1000)
    start = trio.current_time()
    await abandoned(area)
    assert trio.current_time() - start == pytest.approx(GONE)
    with pytest.raises(Busy, match="a process"):
        await not_native(area)


async def test_who_has_waited_is_refused_at_once(autojump_clock, area: Area) -> None:
    area.held = Held(area, looks=2)
    area.opened(writing=True)
    start = trio.current_time()
    with pytest.raises(Busy, match="a process"):
        await not_native(area, again)
    with pytest.raises(Busy, match="open for writing"):
        await not_written(area, "x can't be published", again)
    assert trio.current_time() == start
    with pytest.raises(Busy, match="open for writing"):
        await not_written(area, "x can't be published", at_once)
    assert trio.current_time() - start == pytest.approx(DRAIN)

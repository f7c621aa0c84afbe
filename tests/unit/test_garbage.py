"""What is unreachable in cycles is looked for while nobody asks for anything."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from zfsfs import garbage


class Ring:
    """Keeps itself alive."""

    def __init__(self) -> None:
        self.me = self


@pytest.fixture(autouse=True)
def put_off() -> Iterator[None]:
    threshold = gc.get_threshold()
    garbage.put_off()
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()


def old_ring() -> weakref.ref[Ring]:
    """A ring that has outlived what is looked for as ever, and is held by nothing else any more."""
    ring = Ring()
    for generation in (0, 1):
        gc.collect(generation)
    return weakref.ref(ring)


async def after_a_look(*, idle: bool, inodes: int) -> bool:
    """Whether a ring is still there."""
    ring = old_ring()
    with trio.move_on_after(garbage.PAUSE * 1.5):
        await garbage.collect_when_idle(lambda: idle, lambda: inodes)
    return ring() is not None


async def test_it_waits_until_nobody_asks_for_anything(autojump_clock):
    assert await after_a_look(idle=False, inodes=0)
    assert not await after_a_look(idle=True, inodes=0)


async def test_it_waits_while_it_would_take_long(autojump_clock):
    assert await after_a_look(idle=True, inodes=garbage.MOST)


def test_a_great_many_objects_start_nothing():
    ring = old_ring()
    kept = [Ring() for _ in range(100_000)]
    assert ring() is not None
    for each in kept:
        del each.me

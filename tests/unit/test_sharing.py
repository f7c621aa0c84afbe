"""Who wants to look while another looks shares the next look."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from zfsfs.fs.sharing import Shared


class Looking:
    """Each look ends when it is told to, with its number."""

    def __init__(self) -> None:
        self.ends: list[trio.Event] = []
        self.found: list[tuple[str, int]] = []
        self.shared = Shared(self.look)

    async def look(self) -> int:
        self.ends.append(trio.Event())
        number = len(self.ends)
        await self.ends[-1].wait()
        return number

    async def ask(self, who: str) -> None:
        self.found.append((who, await self.shared.result()))


async def test_who_asks_while_one_looks_gets_the_next_look_and_shares_it() -> None:
    looking = Looking()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(looking.ask, "first")
        await wait_all_tasks_blocked()
        for who in ("second", "third"):
            nursery.start_soon(looking.ask, who)
        await wait_all_tasks_blocked()
        assert len(looking.ends) == 1
        looking.ends[0].set()
        await wait_all_tasks_blocked()
        nursery.start_soon(looking.ask, "fourth")
        await wait_all_tasks_blocked()
        assert len(looking.ends) == 2
        looking.ends[1].set()
        await wait_all_tasks_blocked()
        looking.ends[2].set()
    assert looking.found[0] == ("first", 1)
    assert sorted(looking.found[1:]) == [("fourth", 3), ("second", 2), ("third", 2)]


async def test_when_who_looks_is_cancelled_the_others_look() -> None:
    looking = Looking()
    cancelled = trio.CancelScope()

    async def impatient() -> None:
        with cancelled:
            await looking.ask("impatient")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(looking.ask, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(impatient)
        await wait_all_tasks_blocked()
        nursery.start_soon(looking.ask, "patient")
        await wait_all_tasks_blocked()
        looking.ends[0].set()
        await wait_all_tasks_blocked()
        cancelled.cancel()
        await wait_all_tasks_blocked()
        looking.ends[2].set()
    assert looking.found == [("first", 1), ("patient", 3)]


async def test_a_look_that_fails_fails_for_who_looks() -> None:
    async def look() -> int:
        raise OSError(5, "no luck")

    with pytest.raises(OSError, match="no luck"):
        await Shared(look).result()

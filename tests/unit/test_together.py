"""What is asked for at the same time is carried out once."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from zfsfs.errors import Busy, DriverError, ZfsfsError
from zfsfs.store.together import MOST, Together


class Storage:
    """A verb that says what it was asked for together, and waits until told."""

    def __init__(self, *, waits: bool = False) -> None:
        self.done: list[str] = []
        self.go = threading.Event()
        self.began = threading.Semaphore(0)
        if not waits:
            self.go.set()

    def verb(self, subjects: Sequence[str]) -> Sequence[ZfsfsError | None]:
        self.done.append("".join(sorted(subjects)))
        self.began.release()
        self.go.wait()
        return [Busy(f"{each} is in use") if each.isupper() else None for each in subjects]


async def all_of(together: Together[str], subjects: str) -> None:
    async with trio.open_nursery() as nursery:
        for each in subjects:
            nursery.start_soon(together.carry_out, each)


async def test_of_who_asks_in_one_pass_the_first_goes_ahead_and_the_others_are_carried_out_together() -> None:
    storage = Storage()
    await all_of(Together(storage.verb), "abcd")
    assert sorted(map(len, storage.done)) == [1, 3]


async def test_each_gets_what_became_of_its_own() -> None:
    together = Together(Storage().verb)
    raised = []

    async def ask(subject: str) -> None:
        try:
            await together.carry_out(subject)
        except Busy as failure:
            raised.append(str(failure))

    async with trio.open_nursery() as nursery:
        for each in "aBcD":
            nursery.start_soon(ask, each)
    assert sorted(raised) == ["B is in use", "D is in use"]


async def test_who_comes_later_is_gathered_while_enough_is_under_way() -> None:
    storage = Storage(waits=True)
    together = Together(storage.verb)
    async with trio.open_nursery() as nursery:
        for number in range(MOST):
            nursery.start_soon(together.carry_out, str(number))
            await trio.to_thread.run_sync(storage.began.acquire)
        for each in "xyz":
            nursery.start_soon(together.carry_out, each)
            await wait_all_tasks_blocked()
        assert storage.done == [str(number) for number in range(MOST)]
        storage.go.set()
    assert storage.done[MOST:] == ["xyz"]


async def test_it_is_carried_out_although_who_asked_is_cancelled() -> None:
    storage = Storage()
    with trio.CancelScope() as scope:
        scope.cancel()
        await Together(storage.verb).carry_out("a")
    assert storage.done == ["a"]


async def test_what_fails_as_a_whole_fails_for_each() -> None:
    def broken(subjects: Sequence[str]) -> Sequence[ZfsfsError | None]:
        raise DriverError("the pool has gone")

    together = Together(broken)
    for _ in range(2):
        with pytest.raises(DriverError, match="gone"):
            await together.carry_out("a")

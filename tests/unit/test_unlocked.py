"""Verbs that the kernel asks for twice, so that it need not hold a lock meanwhile. Here `Thread` is the kernel."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from zfsfs.errors import Busy
from zfsfs.fs.caller import Caller
from zfsfs.fs.unlocked import Asked, Name, Unlocked
from zfsfs.native.processes import command_of
from zfsfs.store.arriving import Arrive, again

BUILDS, RESULTS = 2, 3


class World:
    """What was asked of whom, in order. A verb waits on its `disk`."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.disks: dict[bytes, trio.Event] = {}
        self.unlocked = Unlocked(lambda names: self.said.append(f"kernel forgets {names}"))

    def disk(self, name: bytes) -> trio.Event:
        return self.disks.setdefault(name, trio.Event())

    def verb(self, name: bytes, failure: Exception | None = None) -> Callable[[Arrive], Awaitable[bytes]]:
        async def carry_out(arrive: Arrive) -> bytes:
            self.said.append(f"{name.decode()} begins")
            await self.disk(name).wait()
            if failure is not None:
                raise failure
            await arrive()
            self.said.append(f"{name.decode()} shows")
            return name

        return carry_out


class Thread:
    """One thread's calls, as the kernel makes requests of them."""

    def __init__(self, world: World, pid: int) -> None:
        self.world, self.caller = world, Caller(0, 0, pid)

    async def request(self, name: bytes, failure: Exception | None = None, what: str = "mkdir") -> object:
        names: tuple[Name, ...] = ((BUILDS, name),)
        return await self.world.unlocked.run(Asked(what, names, self.caller, self.world.verb(name, failure)))

    async def mkdir(self, name: bytes, failure: Exception | None = None, *, in_group: bool = False) -> None:
        """The system call. In the group itself there is nothing to look up."""
        with pytest.raises(OSError, match="Stale"):
            await self.request(name, failure)
        if not in_group:
            await self.world.unlocked.looked_up(self.caller.pid, BUILDS)
            self.world.said.append(f"{name.decode()} is asked for again")
        try:
            assert await self.request(name, failure) == name
            self.world.said.append(f"{name.decode()} is there")
        except Busy as error:
            self.world.said.append(f"{name.decode()}: {error}")


async def goes_on(nursery: trio.Nursery, call: Callable[[], Awaitable[object]]) -> None:
    """The call begins, and goes as far as it can."""
    nursery.start_soon(call)
    await wait_all_tasks_blocked()


@asynccontextmanager
async def world() -> AsyncIterator[tuple[World, trio.Nursery]]:
    made = World()
    async with trio.open_nursery() as nursery:
        made.unlocked.nursery = nursery
        yield made, nursery


@contextmanager
def threads(count: int) -> Iterator[list[int]]:
    """Numbers of threads that are there."""
    ended = threading.Event()
    made = [threading.Thread(target=ended.wait) for _ in range(count)]
    for thread in made:
        thread.start()
    yield [thread.native_id or 0 for thread in made]
    ended.set()
    for thread in made:
        thread.join()


async def test_verbs_wait_for_the_disk_side_by_side_and_show_when_asked_for_again() -> None:
    with threads(2) as (one, two):
        async with world() as (made, nursery):
            await goes_on(nursery, partial(Thread(made, one).mkdir, b"a"))
            await goes_on(nursery, partial(Thread(made, two).mkdir, b"b"))
            assert made.said == ["a begins", "b begins"]
            made.disk(b"b").set()
            await wait_all_tasks_blocked()
            made.disk(b"a").set()
    b, a = [[f"{name} is asked for again", f"{name} shows", f"{name} is there"] for name in "ba"]
    assert made.said == ["a begins", "b begins", *b, *a]


async def test_who_looks_nothing_up_waits_with_the_lock() -> None:
    with threads(1) as (one,):
        async with world() as (made, nursery):
            await goes_on(nursery, partial(Thread(made, one).mkdir, b"a", in_group=True))
            assert made.said == ["a begins"]
            made.disk(b"a").set()
    assert made.said == ["a begins", "a shows", "a is there"]


async def test_who_has_nothing_to_wait_for_is_not_waited_for() -> None:
    async def at_once(arrive: Arrive) -> None:
        made.said.append("done")

    with threads(1) as (one,):
        async with world() as (made, _):
            asked = Asked("mkdir", ((BUILDS, b"a"),), Caller(0, 0, one), at_once)
            assert made.unlocked.begin(asked)
            await made.unlocked.looked_up(one, BUILDS)
            await made.unlocked.run(asked)
    assert made.said == ["done"]


async def test_of_two_groups_the_one_that_is_looked_up_last_is_waited_at() -> None:
    with threads(1) as (one,):
        async with world() as (made, _):
            names = (BUILDS, b"a"), (RESULTS, b"a")
            assert made.unlocked.begin(Asked("rename", names, Caller(0, 0, one), made.verb(b"a")))
            await made.unlocked.looked_up(one, BUILDS)
            assert made.unlocked.waits(one, RESULTS)
            made.disk(b"a").set()
            await made.unlocked.looked_up(one, RESULTS)
            await made.unlocked.run(Asked("rename", names, Caller(0, 0, one), made.verb(b"a")))
    assert made.said == ["a begins", "a shows"]


async def test_what_fails_is_tried_anew_when_asked_for_again() -> None:
    with threads(1) as (one,):
        async with world() as (made, nursery):
            made.disk(b"a").set()
            nursery.start_soon(Thread(made, one).mkdir, b"a", Busy("it is in use"))
    assert made.said == ["a begins", "a is asked for again", "a begins", "a: it is in use"]


async def test_what_is_tried_anew_waits_for_nothing_again() -> None:
    tried: list[Arrive] = []

    async def verb(arrive: Arrive) -> None:
        tried.append(arrive)
        raise Busy("it is in use")

    with threads(1) as (one,):
        async with world() as (made, _):
            asked = Asked("mkdir", ((BUILDS, b"a"),), Caller(0, 0, one), verb)
            assert made.unlocked.begin(asked)
            with pytest.raises(Busy):
                await made.unlocked.run(asked)
    assert tried[0] is not again
    assert tried[1:] == [again]


async def test_nobody_waits_for_who_failed_and_does_not_come_again() -> None:
    with threads(2) as (one, two):
        async with world() as (made, _):
            made.disk(b"a").set()
            with pytest.raises(OSError, match="Stale"):
                await Thread(made, one).request(b"a", Busy("it is in use"))
            await wait_all_tasks_blocked()
            await Thread(made, two).mkdir(b"a")
            await Thread(made, one).request(b"a")  # another call, later
    assert made.said.count("a shows") == 2


@pytest.mark.parametrize("why", ["kernel thread", "not to be seen", "closing"])
async def test_who_would_not_ask_again_is_not_made_to(why: str) -> None:
    async with world() as (made, _):
        made.disk(b"a").set()
        if why == "closing":
            await made.unlocked.close()
        pid = {"kernel thread": 2, "not to be seen": 0}.get(why, os.getpid())
        if why == "kernel thread" and command_of(pid) != "kthreadd":
            pytest.skip("there are no kernel threads in this namespace")
        assert await Thread(made, pid).request(b"a") == b"a"
    assert made.said == ["a begins", "a shows"]


async def test_what_whoever_asked_for_is_gone_is_done_all_the_same(autojump_clock: object) -> None:
    async with world() as (made, _):
        with threads(1) as (one,), pytest.raises(OSError, match="Stale"):
            await Thread(made, one).request(b"a")
        made.disk(b"a").set()
    assert made.said == ["a begins", "a shows", f"kernel forgets {((BUILDS, b'a'),)}"]


async def test_who_makes_another_call_does_not_come_back_for_the_first() -> None:
    with threads(1) as (one,):
        async with world() as (made, _):
            made.disk(b"a").set(), made.disk(b"b").set()
            thread = Thread(made, one)
            with pytest.raises(OSError, match="Stale"):
                await thread.request(b"a")
            await wait_all_tasks_blocked()
            await thread.mkdir(b"b")
    assert made.said.index("a shows") < made.said.index("b is there")
    assert f"kernel forgets {((BUILDS, b'a'),)}" in made.said


async def test_verbs_on_one_name_take_turns() -> None:
    with threads(2) as (one, two):
        async with world() as (made, nursery):
            await goes_on(nursery, partial(Thread(made, one).mkdir, b"a"))
            await goes_on(nursery, partial(Thread(made, two).mkdir, b"a"))
            assert made.said == ["a begins"]
            made.disk(b"a").set()
    assert made.said[:3] == ["a begins", "a is asked for again", "a shows"]
    assert made.said[3:].count("a begins") == 1
    assert made.said.count("a is there") == 2


async def test_what_is_known_to_be_refused_is_refused_by_the_first_request() -> None:
    def refused() -> None:
        raise Busy("it is in use")

    with threads(2) as (one, two):
        async with world() as (made, nursery):
            asked = Asked("mkdir", ((BUILDS, b"a"),), Caller(0, 0, one), made.verb(b"a"), refused)
            with pytest.raises(Busy):
                made.unlocked.begin(asked)
            assert made.said == []
            # But what another is about to make is waited for.
            await goes_on(nursery, partial(Thread(made, two).mkdir, b"a"))
            assert made.unlocked.begin(asked)
            made.disk(b"a").set()
            await wait_all_tasks_blocked()
            assert made.said[-1] == "a begins"
            assert await made.unlocked.run(asked) == b"a"
    assert made.said.count("a shows") == 2


async def test_many_who_failed_and_are_gone_cost_nothing() -> None:
    with threads(1) as (one,):
        async with world() as (made, _):
            made.disk(b"a").set()
            with threads(40) as others:
                for each in others:
                    with pytest.raises(OSError, match="Stale"):
                        await Thread(made, each).request(b"a", Busy("it is in use"))
                    await wait_all_tasks_blocked()
            for _ in range(40):
                await Thread(made, one).mkdir(b"a")
            assert made.unlocked._by_thread == {}


async def test_a_turn_is_not_waited_for_with_the_lock_that_the_other_needs() -> None:
    with threads(2) as (one, two):
        async with world() as (made, nursery):
            with pytest.raises(OSError, match="Stale"):
                await Thread(made, one).request(b"a")
            await wait_all_tasks_blocked()
            await goes_on(nursery, partial(Thread(made, two).mkdir, b"a", in_group=True))
            assert made.said == ["a begins", "a begins"]
            made.disk(b"a").set()
            await wait_all_tasks_blocked()
            assert await Thread(made, one).request(b"a") == b"a"


async def test_at_the_end_what_has_begun_is_brought_to_its_end() -> None:
    with threads(1) as (one,):
        async with world() as (made, nursery):
            with pytest.raises(OSError, match="Stale") as caught:
                await Thread(made, one).request(b"a")
            assert caught.value.errno == errno.ESTALE
            await goes_on(nursery, made.unlocked.close)
            made.disk(b"a").set()
    assert made.said == ["a begins", "a shows"]

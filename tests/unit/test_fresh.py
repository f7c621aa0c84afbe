"""Datasets kept ready: a build that begins gets one, and nobody notices."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from fake import FakeDriver

from zfsfs.driver import viewing
from zfsfs.errors import Exists
from zfsfs.names import BuildId, BuildName, Dataset, result
from zfsfs.store import Store, check
from zfsfs.store.demand import HOT, PATIENCE, QUIET, Activity
from zfsfs.store.fresh import MOST, MOST_ALIKE

ME = (os.getuid(), os.getgid())


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@asynccontextmanager
async def started(driver: FakeDriver) -> AsyncIterator[Store]:
    """A store. In the end nothing may be left but builds."""
    store = Store(driver)
    await store.start()
    yield store
    for ident in list(store.builds.running()):
        await store.builds.discard(ident)
    await store.keep_nothing_ready()
    await store.reaper.try_all()
    assert store.ready() == ready(driver) == []
    assert check(driver.list()) == []
    await store.close()


def ready(driver: FakeDriver) -> list[Dataset]:
    return sorted(each for each in driver.list() if each.leaf.endswith("-ready"))


def clones(driver: FakeDriver) -> list[Dataset]:
    return [each for each in ready(driver) if driver.list()[each].origin is not None]


async def later(store: Store, seconds: float = QUIET) -> None:
    """What the background does in that time."""
    await store.builds.fresh.provide(trio.current_time() + seconds)
    await store.reaper.try_all()


async def begin(store: Store, *names: str, base: BuildId | None = None) -> None:
    for name in names:
        build, view = await store.builds.begin(BuildName(BuildId(name.encode()), base), ME, 0o700)
        assert build.dataset == result(BuildId(name.encode()))
        assert stat.S_IMODE(os.fstat(view.fd).st_mode) == 0o700
        view.close()


async def published(store: Store, name: str) -> BuildId:
    """A result with one file, `name`."""
    ident = BuildId(name.encode())
    build = await store.builds.start(BuildName(ident), ME, 0o700)
    with viewing(store.driver, build.dataset, writable=True) as root:
        os.close(os.open(name, os.O_WRONLY | os.O_CREAT, dir_fd=root))
    await store.builds.publish(ident)
    return ident


async def test_a_build_gets_one_under_its_own_name(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await begin(store, "a")
        assert ready(driver) == []
        await later(store)
        (kept,) = ready(driver)
        assert store.ready() == [kept]
        guid = driver.list()[kept].guid
        await begin(store, "b")
        assert ready(driver) == store.ready() == []
        assert driver.list()[result(BuildId(b"b"))].guid == guid
        await store.builds.publish(BuildId(b"b"))
        with viewing(driver, result(BuildId(b"b"))) as root:
            assert os.listdir(root) == []
            assert stat.S_IMODE(os.fstat(root).st_mode) == 0o700


async def test_there_are_as_many_as_were_begun_in_one_go(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await begin(store, "a", "b", "c")
        await later(store, 0.0)
        assert ready(driver) == [], "more may begin"
        await later(store)
        assert len(ready(driver)) == 3
        await begin(store, "d")
        await later(store)
        assert len(ready(driver)) == 3
        await later(store, HOT + QUIET + 1)
        assert ready(driver) == []


async def test_there_are_few(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await begin(store, *(str(number) for number in range(MOST_ALIKE + 3)))
        await later(store)
        assert len(ready(driver)) == MOST_ALIKE


async def test_a_result_that_is_built_on_twice_has_clones_ready(driver: FakeDriver) -> None:
    async with started(driver) as store:
        base = await published(store, "base")
        await begin(store, "a", base=base)
        await later(store)
        assert clones(driver) == [], "a step of a chain is built on once"
        await begin(store, "b", base=base)
        await later(store)
        (kept,) = clones(driver)
        guid = driver.list()[kept].guid
        await begin(store, "c", base=base)
        assert driver.list()[result(BuildId(b"c"))].guid == guid
        with viewing(driver, result(BuildId(b"c"))) as root:
            assert os.listdir(root) == ["base"]
        (info,) = [each for each in store.builds.running().values() if each.id == BuildId(b"c")]
        assert info.base == base


async def test_a_clone_kept_ready_keeps_no_result_and_outlives_none(driver: FakeDriver) -> None:
    async with started(driver) as store:
        base = await published(store, "base")
        await begin(store, "a", "b", base=base)
        for each in (b"a", b"b"):
            await store.builds.discard(BuildId(each))
        await later(store)
        assert clones(driver)
        await store.builds.delete(base)
        await store.reaper.try_all()
        assert clones(driver) == []
        assert result(base) not in driver.list()
        await published(store, "base")
        await begin(store, "c", base=base)


async def test_of_all_results_together_there_are_few_clones_and_some_of_each(driver: FakeDriver) -> None:
    async with started(driver) as store:
        bases = [await published(store, f"base{number}") for number in range(MOST_ALIKE)]
        for base in bases:
            await begin(store, *(f"{each}-{base}" for each in range(4)), base=base)
        await later(store)
        assert len(clones(driver)) == MOST
        origins = {info.origin.dataset for each in clones(driver) if (info := driver.list()[each]).origin}
        assert origins == {result(base) for base in bases}
        assert len(ready(driver)) > MOST, "empty ones don't count"


async def test_what_a_crash_left_of_a_build_is_cleared_all_the_same(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await begin(store, "a")
        await later(store)
        driver.create(result(BuildId(b"b")))
        await begin(store, "b")
        await store.reaper.try_all()
        assert ready(driver) == []


async def test_who_is_refused_takes_none(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await begin(store, "a")
        await later(store)
        with pytest.raises(Exists):
            await begin(store, "a")
        assert len(ready(driver)) == 1


async def test_storage_that_looks_into_a_dataset_at_once_has_none(driver: FakeDriver) -> None:
    driver.cheap_clones = False
    async with started(driver) as store:
        await begin(store, "a")
        await later(store)
        assert ready(driver) == []


async def test_after_a_crash_it_is_gone(driver: FakeDriver) -> None:
    store = Store(driver)
    await store.start()
    await begin(store, "a")
    await later(store)
    assert len(ready(driver)) == 1
    await store.close()  # which destroys nothing
    again = Store(driver)
    await again.start()
    assert ready(driver) == []
    await again.close()


def test_what_is_due_is_made_when_nobody_asks_for_anything_or_after_some_time() -> None:
    activity = Activity()
    assert activity.pause(100.0) == 100.0
    activity.last = 100.0 - QUIET / 2
    assert activity.pause(100.0) == 100.0 + QUIET / 2
    activity.last = 1000.0
    assert activity.pause(100.0) == 100.0 + PATIENCE

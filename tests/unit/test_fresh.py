"""Empty datasets kept ready: a build that begins with nothing gets one, and nobody notices."""

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
from zfsfs.store.fresh import MOST

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


async def later(store: Store, seconds: float = QUIET) -> None:
    """What the background does in that time."""
    await store.builds.fresh.provide(trio.current_time() + seconds)
    await store.reaper.try_all()


async def begin(store: Store, *names: str) -> None:
    for name in names:
        build, view = await store.builds.begin(BuildName(BuildId(name.encode())), ME, 0o700)
        assert build.dataset == result(BuildId(name.encode()))
        assert stat.S_IMODE(os.fstat(view.fd).st_mode) == 0o700
        view.close()


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
        await begin(store, *(str(number) for number in range(MOST + 3)))
        await later(store)
        assert len(ready(driver)) == MOST


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

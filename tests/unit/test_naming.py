"""A build that got a dataset kept ready begins before that has its name; who needs the name waits for it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.lowlevel
from fake import FakeDriver

from zfsfs.driver import viewing
from zfsfs.errors import Busy, DriverError
from zfsfs.names import BuildId, BuildName, Dataset, Snapshot, result
from zfsfs.store import Store
from zfsfs.store.demand import QUIET
from zfsfs.store.layout import is_junk

ME = (os.getuid(), os.getgid())
A, B = BuildId(b"a"), BuildId(b"b")


class SlowNames(FakeDriver):
    """Gives no name to what was kept ready until `go` is set; fails where `failing` says why."""

    def __init__(self) -> None:
        super().__init__()
        self.go = trio.Event()
        self.failing = ""

    def rename(self, old: Dataset, new: Dataset) -> None:
        if is_junk(old) and not is_junk(new):
            trio.from_thread.run(self.go.wait)
            if self.failing:
                raise DriverError(self.failing, 5)
        super().rename(old, new)


@pytest.fixture
def driver() -> SlowNames:
    return SlowNames()


@asynccontextmanager
async def begun(driver: SlowNames) -> AsyncIterator[Store]:
    """A store that runs, with the build A in a dataset without its name, and one file in it."""
    store = Store(driver)
    await store.start()
    async with trio.open_nursery() as nursery:
        await nursery.start(store.run)
        await store.builds.start(BuildName(B), ME, 0o755)
        await store.builds.fresh.provide(trio.current_time() + QUIET)
        _, view = await store.builds.begin(BuildName(A), ME, 0o755)
        os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=view.fd))
        view.close()
        yield store
        driver.failing = ""
        driver.go.set()
        nursery.cancel_scope.cancel()
    await store.close()


async def test_it_is_shown_as_running_at_once(driver: SlowNames) -> None:
    async with begun(driver) as store:
        assert A in store.builds.running()
        assert result(A) not in driver.list()
        assert store.ready() == [each for each in driver.list() if each.leaf.endswith("-ready")]
        driver.go.set()
        await store.builds.named(A)
        assert result(A) in driver.list()
        assert store.ready() == []


async def test_publishing_waits_for_the_name(driver: SlowNames) -> None:
    async with begun(driver) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.builds.publish, A)
            await trio.testing.wait_all_tasks_blocked()
            assert store.builds.result(A) is None
            with pytest.raises(Busy):
                await store.builds.discard(A)
            driver.go.set()
        assert store.builds.result(A) is not None
        with viewing(driver, Snapshot(result(A), "snap")) as root:
            assert os.listdir(root) == ["file"]


async def test_who_asks_for_its_number_waits_for_the_name(driver: SlowNames) -> None:
    async with begun(driver) as store:
        driver.go.set()
        guid = await store.builds.guid(A)
        assert driver.list()[result(A)].guid == guid


async def test_what_can_get_no_name_goes_on_and_is_published_later(driver: SlowNames) -> None:
    async with begun(driver) as store:
        driver.failing = "no luck"
        driver.go.set()
        with pytest.raises(DriverError, match="no luck"):
            await store.builds.publish(A)
        assert A in store.builds.running()
        driver.failing = ""
        await store.builds.publish(A)
        with viewing(driver, Snapshot(result(A), "snap")) as root:
            assert os.listdir(root) == ["file"]


async def test_what_can_get_no_name_is_discarded_all_the_same(driver: SlowNames) -> None:
    async with begun(driver) as store:
        driver.failing = "no luck"
        driver.go.set()
        await store.builds.discard(A)
        await store.reaper.try_all()
        assert set(store.builds.running()) == {B}
        assert store.ready() == []
        assert not [each for each in driver.list() if each.leaf.endswith("-ready")]


async def test_a_name_that_was_taken_meanwhile_is_cleared(driver: SlowNames) -> None:
    async with begun(driver) as store:
        driver.create(result(A))
        driver.go.set()
        await store.builds.publish(A)
        with viewing(driver, Snapshot(result(A), "snap")) as root:
            assert os.listdir(root) == ["file"]


async def test_the_end_waits_for_names(driver: SlowNames) -> None:
    async with begun(driver) as store:
        pass
    assert result(A) in driver.list()
    assert store.ready() == []

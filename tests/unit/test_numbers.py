"""Clocks that go backwards, and numbers beyond what a machine word of old held."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from fake import FakeDriver
from suites.store_suite import MAIN, NPM, A, build, filled, finish, published, restarted, write

from zfsfs.directory.driver import DirectoryDriver
from zfsfs.driver import Driver
from zfsfs.names import Dataset, cache_tmp
from zfsfs.store import Outcome, Store
from zfsfs.store.layout import GENERATION


@pytest.fixture(params=["fake", "directory"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> Driver:
    return FakeDriver() if request.param == "fake" else DirectoryDriver(str(tmp_path / "store"))


@pytest.mark.parametrize("before", [2**31 - 1, 2**32 - 1, 2**63 - 1])
async def test_a_cache_is_published_more_than_two_thousand_million_times(driver: Driver, before: int) -> None:
    store = Store(driver)
    await store.start()
    await filled(store, "old")
    driver.set_property(MAIN, GENERATION, str(before))
    # Sessions of a crash, with numbers as high.
    driver.clone(next(iter(driver.info(MAIN).snapshots)).snapshot, cache_tmp(before, NPM))  # type: ignore[union-attr]
    store = await restarted(store)
    assert store.caches.get(NPM).generation == before  # type: ignore[union-attr]
    one, other = await store.caches.open(NPM, b"1"), await store.caches.open(NPM, b"2")
    write(driver, one.dataset, "new")
    write(driver, other.dataset, "other")
    assert await store.caches.release(one, changed=True) is Outcome.PUBLISHED
    assert await store.caches.release(other, changed=True) is Outcome.SUPERSEDED
    assert store.caches.get(NPM).generation == before + 1  # type: ignore[union-attr]
    store = await restarted(store)
    await finish(store)
    assert published(driver) == "new"
    await store.close()


async def test_a_clock_that_is_set_back_changes_nothing(driver: Driver) -> None:
    hours = itertools.count(10**9, -3600)
    store = Store(driver, clock=lambda: float(next(hours)))
    await store.start()
    await filled(store, "one")
    session = await store.caches.open(NPM, None)
    write(driver, session.dataset, "two")
    assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
    await build(store, b"a", "text")
    times = [each.time for each in store.events.recent]
    assert times == sorted(times, reverse=True)  # as the clock had it, in the order in which it happened
    store = await restarted(store)
    await finish(store)
    assert published(driver) == "two"
    assert store.builds.results() == [A]
    assert Dataset("result", "a") in driver.list()
    await store.close()

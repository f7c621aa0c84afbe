"""Clones kept ready: who opens a cache again soon waits for nothing, and nobody else notices."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from fake import FakeDriver

from zfsfs.driver import viewing
from zfsfs.names import CacheName, Dataset, cache
from zfsfs.store import Outcome, Session, Store, check
from zfsfs.store.demand import HOT, QUIET
from zfsfs.store.spares import MOST

ME = (os.getuid(), os.getgid())
NPM = CacheName(b"npm")


@pytest.fixture
def driver() -> FakeDriver:
    return FakeDriver()


@asynccontextmanager
async def started(driver: FakeDriver) -> AsyncIterator[Store]:
    """A store with a cache. In the end nothing may be left."""
    store = Store(driver)
    await store.start()
    await store.caches.create(NPM, ME, 0o755)
    yield store
    await store.caches.settle()
    await store.caches.spares.close()
    await store.reaper.try_all()
    assert temporary(driver) == []
    assert check(driver.list()) == []
    await store.close()


async def later(store: Store, seconds: float = QUIET) -> None:
    """What the background does in that time."""
    await store.caches.settle()
    await store.caches.spares.provide(trio.current_time() + seconds)
    await store.reaper.try_all()


def temporary(driver: FakeDriver) -> list[str]:
    return sorted(str(each) for each in driver.list() if each.group == "cache-tmp" and each.leaf)


async def use(store: Store, text: str = "", label: bytes = b"1") -> Session:
    """Open a session, write there, if there is something to write, and close it."""
    session = await store.caches.open(NPM, label)
    view = session.take_view() or store.driver.view(session.dataset, writable=True)
    if text:
        fd = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=view.fd)
        os.write(fd, text.encode())
        os.close(fd)
    view.close()
    await store.caches.release(session, changed=bool(text))
    return session


def contents(driver: FakeDriver, dataset: Dataset) -> str:
    with viewing(driver, dataset) as root:
        fd = os.open("file", os.O_RDONLY, dir_fd=root)
        try:
            return os.read(fd, 4096).decode()
        finally:
            os.close(fd)


async def test_who_opens_a_cache_again_gets_one_of_the_newest_version(driver: FakeDriver) -> None:
    async with started(driver) as store:
        for text in ("one", "two"):
            await use(store, text)
            await later(store)
            (spare,) = temporary(driver)
            session = await store.caches.open(NPM, b"next")
            assert (str(session.dataset), session.generation) == (spare, store.caches.get(NPM).generation)
            view = session.take_view()
            assert view is not None
            view.close()
            assert session.take_view() is None
            assert await store.caches.release(session, changed=False) is Outcome.UNCHANGED
            await later(store)
        assert contents(driver, cache(NPM)) == "two"


async def test_there_is_none_while_a_session_is_open_and_one_session_gets_it(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await use(store)
        await later(store)
        (spare,) = temporary(driver)
        first, second = [await store.caches.open(NPM, label) for label in (b"1", b"2")]
        await later(store)
        assert spare == str(first.dataset) != str(second.dataset)
        assert temporary(driver) == sorted(str(each.dataset) for each in (first, second))
        for each in (first, second):
            await store.caches.release(each, changed=False)


async def test_who_has_changed_nothing_leaves_the_clone_to_the_next(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await use(store, "contents")
        await store.caches.settle()
        session = await store.caches.open(NPM, b"1")
        view = store.driver.view(session.dataset, writable=True)
        outcome = await store.caches.release(session, changed=False, view=view, untouched=True)
        assert outcome is Outcome.UNCHANGED
        assert store.caches.sessions() == []
        await later(store, 0.0)
        again = await store.caches.open(NPM, b"2")
        assert again.dataset == session.dataset
        assert again.take_view() is view
        assert await store.caches.release(again, changed=False, view=view) is Outcome.UNCHANGED
        assert not [each for each in store.caches.get(NPM).ready if each == again.dataset], (
            "it may have been written in"
        )


async def test_the_clone_of_an_old_version_is_left_to_nobody(driver: FakeDriver) -> None:
    async with started(driver) as store:
        old = await store.caches.open(NPM, b"1")
        await use(store, "newer", b"2")
        view = store.driver.view(old.dataset, writable=True)
        assert await store.caches.release(old, changed=False, view=view, untouched=True) is Outcome.UNCHANGED
        await store.reaper.try_all()
        assert old.dataset not in driver.list()


async def test_no_more_clones_are_left_than_sessions_were_open(driver: FakeDriver) -> None:
    async with started(driver) as store:
        for _ in range(3):
            sessions = [await store.caches.open(NPM, label) for label in (b"1", b"2")]
            for each in sessions:
                view = each.take_view() or store.driver.view(each.dataset, writable=True)
                await store.caches.release(each, changed=False, view=view, untouched=True)
            await later(store)
            assert len(temporary(driver)) == 2


async def test_a_spare_is_no_session(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await use(store)
        await later(store)
        assert len(temporary(driver)) == 1
        assert store.caches.sessions() == []
        assert store.caches.get(NPM).sessions == 0
        await store.caches.delete(NPM)
        await store.reaper.try_all()
        assert temporary(driver) == []


async def test_a_cache_that_nobody_opens_has_none(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await later(store)
        assert temporary(driver) == []
        await use(store)
        await later(store)
        assert len(temporary(driver)) == 1
        await later(store, HOT + QUIET + 1)
        assert temporary(driver) == []


async def test_there_are_as_many_as_sessions_were_opened_in_one_go(driver: FakeDriver) -> None:
    async with started(driver) as store:
        labels = [b"%d" % number for number in range(3)]
        for again in range(2):
            before = temporary(driver)
            sessions = [await store.caches.open(NPM, label) for label in labels]
            assert again == 0 or sorted(str(each.dataset) for each in sessions) == before
            await later(store)
            assert store.ready() == [], "one of them may be published"
            for each in sessions:
                await store.caches.release(each, changed=again == 0)
            await later(store)
            assert len(temporary(driver)) == len(store.ready()) == len(labels)
        await use(store)
        await later(store)
        await later(store, HOT - 1)
        assert len(temporary(driver)) == len(labels)
        await later(store, HOT + QUIET + 1)
        assert temporary(driver) == []


async def test_each_cache_has_one_before_another_has_more(driver: FakeDriver) -> None:
    async with started(driver) as store:
        names = [NPM, *(CacheName(b"%d" % number) for number in range(MOST // 2 - 1))]
        for name in names[1:]:
            await store.caches.create(name, ME, 0o755)
        for count in (1, MOST):
            sessions = [await store.caches.open(name, b"%d" % each) for name in names for each in range(count)]
            for session in sessions:
                await store.caches.release(session, changed=False)
            await later(store)
            assert len(temporary(driver)) == len(names) if count == 1 else MOST
        infos = [store.caches.get(name) for name in names]
        assert [len(info.ready) for info in infos if info] == [2] * len(names)


async def test_there_are_few(driver: FakeDriver) -> None:
    async with started(driver) as store:
        sessions = [await store.caches.open(NPM, b"%d" % label) for label in range(MOST + 3)]
        for each in sessions:
            await store.caches.release(each, changed=False)
        await later(store)
        assert len(temporary(driver)) == MOST
        names = [CacheName(b"%d" % number) for number in range(MOST + 3)]
        for name in names:
            await store.caches.create(name, ME, 0o755)
            await store.caches.release(await store.caches.open(name, b"1"), changed=False)
        await later(store)
        assert len(temporary(driver)) == MOST


async def test_storage_that_copies_has_none(driver: FakeDriver) -> None:
    driver.cheap_clones = False
    async with started(driver) as store:
        await use(store)
        await later(store)
        assert temporary(driver) == []


async def test_who_does_not_take_the_view_can_release(driver: FakeDriver) -> None:
    async with started(driver) as store:
        await use(store)
        await later(store)
        session = await store.caches.open(NPM, b"2")
        assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED


async def test_after_a_crash_it_is_gone(driver: FakeDriver) -> None:
    store = Store(driver)
    await store.start()
    await store.caches.create(NPM, ME, 0o755)
    await use(store)
    await later(store)
    assert len(temporary(driver)) == 1
    await store.close()  # which destroys nothing
    again = Store(driver)
    await again.start()
    assert temporary(driver) == []
    await again.close()

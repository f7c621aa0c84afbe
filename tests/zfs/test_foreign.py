"""Others at work on our datasets: snapshots, holds, bookmarks and sends block nobody.

Every verb is done while somebody meddles with the datasets that it is about. It succeeds, or says why it waits and
succeeds later; and no snapshot of somebody else is destroyed but with what a user has removed.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest
from suites.store_suite import MAIN, ME, NPM, A, B, build, filled, finish, published, restarted, write

from zfsfs.driver import viewing
from zfsfs.errors import Busy, DriverError
from zfsfs.names import BuildName, Dataset, Snapshot, result
from zfsfs.store import Outcome, Session, Store

if TYPE_CHECKING:
    from zfsfs.zfs.driver import ZfsDriver

NAMES = ("autosnap_2026-11-25_00:00:01_hourly", "old-1", "snap.1")


def zfs(*arguments: str) -> str:
    return subprocess.run(["zfs", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def fill(driver: ZfsDriver, dataset: Dataset) -> None:
    """More than a pipe takes, so that a send of it waits for its reader."""
    with viewing(driver, dataset, writable=True) as root:
        fd = os.open("big", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=root)
        os.write(fd, os.urandom(1 << 20))
        os.close(fd)


class Others:
    """Somebody who meddles in one way, until told to stop."""

    def __init__(self, kind: str, pool: str, driver: ZfsDriver) -> None:
        self.kind, self._pool, self._driver = kind, pool, driver
        self._stack = ExitStack()

    def meddle(self, *datasets: Dataset) -> None:
        for dataset in datasets:
            fill(self._driver, dataset)
            full = f"{self._pool}/{dataset}"
            names = NAMES if self.kind == "snapshot" else NAMES[:1]
            for name in names:
                zfs("snapshot", f"{full}@{name}")
            if self.kind == "hold":
                zfs("hold", "backup", f"{full}@{names[0]}")
            elif self.kind == "snapshot":
                zfs("bookmark", f"{full}@{names[0]}", f"{full}#mark")
            elif self.kind == "send":
                self.send(Snapshot(dataset, names[0]))

    def send(self, snapshot: Snapshot) -> None:
        """To a reader that takes its time."""
        self._stack.enter_context(self._sending(f"{self._pool}/{snapshot}"))

    @contextmanager
    def _sending(self, snapshot: str) -> Iterator[None]:
        with subprocess.Popen(["zfs", "send", snapshot], stdout=subprocess.PIPE) as send:
            assert send.stdout is not None
            send.stdout.read(1)
            yield
            send.kill()

    def snapshots(self) -> list[str]:
        """Their snapshots, wherever they are now."""
        found = zfs("list", "-Hrt", "snapshot", "-o", "name", self._pool).split("\n")
        return [each for each in found if each.partition("@")[2].startswith("autosnap")]

    def stop(self) -> None:
        """They are done, and have cleaned up behind them."""
        self._stack.close()
        for snapshot in self.snapshots():
            if self.kind == "hold":
                zfs("release", "backup", snapshot)
            # One that was given up goes with the last hold.
            subprocess.run(["zfs", "destroy", snapshot], capture_output=True, check=False)
        for name in NAMES[1:] if self.kind == "snapshot" else ():
            for each in zfs("list", "-Hrt", "snapshot", "-o", "name", self._pool).split("\n"):
                if each.partition("@")[2].startswith(name):
                    subprocess.run(["zfs", "destroy", each], capture_output=True, check=False)


@pytest.fixture
def driver(pool: str) -> ZfsDriver:
    from zfsfs.zfs.driver import ZfsDriver

    return ZfsDriver(pool)


@pytest.fixture
async def store(driver: ZfsDriver) -> AsyncIterator[Store]:
    store = Store(driver)
    await store.start()
    yield store
    await store.close()


@pytest.fixture(params=["snapshot", "hold", "send"])
def others(request: pytest.FixtureRequest, pool: str, driver: ZfsDriver) -> Iterator[Others]:
    others = Others(request.param, pool, driver)
    yield others
    others.stop()


async def large(store: Store, driver: ZfsDriver) -> Session:
    """A session that has more in it than a pipe takes."""
    session = await store.caches.open(NPM, None)
    fill(driver, session.dataset)
    return session


async def all_gone(store: Store, others: Others) -> None:
    others.stop()
    await finish(store)
    assert store.reaper.queue == {}


async def test_a_release_wins(store: Store, driver: ZfsDriver, others: Others) -> None:
    await filled(store, "one")
    await store.caches.release(await large(store, driver), changed=True)
    await store.complete_deletes()
    session = await store.caches.open(NPM, None)
    write(driver, session.dataset, "two")
    others.meddle(session.dataset, MAIN)
    before = len(others.snapshots())
    if others.kind == "send":
        # What has to move with the clone.
        others.send(Snapshot(MAIN, "snap"))
        # What is being sent can't be promoted: the session stays open, whole, and is published afterwards.
        with pytest.raises(Busy, match="snapshot that would move"):
            await store.caches.release(session, changed=True)
        assert published(driver) == "one"
        assert store.caches.sessions() == [session]
        others.stop()
        before = 0
    assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
    await finish(store)
    assert published(driver) == "two"
    assert len(others.snapshots()) == before
    again = await restarted(store)
    assert published(driver) == "two"
    assert len(others.snapshots()) == before
    await all_gone(again, others)
    await again.close()


async def test_a_release_loses(store: Store, driver: ZfsDriver, others: Others) -> None:
    await filled(store, "one")
    first, second = await store.caches.open(NPM, b"1"), await store.caches.open(NPM, b"2")
    write(driver, first.dataset, "first")
    others.meddle(second.dataset)
    before = len(others.snapshots())
    assert await store.caches.release(first, changed=True) is Outcome.PUBLISHED
    assert await store.caches.release(second, changed=True) is Outcome.SUPERSEDED
    await finish(store)
    assert published(driver) == "first"
    assert len(others.snapshots()) == before
    assert NAMES[0] in store.reaper.queue[second.dataset].reason
    await all_gone(store, others)


async def test_a_session_is_discarded(store: Store, driver: ZfsDriver, others: Others) -> None:
    await filled(store, "one")
    session = await store.caches.open(NPM, None)
    others.meddle(session.dataset)
    assert await store.caches.discard(session) is Outcome.DISCARDED
    await finish(store)
    assert published(driver) == "one"
    if others.kind in ("hold", "send"):
        assert store.reaper.queue[session.dataset].reason != ""
    else:
        assert others.snapshots() == []
        assert store.reaper.queue == {}
    await all_gone(store, others)


async def test_a_build_is_published(store: Store, driver: ZfsDriver, others: Others) -> None:
    info = await store.builds.start(BuildName(A), ME, 0o755)
    others.meddle(info.dataset)
    before = len(others.snapshots())
    await store.builds.publish(A)
    await store.builds.start(BuildName(B, A), ME, 0o755)
    await store.builds.discard(B)
    await finish(store)
    assert len(others.snapshots()) == before
    assert store.builds.results() == [A]


async def test_a_result_is_deleted(store: Store, driver: ZfsDriver, others: Others) -> None:
    await build(store, b"a", "text")
    others.meddle(result(A))
    await store.builds.delete(A)
    assert store.builds.results() == []
    assert driver.info(result(A)) is None
    deleted = [each for each in store.events.recent if each.kind == "deleted"]
    assert f"its snapshots {NAMES[0]}" in deleted[0].text
    await finish(store)
    if others.kind in ("hold", "send"):
        (waiting,) = store.reaper.queue.values()
        assert waiting.reason
        again = await restarted(store)
        assert set(again.reaper.queue) == {waiting.dataset}
        await all_gone(again, others)
        await again.close()
    assert others.snapshots() == []


async def test_a_cache_is_deleted(store: Store, driver: ZfsDriver, others: Others) -> None:
    await filled(store, "one")
    others.meddle(MAIN)
    await store.caches.delete(NPM)
    assert store.caches.names() == []
    await finish(store)
    await filled(store, "of the same name")
    again = await restarted(store)
    await all_gone(again, others)
    assert published(driver) == "of the same name"
    await again.close()


def longest(pool: str, dataset: Dataset) -> str:
    """A snapshot of a dataset that has the longest name that there is, taken."""
    full = f"{pool}/{dataset}@"
    zfs("snapshot", full + "x" * (255 - len(full)))
    return full + "x" * (255 - len(full))


async def test_names_that_get_too_long_stop_nothing_else(store: Store, driver: ZfsDriver, pool: str) -> None:
    """What moves from cache to cache-tmp gets a longer name, and so do its snapshots."""
    await filled(store, "one")
    other = await store.caches.open(NPM, b"other")
    longest(pool, other.dataset)
    await store.caches.release(other, changed=False)
    session = await store.caches.open(NPM, None)
    write(driver, session.dataset, "two")
    snapshot = longest(pool, MAIN)
    with pytest.raises(DriverError, match="too long"):
        await store.caches.release(session, changed=True)
    again = await restarted(store, whole=False)
    zfs("destroy", snapshot)
    await finish(again)
    assert published(driver) == "two"
    await again.caches.delete(NPM)
    await finish(again)
    assert again.reaper.queue == {}
    await again.close()


async def test_a_store_starts(store: Store, driver: ZfsDriver, others: Others) -> None:
    """After a crash in the middle of all of it."""
    await filled(store, "one")
    session = await store.caches.open(NPM, None)
    info = await store.builds.start(BuildName(A), ME, 0o755)
    others.meddle(session.dataset, MAIN, info.dataset)
    before = len(others.snapshots())
    again = await restarted(store)
    assert published(driver) == "one"
    # The left-over of a build stays until its id is built again, and what a session left waits for the others.
    assert len(others.snapshots()) == before
    await again.builds.start(BuildName(A), ME, 0o755)
    await again.builds.publish(A)
    await all_gone(again, others)
    await again.close()


async def test_what_is_not_released_at_the_end_is_at_the_next_start(
    store: Store, driver: ZfsDriver, pool: str
) -> None:
    await filled(store, "one")
    await store.caches.release(await large(store, driver), changed=True)
    await store.complete_deletes()
    session = await store.caches.open(NPM, None)
    write(driver, session.dataset, "two")
    sender = Others("send", pool, driver)
    sender.send(Snapshot(MAIN, "snap"))
    with pytest.raises(Busy):
        await store.caches.release(session, changed=True)
    assert await store.caches.bequeath(session)
    sender.stop()
    again = await restarted(store)
    await finish(again)
    assert published(driver) == "two"
    await again.close()

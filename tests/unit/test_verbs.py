"""What each operation asks of the storage. On ZFS a verb that changes something costs a transaction group, and a look
at a dataset more than half of one: the control plane is as fast as these are few."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from fake import FakeDriver

from zfsfs.names import BuildId, BuildName, CacheName
from zfsfs.store import Outcome, Store

ME = (os.getuid(), os.getgid())
NPM = CacheName(b"npm")


class Recording:
    """A driver that writes down what it is asked."""

    def __init__(self, driver: FakeDriver) -> None:
        self._driver = driver
        self.verbs: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._driver, name)
        if not isinstance(found, Callable):  # type: ignore[arg-type]
            return found

        def verb(*arguments: Any, **named: Any) -> Any:
            self.verbs.append(name)
            return found(*arguments, **named)

        return verb


@pytest.fixture
async def store() -> Store:
    store = Store(Recording(FakeDriver()))  # type: ignore[arg-type]
    await store.start()
    await store.builds.start(BuildName(BuildId(b"base")), ME, 0o755)
    await store.builds.publish(BuildId(b"base"))
    await store.caches.create(NPM, ME, 0o755)
    return store


@contextmanager
def asked(store: Store, *verbs: str) -> Iterator[None]:
    """The block asks just this."""
    driver: Any = store.driver
    driver.verbs.clear()
    yield
    assert driver.verbs == list(verbs)


async def test_builds(store: Store) -> None:
    new, more = BuildId(b"new"), BuildId(b"more")
    with asked(store, "create", "view"):
        await store.builds.start(BuildName(new), ME, 0o755)
    with asked(store, "clone", "view"):
        await store.builds.start(BuildName(more, BuildId(b"base")), ME, 0o755)
    with asked(store, "snapshot_each"):
        await store.builds.publish(new)
    with asked(store, "rename"):
        await store.builds.discard(more)
    with asked(store, "info", "rename"):
        await store.builds.delete(new)


async def test_sessions(store: Store) -> None:
    with asked(store, "clone"):
        first = await store.caches.open(NPM, b"1")
    late, idle = await store.caches.open(NPM, b"2"), await store.caches.open(NPM, b"3")
    with asked(store, "batch", "rename", "rename"):
        assert await store.caches.release(first, changed=True) is Outcome.PUBLISHED
    with asked(store, "batch", "info"):  # afterwards, unless somebody needs the cache
        await store.caches.settle()
    with asked(store):
        assert await store.caches.release(late, changed=True) is Outcome.SUPERSEDED
        assert await store.caches.release(idle, changed=False) is Outcome.UNCHANGED
    with asked(store, "batch"):  # afterwards: all that is queued, together
        await store.reaper.try_all()

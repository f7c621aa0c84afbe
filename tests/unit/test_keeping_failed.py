"""Which failed builds are kept, and until when, and what is said of those that can't go: by a clock of the test's."""

from __future__ import annotations

import math
import os
import threading
from types import SimpleNamespace

import pytest
import trio
from fake import FakeDriver

from zfsfs.config import KeepFailed
from zfsfs.errors import Busy
from zfsfs.fs.building import Builders, surplus
from zfsfs.names import BuildId, BuildName, Dataset
from zfsfs.store import EventLog, FailedInfo, Store
from zfsfs.store.layout import failure

DAY = 86400.0


def failed(name: str, ended: float) -> FailedInfo:
    ident = BuildId(name.encode())
    return FailedInfo(ident, None, 0.0, 1, failure(1, ident), ended, {})


@pytest.mark.parametrize(
    ("keep", "now", "gone"),
    [
        (KeepFailed(0, math.inf), 30.0, ["c", "b", "a"]),
        (KeepFailed(2, math.inf), 30.0, ["a"]),
        (KeepFailed(3, math.inf), 1e12, []),
        (KeepFailed(3, DAY), 30.0 + DAY - 21, []),
        (KeepFailed(3, DAY), 10.0 + DAY, ["a"]),
        (KeepFailed(3, DAY), 20.0 + DAY, ["b", "a"]),
        (KeepFailed(1, DAY), 30.0 + DAY, ["c", "b", "a"]),
        (KeepFailed(3, 0.0), 30.0, ["c", "b", "a"]),
    ],
)
def test_those_that_are_too_many_or_too_old_go(keep, now, gone):
    three = [failed("b", 20.0), failed("a", 10.0), failed("c", 30.0)]
    assert [str(each.id) for each in surplus(three, keep, now)] == gone


class Tidying(Builders):
    """One whose tree has a failed build that is held, and no path."""

    def __init__(self) -> None:
        self.tried: list[float] = []
        self.why = "somebody has it"
        kept = {each.id: each for each in [failed("held", 0.0)]}
        self.events = EventLog(trio.current_time)
        store = SimpleNamespace(builds=SimpleNamespace(failed=lambda: kept), events=self.events)
        tree = SimpleNamespace(store=store, failures=SimpleNamespace(forget=self.forget))
        super().__init__(tree, {}, "", "", None, None, None, KeepFailed(5, 1.0), trio.current_time)

    async def forget(self, ident: BuildId) -> None:
        self.tried.append(trio.current_time())
        raise Busy(self.why)

    async def _by_path(self, verb, directly=None) -> None:
        await directly()


async def test_what_keeps_a_failed_build_from_being_deleted_is_said_once(autojump_clock):
    tidying, begun = Tidying(), trio.current_time()
    for why in ("somebody has it", "somebody else has it"):
        tidying.why = why
        with trio.move_on_after(3600):
            await tidying.tidy()
    assert [event.text for event in tidying.events.recent] == [
        "failed build held can't be deleted yet: somebody has it",
        "failed build held can't be deleted yet: somebody else has it",
    ]
    assert [time - begun for time in tidying.tried[:8]] == [1, 3, 7, 15, 31, 63, 123, 183]


class Slow(FakeDriver):
    """Who renames the dataset `slow` first has begun with it when `entered` is set, and goes on when `go` is."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: Dataset | None = None
        self.entered, self.go = trio.Event(), threading.Event()

    def rename(self, old: Dataset, new: Dataset) -> None:
        if old == self.slow:
            self.slow = None
            trio.from_thread.run_sync(self.entered.set)
            self.go.wait()
        super().rename(old, new)


@pytest.mark.parametrize("base_first", [False, True])
async def test_a_failed_build_and_its_base_can_be_deleted_at_the_same_time(base_first):
    driver, base, build = Slow(), BuildId(b"base"), BuildId(b"build")
    store, owner = Store(driver), (os.getuid(), os.getgid())
    await store.start()
    await store.builds.start(BuildName(base), owner, 0o755)
    await store.builds.publish(base)
    await store.builds.start(BuildName(build, base), owner, 0o755)
    driver.slow = (await store.builds.keep(build, {}, 1.0)).dataset
    first, second = lambda: store.builds.forget(build), lambda: store.builds.delete(base)
    if base_first:
        first, second = second, first
    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await driver.entered.wait()
        await second()
        driver.go.set()
    assert (store.builds.failed(), store.builds.results()) == ({}, [])
    assert store.events.counts["failed-deleted"] == 1
    await store.close()

"""Builds and the results that they become.

Guarantees: the presence of `@snap` is the only record of success. An id is being started, running, published or
nothing; two callers never work on one id at a time.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import trio

from zfsfs.driver import DatasetInfo, Driver, Listing, viewing
from zfsfs.errors import Busy, Exists, InvalidName, Missing, StoreError
from zfsfs.names import BuildId, BuildName, Dataset, Snapshot, result
from zfsfs.store.events import EventLog
from zfsfs.store.layout import SNAP, dependents, foreign, free_number, is_ours, junk
from zfsfs.store.reaper import Reaper
from zfsfs.store.swap import destruction


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """A running build."""

    id: BuildId
    base: BuildId | None
    dataset: Dataset
    created: float


@dataclass(frozen=True, slots=True)
class ResultInfo:
    """A published result."""

    id: BuildId
    base: BuildId | None
    dataset: Dataset
    created: float


def base_of(info: DatasetInfo) -> BuildId | None:
    """The result that a dataset is based on."""
    if info.origin is None or info.origin.dataset.group != "result":
        return None
    return BuildId(info.origin.dataset.leaf.encode())


class Builds:
    """See the module; `load` fills the tables from a listing."""

    def __init__(self, driver: Driver, events: EventLog, reaper: Reaper) -> None:
        self._driver = driver
        self._events = events
        self._reaper = reaper
        self._results: dict[BuildId, ResultInfo] = {}
        self._running: dict[BuildId, BuildInfo] = {}
        self._claimed: set[BuildId] = set()

    def load(self, listing: Listing) -> None:
        """Know the results that are there."""
        for dataset, info in listing.items():
            if dataset.group == "result" and dataset.leaf and info.snapshot(SNAP):
                ident = BuildId(dataset.leaf.encode())
                self._results[ident] = ResultInfo(ident, base_of(info), dataset, info.created)

    def result(self, ident: BuildId) -> ResultInfo | None:
        """A published result."""
        return self._results.get(ident)

    def results(self) -> list[BuildId]:
        """All of them."""
        return list(self._results)

    def running(self) -> dict[BuildId, BuildInfo]:
        """The builds that are going on."""
        return dict(self._running)

    @contextmanager
    def _claim(self, ident: BuildId) -> Iterator[None]:
        if ident in self._claimed:
            raise Exists(f"{ident} is being worked on")
        self._claimed.add(ident)
        try:
            yield
        finally:
            self._claimed.discard(ident)

    async def start(self, name: BuildName, owner: tuple[int, int], mode: int) -> BuildInfo:
        """Start a build: from nothing, its root owned by `owner` with `mode`; or as a clone of a result.

        Raises Exists: the id is a result or is being built; Missing: no such base; Busy: a left-over can't go.
        """
        ident, base = name.id, name.base
        if ident in self._results or ident in self._running:
            raise Exists(f"{ident} is {'a result' if ident in self._results else 'being built'} already")
        if base is not None and base not in self._results:
            raise Missing(f"{ident}: there is no result {base} to start from")
        dataset = result(ident)
        with self._claim(ident), trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._make, dataset, base, owner, mode)
            info = BuildInfo(ident, base, dataset, time.time())
            self._running[ident] = info
        self._events.append("build-started", str(ident), f"build {ident}" + (f" from {base}" if base else ""))
        return info

    def _make(self, dataset: Dataset, base: BuildId | None, owner: tuple[int, int], mode: int) -> None:
        left_over = self._driver.info(dataset)
        if left_over is not None:
            self._destroy(dataset)
        if base is not None:
            self._driver.clone(Snapshot(result(base), SNAP), dataset)
            return
        self._driver.create(dataset)
        try:
            give(self._driver, dataset, owner, mode)
        except BaseException:
            self._driver.destroy(dataset)
            raise

    def _destroy(self, dataset: Dataset) -> None:
        """Destroy a build or result with its snapshots; clones that are no results and not running go with it."""
        listing = self._driver.list()
        running = {each.dataset for each in self._running.values()}
        for clone in dependents(listing, dataset):
            if clone.dataset in running or clone.snapshot(SNAP) is not None or clone.dataset.group != "result":
                raise Busy(f"{dataset} can't go: {clone.dataset} is based on it")
        for clone in dependents(listing, dataset):
            self._driver.batch(destruction(clone))
        info = listing[dataset]
        if held := [each.snapshot for each in info.snapshots if each.holds]:
            raise Busy(f"{dataset} can't go: {held[0]} has a hold; zfs holds shows it, zfs release lifts it")
        self._driver.batch(destruction(info))

    async def publish(self, ident: BuildId) -> ResultInfo:
        """Record success: `@snap`. The caller has seen to it that nothing is written any more.

        Raises Missing: no such build is running; NoSpace.
        """
        build = self._running.get(ident)
        if build is None:
            raise Missing(f"{ident} is not being built")
        with self._claim(ident), trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._driver.snapshot, Snapshot(build.dataset, SNAP))
            del self._running[ident]
            info = self._results[ident] = ResultInfo(ident, build.base, build.dataset, time.time())
        self._events.append("published", str(ident), f"result {ident} is published")
        return info

    async def discard(self, ident: BuildId) -> None:
        """Record failure: nothing. A dataset that is still held is set aside and goes when it can."""
        build = self._running.get(ident)
        if build is None:
            raise Missing(f"{ident} is not being built")
        with self._claim(ident), trio.CancelScope(shield=True):
            aside = await trio.to_thread.run_sync(self._discard, build)
            del self._running[ident]
        if aside is not None:
            await self._reaper.destroy(aside)
        self._events.append("discarded", str(ident), f"build {ident} is discarded")

    def _discard(self, build: BuildInfo) -> Dataset | None:
        try:
            info = self._driver.info(build.dataset)
            if info is not None and not foreign(info):
                self._driver.batch(destruction(info))
                return None
        except Busy:
            pass
        except Missing:
            return None
        try:
            aside = junk(free_number(self._driver.list()), build.id)
            self._driver.rename(build.dataset, aside)
        except (StoreError, InvalidName):
            return build.dataset  # where it is, it is no result either
        return aside

    async def delete(self, ident: BuildId) -> None:
        """Delete a result. Snapshots that others made of it go with it, and an event says so.

        Raises Missing; Busy: a result or running build is based on it, or a snapshot of it is held.
        """
        info = self._results.get(ident)
        if info is None:
            raise Missing(f"there is no result {ident}")
        with self._claim(ident), trio.CancelScope(shield=True):
            before = await trio.to_thread.run_sync(self._driver.info, info.dataset)
            await trio.to_thread.run_sync(self._destroy, info.dataset)
            del self._results[ident]
        others = [str(each.snapshot) for each in (before.snapshots if before else ()) if not is_ours(each.snapshot)]
        with_them = f", and with it {', '.join(others)}" if others else ""
        self._events.append("deleted", str(ident), f"result {ident} is deleted{with_them}")


def give(driver: Driver, dataset: Dataset, owner: tuple[int, int], mode: int) -> None:
    """Make a new dataset's root somebody's. An unprivileged daemon can only make things for itself."""
    with viewing(driver, dataset, writable=True) as fd:
        if os.geteuid() == 0:
            os.fchown(fd, *owner)
        os.fchmod(fd, mode)

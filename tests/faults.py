"""Drivers that break: for tests of what a crash between two verbs leaves behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import trio

from zfsfs.driver import (
    DatasetInfo,
    Destroy,
    DestroySnapshot,
    Driver,
    Listing,
    Need,
    Promote,
    RenameSnapshot,
    SetProperty,
    Space,
    Step,
    TakeSnapshot,
    View,
    in_one_or_each,
    run_step,
)
from zfsfs.errors import Busy, NoSpace, ZfsfsError
from zfsfs.names import Dataset, Snapshot


@contextmanager
def no_room(driver: Driver, failure: type[ZfsfsError] = NoSpace) -> Iterator[None]:
    """Nothing moves from one group to another, as with a quota of ZFS that is exceeded, or keys of their own."""
    rename = driver.rename

    def refuse(old: Dataset, new: Dataset) -> None:
        if old.group != new.group:
            raise failure(f"{old} can't become {new}")
        rename(old, new)

    driver.rename = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del driver.rename


@contextmanager
def moving(driver: Driver) -> Iterator[trio.Event]:
    """Tells when a thread of trio's begins to rename something."""
    rename, begun = driver.rename, trio.Event()

    def tell(old: Dataset, new: Dataset) -> None:
        trio.from_thread.run_sync(begun.set)
        rename(old, new)

    driver.rename = tell  # type: ignore[method-assign]
    try:
        yield begun
    finally:
        del driver.rename


@contextmanager
def no_promotion(driver: Driver, failure: type[ZfsfsError] = Busy) -> Iterator[None]:
    """Somebody has mounted a snapshot that would have to move, or has one whose new name would be too long."""
    batch = driver.batch

    def refuse(dataset: Dataset) -> None:
        raise failure(f"{dataset} can't be promoted")

    def without(steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, Promote):
                refuse(step.dataset)
        batch(steps)

    driver.batch, driver.promote = without, refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        del driver.batch, driver.promote


class PowerCut(Exception):
    """From here on nothing reaches the storage any more."""


class Stopping(Driver):
    """Carries out `budget` changing verbs, then raises PowerCut on the next one and on every later call, reading ones
    included. Each step of a batch is a verb. `calls` is what was carried out, one string each; `cut` tells whether
    the budget ran out. Giving up (`close`, closing a view) always works: the death of a process does it too.
    """

    def __init__(self, driver: Driver, budget: int) -> None:
        self._driver = driver
        self._left = budget
        self.cut = False
        self.calls: list[str] = []
        self.name = driver.name
        self.stable_inodes = driver.stable_inodes
        self.cheap_clones = driver.cheap_clones

    def _alive(self) -> Driver:
        if self.cut:
            raise PowerCut
        return self._driver

    def _change(self, call: str) -> Driver:
        driver = self._alive()
        if self._left == 0:
            self.cut = True
            raise PowerCut
        self._left -= 1
        self.calls.append(call)
        return driver

    def lock(self) -> None:
        self._alive().lock()

    def close(self) -> None:
        self._driver.close()

    def prepare(self) -> None:
        self._alive().prepare()

    def list(self) -> Listing:
        return self._alive().list()

    def info(self, dataset: Dataset) -> DatasetInfo | None:
        return self._alive().info(dataset)

    def view(self, target: Dataset | Snapshot, *, writable: bool) -> View:
        return self._alive().view(target, writable=writable)

    def space(self, dataset: Dataset) -> Space:
        return self._alive().space(dataset)

    def written(self, dataset: Dataset, *, wait: bool) -> int | None:
        return self._alive().written(dataset, wait=wait)

    def needs(self, dataset: Dataset) -> Sequence[Need]:
        return self._alive().needs(dataset)

    def mounted_as(self, dataset: Dataset) -> str:
        return self._driver.mounted_as(dataset)

    def freeing(self) -> int:
        return self._alive().freeing()

    def trouble(self) -> str:
        return self._driver.trouble()

    def sync(self) -> None:
        self._alive().sync()

    def create(self, dataset: Dataset) -> None:
        self._change(f"create {dataset}").create(dataset)

    def clone(self, origin: Snapshot, dataset: Dataset) -> None:
        self._change(f"clone {origin} {dataset}").clone(origin, dataset)

    def rename(self, old: Dataset, new: Dataset) -> None:
        self._change(f"rename {old} {new}").rename(old, new)

    def snapshot(self, snapshot: Snapshot) -> None:
        self._step(TakeSnapshot(snapshot))

    def snapshot_each(self, snapshots: Sequence[Snapshot]) -> Sequence[ZfsfsError | None]:
        return in_one_or_each(None, self.snapshot, snapshots)

    def promote(self, dataset: Dataset) -> None:
        self._step(Promote(dataset))

    def destroy(self, dataset: Dataset) -> None:
        self._step(Destroy(dataset))

    def destroy_snapshot(self, snapshot: Snapshot, *, defer: bool) -> None:
        if defer:
            self._step(DestroySnapshot(snapshot))
        else:
            self._change(f"destroy_snapshot {snapshot}").destroy_snapshot(snapshot, defer=False)

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        self._step(RenameSnapshot(snapshot, name))

    def set_property(self, dataset: Dataset, name: str, value: str) -> None:
        self._step(SetProperty(dataset, name, value))

    def batch(self, steps: Sequence[Step]) -> None:
        for step in steps:
            self._step(step)

    def _step(self, step: Step) -> None:
        run_step(self._change(_shown(step)), step)


def _shown(step: Step) -> str:
    match step:
        case TakeSnapshot(snapshot):
            return f"snapshot {snapshot}"
        case Promote(dataset):
            return f"promote {dataset}"
        case Destroy(dataset):
            return f"destroy {dataset}"
        case DestroySnapshot(snapshot):
            return f"destroy_snapshot {snapshot} deferred"
        case RenameSnapshot(snapshot, name):
            return f"rename_snapshot {snapshot} {name}"
        case SetProperty(dataset, name, value):
            return f"set_property {dataset} {name}={value}"

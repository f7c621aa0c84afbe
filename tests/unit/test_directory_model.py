"""The directory driver against a model in memory: random verbs, the same answers, the same store."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from zfsfs.directory.driver import DirectoryDriver
from zfsfs.driver import viewing
from zfsfs.errors import Busy, DriverError, Exists, Missing, StoreError
from zfsfs.names import Dataset, Snapshot

DATASETS = st.sampled_from(
    [Dataset("result", "a"), Dataset("result", "b"), Dataset("cache", "c"), Dataset("cache-tmp", "1-c")]
)
NAMES = st.sampled_from(["snap", "new", "old"])
SNAPSHOTS = st.builds(Snapshot, DATASETS, NAMES)


@dataclass(eq=False)
class Frozen:
    owner: Head
    name: str
    text: str
    deferred: bool = False


@dataclass(eq=False)
class Head:
    text: str = ""
    origin: Frozen | None = None
    snapshots: list[Frozen] = field(default_factory=list)

    def named(self, name: str) -> Frozen | None:
        return next((each for each in self.snapshots if each.name == name), None)


class Model:
    """The verbs as zfs(8) tells them; each answers with the error's type or None."""

    def __init__(self) -> None:
        self.heads: dict[Dataset, Head] = {}

    def clones(self, frozen: Frozen) -> int:
        return sum(head.origin is frozen for head in self.heads.values())

    def find(self, snapshot: Snapshot) -> Frozen | None:
        head = self.heads.get(snapshot.dataset)
        return head and head.named(snapshot.name)

    def create(self, dataset: Dataset) -> type[StoreError] | None:
        if dataset in self.heads:
            return Exists
        self.heads[dataset] = Head()
        return None

    def clone(self, origin: Snapshot, dataset: Dataset) -> type[StoreError] | None:
        frozen = self.find(origin)
        if frozen is None:
            return Missing
        if dataset in self.heads:
            return Exists
        self.heads[dataset] = Head(frozen.text, frozen)
        return None

    def snapshot(self, snapshot: Snapshot) -> type[StoreError] | None:
        head = self.heads.get(snapshot.dataset)
        if head is None:
            return Missing
        if head.named(snapshot.name):
            return Exists
        head.snapshots.append(Frozen(head, snapshot.name, head.text))
        return None

    def promote(self, dataset: Dataset) -> type[StoreError] | None:
        head = self.heads.get(dataset)
        if head is None:
            return Missing
        origin = head.origin
        if origin is None:
            return DriverError
        parent = origin.owner
        count = parent.snapshots.index(origin) + 1
        moving, staying = parent.snapshots[:count], parent.snapshots[count:]
        if any(head.named(each.name) for each in moving):
            return Exists
        for each in moving:
            each.owner = head
        head.snapshots, parent.snapshots = moving + head.snapshots, staying
        head.origin, parent.origin = parent.origin, origin
        return None

    def rename(self, old: Dataset, new: Dataset) -> type[StoreError] | None:
        if old not in self.heads:
            return Missing
        if new in self.heads:
            return Exists
        self.heads[new] = self.heads.pop(old)
        return None

    def destroy(self, dataset: Dataset) -> type[StoreError] | None:
        head = self.heads.get(dataset)
        if head is None:
            return Missing
        if head.snapshots:
            return Busy
        del self.heads[dataset]
        if head.origin and head.origin.deferred and not self.clones(head.origin):
            head.origin.owner.snapshots.remove(head.origin)
        return None

    def destroy_snapshot(self, snapshot: Snapshot, defer: bool) -> type[StoreError] | None:
        frozen = self.find(snapshot)
        if frozen is None:
            return Missing
        if self.clones(frozen):
            frozen.deferred = frozen.deferred or defer
            return None if defer else Busy
        frozen.owner.snapshots.remove(frozen)
        return None

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> type[StoreError] | None:
        frozen = self.find(snapshot)
        if frozen is None:
            return Missing
        if frozen.owner.named(name):
            return Exists
        frozen.name = name
        return None


class Comparison(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.path = tempfile.mkdtemp()
        self.driver = DirectoryDriver(self.path)
        self.driver.prepare()
        self.model = Model()

    def teardown(self) -> None:
        self.driver.close()
        shutil.rmtree(self.path)

    def both(self, verb: str, *args: object, **more: object) -> None:
        expected = getattr(self.model, verb)(*args, *more.values())
        with nullcontext() if expected is None else pytest.raises(expected):
            getattr(self.driver, verb)(*args, **more)

    @rule(dataset=DATASETS)
    def create(self, dataset: Dataset) -> None:
        self.both("create", dataset)

    @precondition(lambda self: self.model.heads)
    @rule(data=st.data(), text=st.text("xyz", min_size=1, max_size=3))
    def write(self, data: st.DataObject, text: str) -> None:
        dataset = data.draw(st.sampled_from(sorted(self.model.heads)))
        self.model.heads[dataset].text = text
        with viewing(self.driver, dataset, writable=True) as root:
            fd = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=root)
            os.write(fd, text.encode())
            os.close(fd)

    @rule(snapshot=SNAPSHOTS)
    def snapshot(self, snapshot: Snapshot) -> None:
        self.both("snapshot", snapshot)

    @rule(origin=SNAPSHOTS, dataset=DATASETS)
    def clone(self, origin: Snapshot, dataset: Dataset) -> None:
        self.both("clone", origin, dataset)

    @rule(dataset=DATASETS)
    def promote(self, dataset: Dataset) -> None:
        self.both("promote", dataset)

    @rule(old=DATASETS, new=DATASETS)
    def rename(self, old: Dataset, new: Dataset) -> None:
        self.both("rename", old, new)

    @rule(dataset=DATASETS)
    def destroy(self, dataset: Dataset) -> None:
        self.both("destroy", dataset)

    @rule(snapshot=SNAPSHOTS, defer=st.booleans())
    def destroy_snapshot(self, snapshot: Snapshot, defer: bool) -> None:
        self.both("destroy_snapshot", snapshot, defer=defer)

    @rule(snapshot=SNAPSHOTS, name=NAMES)
    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        self.both("rename_snapshot", snapshot, name)

    @rule()
    def restart(self) -> None:
        self.driver.close()
        self.driver.lock()
        self.driver.prepare()

    def read(self, target: Dataset | Snapshot) -> str:
        with viewing(self.driver, target) as root:
            try:
                fd = os.open("file", os.O_RDONLY, dir_fd=root)
            except FileNotFoundError:
                return ""
            try:
                return os.read(fd, 100).decode()
            finally:
                os.close(fd)

    @invariant()
    def the_store_is_what_the_model_says(self) -> None:
        listing = {dataset: info for dataset, info in self.driver.list().items() if dataset.leaf}
        names = {id(head): dataset for dataset, head in self.model.heads.items()}
        assert set(listing) == set(self.model.heads)
        for dataset, head in self.model.heads.items():
            info = listing[dataset]
            origin = head.origin and Snapshot(names[id(head.origin.owner)], head.origin.name)
            assert info.origin == origin
            assert [(each.snapshot, each.clones, each.deferred) for each in info.snapshots] == [
                (Snapshot(dataset, each.name), self.model.clones(each), each.deferred) for each in head.snapshots
            ]
            assert self.read(dataset) == head.text
            for each in head.snapshots:
                assert self.read(Snapshot(dataset, each.name)) == each.text

    @invariant()
    def every_tree_belongs_to_someone(self) -> None:
        wanted = len(Dataset.GROUPS) + len(self.model.heads)
        trees = len(os.listdir(os.path.join(self.path, "trees")))
        assert trees <= wanted + sum(len(head.snapshots) for head in self.model.heads.values())
        assert trees >= wanted


Comparison.TestCase.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestModel = Comparison.TestCase

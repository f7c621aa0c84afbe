"""A driver in memory: the verbs on dictionaries, with contents as {file name: bytes}."""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field

from zfsfs.driver import DatasetInfo, Driver, Listing, Need, SnapshotInfo, Space, Step, View, in_one_or_each, run_step
from zfsfs.errors import Busy, DriverError, Exists, Missing, ZfsfsError
from zfsfs.names import Dataset, Snapshot

Contents = dict[str, bytes]


@dataclass(eq=False)
class FakeSnapshot:
    name: str
    guid: int
    contents: Contents
    owner: FakeHead
    deferred: bool = False
    holds: int = 0


@dataclass(eq=False)
class FakeHead:
    guid: int
    contents: Contents
    origin: FakeSnapshot | None = None
    snapshots: list[FakeSnapshot] = field(default_factory=list)
    properties: dict[str, str] = field(default_factory=dict)
    mode: int = 0o755
    views: int = 0


class FakeView(View):
    """A temporary directory with the contents; what was written is taken over when it is closed."""

    def __init__(self, head: FakeHead, contents: Contents, writable: bool) -> None:
        self._head, self._writable = head, writable
        self._directory = tempfile.TemporaryDirectory()
        for name, data in contents.items():
            with open(os.path.join(self._directory.name, name), "wb") as file:
                file.write(data)
        os.chmod(self._directory.name, head.mode)
        self._fd = os.open(self._directory.name, os.O_RDONLY | os.O_DIRECTORY)
        head.views += 1

    @property
    def fd(self) -> int:
        return self._fd

    def close(self) -> None:
        if self._fd < 0:
            return
        if self._writable:
            self._head.contents = {}
            for name in os.listdir(self._fd):
                with open(os.path.join(self._directory.name, name), "rb") as file:
                    self._head.contents[name] = file.read()
            self._head.mode = stat.S_IMODE(os.fstat(self._fd).st_mode)
        fd, self._fd = self._fd, -1
        os.close(fd)
        self._directory.cleanup()
        self._head.views -= 1


class FakeDriver(Driver):
    """See the module. `locked` tells whether somebody has the lock; a test may set holds on snapshots."""

    def __init__(self) -> None:
        self.name = "fake"
        self.stable_inodes = True
        self.cheap_clones = True
        self.locked = False
        self.heads: dict[Dataset, FakeHead] = {}
        self._guids = itertools.count(1)

    def lock(self) -> None:
        self.locked = True

    def close(self) -> None:
        self.locked = False

    def prepare(self) -> None:
        for group in Dataset.GROUPS:
            self.heads.setdefault(Dataset(group), FakeHead(next(self._guids), {}))

    def _head(self, dataset: Dataset) -> FakeHead:
        if dataset not in self.heads:
            raise Missing(f"{dataset} does not exist")
        return self.heads[dataset]

    def find(self, snapshot: Snapshot) -> FakeSnapshot:
        for each in self._head(snapshot.dataset).snapshots:
            if each.name == snapshot.name:
                return each
        raise Missing(f"{snapshot} does not exist")

    def _clones(self, snapshot: FakeSnapshot) -> int:
        return sum(head.origin is snapshot for head in self.heads.values())

    def list(self) -> Listing:
        where = {head: dataset for dataset, head in self.heads.items()}
        found = {}
        for dataset, head in self.heads.items():
            snapshots = tuple(
                SnapshotInfo(Snapshot(dataset, each.name), each.guid, self._clones(each), each.deferred, each.holds)
                for each in head.snapshots
            )
            origin = Snapshot(where[head.origin.owner], head.origin.name) if head.origin else None
            properties = dict(head.properties)
            found[dataset] = DatasetInfo(
                dataset, head.guid, origin, str(origin or ""), snapshots, properties, head.guid
            )
        return found

    def info(self, dataset: Dataset) -> DatasetInfo | None:
        return self.list().get(dataset)

    def _free(self, dataset: Dataset) -> None:
        if dataset in self.heads:
            raise Exists(f"{dataset} exists")

    def create(self, dataset: Dataset) -> None:
        self._free(dataset)
        self.heads[dataset] = FakeHead(next(self._guids), {})

    def clone(self, origin: Snapshot, dataset: Dataset) -> None:
        self._free(dataset)
        found = self.find(origin)
        if found.deferred:
            raise Missing(f"{origin} is going")
        self.heads[dataset] = FakeHead(next(self._guids), dict(found.contents), found, mode=found.owner.mode)

    def snapshot(self, snapshot: Snapshot) -> None:
        head = self._head(snapshot.dataset)
        if any(each.name == snapshot.name for each in head.snapshots):
            raise Exists(f"{snapshot} exists")
        head.snapshots.append(FakeSnapshot(snapshot.name, next(self._guids), dict(head.contents), head))

    def snapshot_each(self, snapshots: Sequence[Snapshot]) -> Sequence[ZfsfsError | None]:
        return in_one_or_each(None, self.snapshot, snapshots)

    def promote(self, dataset: Dataset) -> None:
        head = self._head(dataset)
        if head.origin is None:
            raise DriverError(f"{dataset} is no clone", 22)
        other = head.origin.owner
        last = other.snapshots.index(head.origin) + 1
        moving, rest = other.snapshots[:last], other.snapshots[last:]
        if {each.name for each in moving} & {each.name for each in head.snapshots}:
            raise Exists(f"{dataset} has a snapshot with the name of one that would move")
        other.snapshots, head.snapshots = rest, moving + head.snapshots
        for each in moving:
            each.owner = head
        head.origin, other.origin = other.origin, head.origin

    def rename(self, old: Dataset, new: Dataset) -> None:
        self._head(old)
        self._free(new)
        self.heads[new] = self.heads.pop(old)

    def destroy(self, dataset: Dataset) -> None:
        head = self._head(dataset)
        if head.snapshots or head.views:
            raise Busy(f"{dataset} has snapshots or is viewed")
        del self.heads[dataset]
        if head.origin is not None and head.origin.deferred:
            self._collect(head.origin)

    def _collect(self, snapshot: FakeSnapshot) -> None:
        if not self._clones(snapshot) and not snapshot.holds:
            snapshot.owner.snapshots.remove(snapshot)

    def destroy_snapshot(self, snapshot: Snapshot, *, defer: bool) -> None:
        found = self.find(snapshot)
        if (self._clones(found) or found.holds) and not defer:
            raise Busy(f"{snapshot} is needed")
        found.deferred = True
        self._collect(found)

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        found = self.find(snapshot)
        if any(each.name == name for each in found.owner.snapshots):
            raise Exists(f"{snapshot.dataset}@{name} exists")
        found.name = name

    def set_property(self, dataset: Dataset, name: str, value: str) -> None:
        self._head(dataset).properties[name] = value

    def batch(self, steps: Sequence[Step]) -> None:
        for step in steps:
            run_step(self, step)

    def view(self, target: Dataset | Snapshot, *, writable: bool) -> View:
        if isinstance(target, Snapshot):
            found = self.find(target)
            return FakeView(found.owner, found.contents, False)
        head = self._head(target)
        return FakeView(head, head.contents, writable)

    def space(self, dataset: Dataset) -> Space:
        size = sum(map(len, self._head(dataset).contents.values()))
        return Space(size, size)

    def written(self, dataset: Dataset, *, wait: bool) -> int | None:
        self._head(dataset)
        return None

    def needs(self, dataset: Dataset) -> Sequence[Need]:
        found = [
            Need("hold", Snapshot(dataset, each.name), "tag") for each in self._head(dataset).snapshots if each.holds
        ]
        for each in self.list().values():
            if each.origin is not None and each.origin.dataset == dataset:
                found.append(Need("clone", each.origin, str(each.dataset)))
        return found

    def mounted_as(self, dataset: Dataset) -> str:
        return ""

    def freeing(self) -> int:
        return 0

    def trouble(self) -> str:
        return ""

    def sync(self) -> None:
        pass

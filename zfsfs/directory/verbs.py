"""The dataset verbs as changes of the catalogue's rows, with ZFS's rules of who depends on whom.

Everything here runs inside one transaction of the catalogue, and raises before it has changed a row or leaves it to
the transaction to undo it. Trees are neither copied nor removed here: `Views.dead` and the rows decide that later.

Sources: zfs-promote(8), zfs-destroy(8), zfs-rename(8), and OpenZFS's dsl_dataset.c and dsl_destroy.c.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from zfsfs.directory.catalogue import Catalogue, Frozen, Head
from zfsfs.driver import Destroy, DestroySnapshot, Promote, RenameSnapshot, SetProperty, Step, TakeSnapshot
from zfsfs.errors import Busy, DriverError, Exists, Missing
from zfsfs.names import Dataset, Snapshot


@dataclass(slots=True)
class Views:
    """How many views there are of heads and snapshots (by row id), and how many users trees have."""

    heads: Counter[int] = field(default_factory=Counter)
    snapshots: Counter[int] = field(default_factory=Counter)
    trees: Counter[str] = field(default_factory=Counter)


class Verbs:
    """The verbs on rows. `unused` collects trees that may have lost their last row."""

    def __init__(self, rows: Catalogue, views: Views) -> None:
        self._rows = rows
        self._views = views
        self.unused: set[str] = set()

    def head(self, dataset: Dataset) -> Head:
        head = self._rows.head(dataset)
        if head is None:
            raise Missing(f"{dataset} does not exist")
        return head

    def frozen(self, snapshot: Snapshot) -> tuple[Head, Frozen]:
        head = self.head(snapshot.dataset)
        frozen = self._rows.frozen(head.id, snapshot.name)
        if frozen is None:
            raise Missing(f"{snapshot} does not exist")
        return head, frozen

    def room_for(self, dataset: Dataset) -> None:
        """Raises Exists, or Missing when there is no group to put it into."""
        if self._rows.head(dataset) is not None:
            raise Exists(f"{dataset} exists already")
        if dataset.leaf:
            self.head(Dataset(dataset.group))

    def snapshot(self, snapshot: Snapshot) -> None:
        head = self.head(snapshot.dataset)
        if self._rows.frozen(head.id, snapshot.name) is not None:
            raise Exists(f"{snapshot} exists already")
        self._rows.add_snapshot(head.id, snapshot.name, head.tree)

    def promote(self, dataset: Dataset) -> None:
        head = self.head(dataset)
        origin = None if head.origin is None else self._rows.frozen_by_id(head.origin)
        if origin is None:
            raise DriverError(f"{dataset} is not a clone", errno.EINVAL)
        parent = self._rows.head_by_id(origin.owner)
        moving = [each for each in self._rows.snapshots_of(parent.id) if each.id <= origin.id]
        for each in moving:
            if self._rows.frozen(head.id, each.name) is not None:
                raise Exists(f"{dataset} and {parent.dataset} both have a snapshot {each.name}")
            if self._views.snapshots[each.id]:
                raise Busy(f"{Snapshot(parent.dataset, each.name)} is in use")
        for each in moving:
            self._rows.change_snapshot(each.id, "dataset", head.id)
        self._rows.change_head(head.id, "origin", parent.origin)
        self._rows.change_head(parent.id, "origin", origin.id)

    def rename(self, old: Dataset, new: Dataset) -> None:
        head = self.head(old)
        self.room_for(new)
        if not old.leaf or not new.leaf:
            raise DriverError(f"{old} can't become {new}: groups keep their names", errno.EINVAL)
        self._rows.change_head(head.id, "name", str(new))

    def destroy(self, dataset: Dataset) -> None:
        head = self.head(dataset)
        if self._views.heads[head.id]:
            raise Busy(f"{dataset} is in use")
        if self._rows.snapshots_of(head.id):
            raise Busy(f"{dataset} has snapshots")
        if not dataset.leaf and self._rows.has_children(dataset.group):
            raise Busy(f"{dataset} has datasets in it")
        origin = None if head.origin is None else self._rows.frozen_by_id(head.origin)
        last = origin is not None and origin.deferred and self._rows.clones(origin.id) == 1
        if origin is not None and last and self._views.snapshots[origin.id]:
            raise Busy(f"{dataset}: its origin, which goes with it, is in use")
        self._rows.drop_head(head.id)
        self.unused.add(head.tree)
        if origin is not None and last:
            self._drop(origin)

    def destroy_snapshot(self, snapshot: Snapshot, *, defer: bool) -> None:
        _, frozen = self.frozen(snapshot)
        if self._views.snapshots[frozen.id]:
            raise Busy(f"{snapshot} is in use")
        clones = self._rows.clones(frozen.id)
        if clones and not defer:
            raise Busy(f"{snapshot} has {clones} dependent {'clone' if clones == 1 else 'clones'}")
        if clones:
            self._rows.change_snapshot(frozen.id, "deferred", 1)
        else:
            self._drop(frozen)

    def _drop(self, frozen: Frozen) -> None:
        self._rows.drop_snapshot(frozen.id)
        self.unused.add(frozen.tree)

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        head, frozen = self.frozen(snapshot)
        new = Snapshot(snapshot.dataset, name)
        if self._rows.frozen(head.id, name) is not None:
            raise Exists(f"{new} exists already")
        self._rows.change_snapshot(frozen.id, "name", name)

    def set_property(self, dataset: Dataset, name: str, value: str) -> None:
        head = self.head(dataset)
        if ":" not in name:
            raise DriverError(f"{dataset}: {name} is no user property, whose names have a ':'", errno.EINVAL)
        self._rows.set_property(head.id, name, value)

    def steps(self, steps: Sequence[Step]) -> None:
        for step in steps:
            match step:
                case TakeSnapshot(snapshot):
                    self.snapshot(snapshot)
                case Promote(dataset):
                    self.promote(dataset)
                case Destroy(dataset):
                    self.destroy(dataset)
                case DestroySnapshot(snapshot):
                    self.destroy_snapshot(snapshot, defer=True)
                case RenameSnapshot(snapshot, name):
                    self.rename_snapshot(snapshot, name)
                case SetProperty(dataset, name, value):
                    self.set_property(dataset, name, value)

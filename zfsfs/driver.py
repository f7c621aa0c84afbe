"""The dataset verbs: the seam between kinds of storage.

Contract, for every driver
- A verb is one atomic step: after a crash or a power cut it has happened or it hasn't. `batch` leaves a prefix.
- A verb that raises has changed nothing (again `batch`: a prefix of its steps).
- Verbs block; they are called from threads and may be called by several threads at once.
- What a verb has returned for is on stable storage, file contents that a snapshot holds included.
- Names are relative to the pool and of types that are valid by construction. A driver never touches a dataset
  that these types can't name, and never follows a name out of the pool.
- Errors: Exists, Missing, Busy, NoSpace, ReadOnly, Unavailable, InvalidName (too long), DriverError with the
  number for the rest. The message names the dataset and says what was wrong, without a traceback's words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from zfsfs.errors import ZfsfsError
from zfsfs.handover import Native
from zfsfs.names import Dataset, Snapshot

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot as `list` saw it. `clones` counts its dependent clones, wherever they are; `deferred` says that
    it is marked for destruction once nothing needs it; `holds` counts user holds (zfs-hold(8))."""

    snapshot: Snapshot
    guid: int
    clones: int = 0
    deferred: bool = False
    holds: int = 0


@dataclass(frozen=True, slots=True)
class DatasetInfo:
    """A dataset as `list` saw it. `snapshots` are oldest first, foreign ones included. `origin` is what it was
    cloned from: None for a full dataset, and for a clone whose origin lies outside the store see `origin_name`.
    `properties` are user properties set on this dataset itself (no inherited ones). `created`: seconds since the
    epoch. `guid` stays the same through renames and promotion."""

    dataset: Dataset
    guid: int
    origin: Snapshot | None = None
    origin_name: str = ""
    snapshots: tuple[SnapshotInfo, ...] = ()
    properties: Mapping[str, str] = field(default_factory=dict)
    created: int = 0

    def snapshot(self, name: str) -> SnapshotInfo | None:
        """Its snapshot of that name, if there is one."""
        return next((each for each in self.snapshots if each.snapshot.name == name), None)


Listing = Mapping[Dataset, DatasetInfo]


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes: `used` by this dataset alone and `referenced` by its contents, and what the pool or quota has."""

    used: int
    referenced: int


@dataclass(frozen=True, slots=True)
class Need:
    """What keeps a snapshot and is no process: a 'hold' (`name` is its tag) or a 'clone' (`name` is its full one)."""

    what: str
    snapshot: Snapshot
    name: str


# The steps of a batch.


@dataclass(frozen=True, slots=True)
class TakeSnapshot:
    """Snapshot a head."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Promote:
    """Let a clone and its origin's dataset change roles: the origin and all older snapshots move to the clone."""

    dataset: Dataset


@dataclass(frozen=True, slots=True)
class Destroy:
    """Destroy a head that has no snapshots."""

    dataset: Dataset


@dataclass(frozen=True, slots=True)
class DestroySnapshot:
    """Destroy a snapshot; if clones or holds need it, mark it: it goes with the last of them."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class RenameSnapshot:
    """Give a snapshot another name in its dataset."""

    snapshot: Snapshot
    name: str


@dataclass(frozen=True, slots=True)
class SetProperty:
    """Set a user property (a name with ':') of a head."""

    dataset: Dataset
    name: str
    value: str


Step = TakeSnapshot | Promote | Destroy | DestroySnapshot | RenameSnapshot | SetProperty


class View(Protocol):
    """A look into a dataset: `fd` is an open directory, its root. It has no path and is in no mount table.

    Holds: while it, or anything opened beneath it, is open, `destroy` of the dataset is Busy; renaming and
    promoting work, and what is open goes on working under the new name. `promote` is Busy while a snapshot
    that would move is viewed.
    """

    @property
    def fd(self) -> int:
        """The root, opened O_RDONLY | O_DIRECTORY; owned by the view."""

    def close(self) -> None:
        """Let go; a second call does nothing."""


class Driver(Protocol):
    """Storage of one pool."""

    #: What a person calls this store: the dataset, or the path of the directory.
    name: str
    #: Whether a clone's files have the inode numbers of its origin's.
    stable_inodes: bool
    #: Whether a clone costs next to nothing, however large its origin, and less than looking into it for the first
    #: time: some are then kept ready.
    cheap_clones: bool
    #: Whether each dataset is a filesystem of its own, with a device number of its own.
    own_filesystems: bool

    @property
    def set_id_goes_if_executable(self) -> bool:
        """Whether a write by others than root takes set-user-ID and set-group-ID bits from what anybody may execute,
        and from nothing else, as ZFS has it. Elsewhere Linux does it, by a rule of its own."""

    def lock(self) -> None:
        """Take the pool for this process, until `close` or its death. Raises Locked, with the pid of who has it,
        before anything was touched."""

    def close(self) -> None:
        """Give up the lock and whatever else is held; views must be closed before."""

    def prepare(self) -> None:
        """Make the groups that are missing; clear what a crash of the driver itself left (never a dataset)."""

    def list(self) -> Listing:
        """Every dataset of the store at one instant, the groups included."""

    def info(self, dataset: Dataset) -> DatasetInfo | None:
        """One dataset as `list` shows it; None when there is none. Cheap."""

    def create(self, dataset: Dataset) -> None:
        """An empty dataset; its root belongs to root:root (to the daemon's user, unprivileged), mode 0755.
        Raises Exists, NoSpace."""

    def clone(self, origin: Snapshot, dataset: Dataset) -> None:
        """A writable copy of a snapshot. Raises Missing (no origin), Exists, NoSpace."""

    def snapshot(self, snapshot: Snapshot) -> None:
        """Freeze a head's contents under a name, everything written before the call included. Raises Missing,
        Exists, NoSpace."""

    def snapshot_each(self, snapshots: Sequence[Snapshot]) -> Sequence[ZfsfsError | None]:
        """`snapshot` of each, of different datasets, at the price of one where the storage can: what it would have
        raised, in their order. One that can't be taken keeps no other from it."""

    def promote(self, dataset: Dataset) -> None:
        """See `Promote`. Raises Exists when both have a snapshot of one name, Missing, Busy; DriverError EINVAL
        for what is no clone."""

    def rename(self, old: Dataset, new: Dataset) -> None:
        """Give a dataset, its snapshots with it, another name. Open views stay good. Raises Missing, Exists."""

    def destroy(self, dataset: Dataset) -> None:
        """Destroy a head. Raises Busy: it is viewed or mounted, or it has snapshots; Missing. The space may come
        back later, see `freeing`."""

    def destroy_snapshot(self, snapshot: Snapshot, *, defer: bool) -> None:
        """Destroy a snapshot. With `defer` see `DestroySnapshot`; without, raises Busy while a clone or hold needs
        it. Raises Missing."""

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        """See `RenameSnapshot`. Raises Missing, Exists."""

    def set_property(self, dataset: Dataset, name: str, value: str) -> None:
        """See `SetProperty`. `name` contains ':'. Raises Missing."""

    def batch(self, steps: Sequence[Step]) -> None:
        """Several steps at the price of one, in this order. All are checked before the first is done where the
        storage can; an error or a crash leaves a prefix of them done. Raises what the verbs raise."""

    def view(self, target: Dataset | Snapshot, *, writable: bool) -> View:
        """Look into a head or (not writable) a snapshot. set-uid, devices and access times are off beneath.
        Raises Missing."""

    def native(self, target: Dataset | Snapshot, *, writable: bool) -> Native:
        """Something to mount that shows a head or (not writable) a snapshot. set-uid and devices are off beneath.
        Holds as a view does, for as long as it is mounted anywhere; the caller keeps a view of the same contents open
        meanwhile. Raises what `view` raises."""

    def space(self, dataset: Dataset) -> Space:
        """What a dataset uses. May walk it. Raises Missing."""

    def written(self, dataset: Dataset, *, wait: bool) -> int | None:
        """How many bytes on the disk a clone doesn't share with its origin. As long as nothing is written in a clone
        it stays the same, and never comes back to that once the least was. `wait`: what was written up to the call
        counts, which may take as long as a verb; else what has reached the disk. None where that can't be told.
        Raises Missing."""

    def needs(self, dataset: Dataset) -> Sequence[Need]:
        """What keeps the snapshots of a dataset from being destroyed, for people to read. Nothing when it is gone."""

    def mounted_as(self, dataset: Dataset) -> str:
        """What mount tables call a native mount of it; '' where it has no filesystem of its own."""

    def freeing(self) -> int:
        """Bytes of destroyed datasets that the pool is still giving back."""

    def trouble(self) -> str:
        """What is wrong with the storage that a person has to mend, and how; '' when nothing is known to be. From any
        thread; it never waits for the storage."""

    def sync(self) -> None:
        """Wait until everything done so far is on stable storage."""


def in_one_or_each(
    in_one: Callable[[Sequence[T]], None] | None, verb: Callable[[T], None], subjects: Sequence[T]
) -> Sequence[ZfsfsError | None]:
    """For verbs like `Driver.snapshot_each`: `in_one`, which does all or nothing, or else `verb` with each."""
    if in_one is not None and len(subjects) > 1:
        with suppress(ZfsfsError):
            in_one(subjects)
            return [None] * len(subjects)
    found: list[ZfsfsError | None] = []
    for each in subjects:
        try:
            verb(each)
            found.append(None)
        except ZfsfsError as failure:
            found.append(failure)
    return found


def run_step(driver: Driver, step: Step) -> None:
    """Carry out one step of a batch as a verb of its own."""
    match step:
        case TakeSnapshot(snapshot):
            driver.snapshot(snapshot)
        case Promote(dataset):
            driver.promote(dataset)
        case Destroy(dataset):
            driver.destroy(dataset)
        case DestroySnapshot(snapshot):
            driver.destroy_snapshot(snapshot, defer=True)
        case RenameSnapshot(snapshot, name):
            driver.rename_snapshot(snapshot, name)
        case SetProperty(dataset, name, value):
            driver.set_property(dataset, name, value)


@contextmanager
def viewing(driver: Driver, target: Dataset | Snapshot, *, writable: bool = False) -> Iterator[int]:
    """The root of a dataset or snapshot as a directory fd, for as long as the block runs."""
    view = driver.view(target, writable=writable)
    try:
        yield view.fd
    finally:
        view.close()

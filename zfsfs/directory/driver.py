"""The directory driver: the dataset verbs over plain directories, on any filesystem and without root.

A store is a directory with
- `catalogue.sqlite`: which datasets and snapshots there are (see catalogue.py); without it there is no store.
- `reserve`: see reserve.py.
- `lock`: locked by the process that serves the store (flock(2)), whose pid it holds.
- `trees/N-GROUP-LEAF`: the contents of a dataset or snapshot, named for the dataset that it was made for. A tree that
  no row refers to is left from a crash, and `prepare` removes it.

Every verb is one transaction; so is a batch: the prefix that an error leaves of it is the empty one.

A snapshot costs no copy: it shares its head's tree. A writable view of such a head gives the head a copy first, and a
clone is a copy. The order is always: copy, syncfs, transaction, removal of what nothing refers to any more.

    copy      a crash here leaves a tree without a row: prepare removes it
    commit    from here on the rows know the new tree, and it is on stable storage
    removal   a crash here leaves the old tree without a row: prepare removes it

Assumes
- Through a view that was opened before its head was snapshotted nothing is written after the snapshot: whoever needs
  to write on opens a new view.
- Who opens files beneath a view keeps the view as long: only views are counted, the kernel tells us of no file.

What the disk has lost syncfs(2) tells once, and not whose it was. So it is said of every head that was there then,
when that is snapshotted next.
"""

from __future__ import annotations

import errno
import itertools
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from weakref import WeakValueDictionary

from zfsfs import syscalls
from zfsfs.directory.catalogue import Catalogue, Frozen, Head
from zfsfs.directory.copying import copy_tree, remove_tree, tree_size
from zfsfs.directory.failures import translated
from zfsfs.directory.lock import take_lock
from zfsfs.directory.reserve import Reserve
from zfsfs.directory.verbs import Verbs, Views
from zfsfs.driver import DatasetInfo, Listing, Need, Space, Step, TakeSnapshot, View, in_one_or_each
from zfsfs.errors import Missing, Unavailable, ZfsfsError
from zfsfs.handover import Native
from zfsfs.names import Dataset, Snapshot
from zfsfs.native.mounts import mountable

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class DirectoryDriver:
    """Storage in the directory `path`. Nothing is touched before `lock` or `prepare`."""

    stable_inodes = False
    cheap_clones = False
    own_filesystems = False

    def __init__(self, path: str) -> None:
        self.name = path
        self._path = os.path.abspath(path)
        self._rows = Catalogue(self._path, path)
        self._reserve = Reserve(self._path)
        self._views = Views()
        # Guards the views, and that what a verb has checked of them holds until its transaction is done.
        self._guard = threading.RLock()
        self._unsharing = threading.Lock()
        self._syncing = threading.Lock()
        self._sources: WeakValueDictionary[str, threading.Lock] = WeakValueDictionary()
        self._lost: dict[int, int] = {}  # by head: the error of which it is still to be said
        self._numbers: Iterator[int] | None = None
        self._lock_fd = -1
        self._trees_fd = -1

    @property
    def set_id_goes_if_executable(self) -> bool:
        return syscalls.filesystem_magic(self._trees()) == syscalls.ZFS_MAGIC

    # The store

    def lock(self) -> None:
        if self._lock_fd >= 0:
            return
        self._lock_fd = take_lock(self._path, self.name)

    def close(self) -> None:
        with self._guard:
            self._rows.close()
            for fd in (self._trees_fd, self._lock_fd):
                if fd >= 0:
                    os.close(fd)
            self._trees_fd = self._lock_fd = -1

    def prepare(self) -> None:
        self.lock()
        # The catalogue first: with it the directory is a store, whatever else is still missing.
        self._reserve.helping(lambda: self._rows.open(make=True))
        with translated(self.name):
            trees = os.path.join(self._path, "trees")
            os.makedirs(trees, 0o700, exist_ok=True)
            os.chmod(trees, 0o700)
            with suppress(OSError):  # mostly there is none; what is made beneath must not inherit it
                os.removexattr(trees, "system.posix_acl_default")
        self._sweep()
        self._reserve.lay()
        for group in Dataset.GROUPS:
            if self.info(Dataset(group)) is None:
                self.create(Dataset(group))

    def _sweep(self) -> None:
        with self._guard, translated(self.name):
            with self._rows.transaction(self.name):
                kept = self._rows.trees() | set(self._views.trees)
            for name in set(os.listdir(self._trees())) - kept:
                with suppress(OSError):  # it takes space and harms nothing; the next start tries again
                    remove_tree(self._trees(), name)

    def _trees(self) -> int:
        with self._guard:
            if self._trees_fd < 0:
                if not self._rows.exists():
                    raise Unavailable(f"{self.name} holds no zfsfs store")
                self._trees_fd = os.open(os.path.join(self._path, "trees"), _DIRECTORY)
            return self._trees_fd

    def _new_tree(self, dataset: Dataset) -> str:
        with self._guard:
            if self._numbers is None:
                used = (re.match(r"\d+", name) for name in os.listdir(self._trees()))
                self._numbers = itertools.count(1 + max((int(each[0]) for each in used if each), default=0))
            return f"{next(self._numbers)}-{str(dataset).replace('/', '-')}"[:200]

    # What is there

    def list(self) -> Listing:
        with self._rows.transaction(self.name):
            return {head.dataset: self._rows.info(head) for head in self._rows.heads()}

    def info(self, dataset: Dataset) -> DatasetInfo | None:
        with self._rows.transaction(dataset):
            head = self._rows.head(dataset)
            return None if head is None else self._rows.info(head)

    def space(self, dataset: Dataset) -> Space:
        with self._verb(dataset) as verbs:
            tree = verbs.head(dataset).tree
            shared = bool(self._rows.sharing(tree))
            self._views.trees[tree] += 1
        try:
            with translated(dataset):
                size = tree_size(self._trees(), tree)
        finally:
            self._release(tree)
        return Space(used=0 if shared else size, referenced=size)

    def written(self, dataset: Dataset, *, wait: bool) -> int | None:
        # All that could tell are the files' times, and clocks are set.
        with self._verb(dataset) as verbs:
            verbs.head(dataset)
        return None

    def needs(self, dataset: Dataset) -> Sequence[Need]:
        listing = self.list()
        return [
            Need("clone", each.origin, str(each.dataset))
            for each in listing.values()
            if each.origin is not None and each.origin.dataset == dataset
        ]

    def mounted_as(self, dataset: Dataset) -> str:
        return ""

    def freeing(self) -> int:
        return 0

    def trouble(self) -> str:
        return ""

    def sync(self) -> None:
        with translated(self.name):
            self._flush()

    def _flush(self) -> None:
        # One after another: who comes second gets no error, and must find what the first has noted.
        with self._syncing:
            try:
                syscalls.syncfs(self._trees())
            except OSError as failure:
                with self._rows.transaction(self.name):
                    self._lost |= dict.fromkeys((each.id for each in self._rows.heads()), failure.errno or errno.EIO)
                raise

    # Verbs

    @contextmanager
    def _verb(self, what: object) -> Iterator[Verbs]:
        """One transaction; the trees that nothing refers to after it are removed."""
        verbs = Verbs(self._rows, self._views)
        with self._guard, translated(what), self._rows.transaction(what):
            yield verbs
            unused = [tree for tree in verbs.unused if not self._rows.refers_to(tree)]
        for tree in unused:
            if not self._views.trees[tree]:
                self._remove(tree)

    def _remove(self, tree: str) -> None:
        with suppress(OSError):  # the verb is done; what is left has no row, and prepare removes it
            remove_tree(self._trees(), tree)
            self._reserve.lay()

    def _release(self, tree: str) -> None:
        """One user of a tree less; the last one removes it when no row refers to it any more."""
        with self._guard:
            self._views.trees[tree] -= 1
            if self._views.trees[tree] > 0:
                return
            del self._views.trees[tree]
            with self._rows.transaction(tree):
                referred = self._rows.refers_to(tree)
        if not referred:
            self._remove(tree)

    @contextmanager
    def _fresh(self, dataset: Dataset) -> Iterator[str]:
        """A name for a tree that is being made; what was made is removed again when the block fails."""
        tree = self._new_tree(dataset)
        with self._guard:
            self._views.trees[tree] += 1
        try:
            yield tree
        finally:
            self._release(tree)

    def create(self, dataset: Dataset) -> None:
        with self._verb(dataset) as verbs:
            verbs.room_for(dataset)
        with self._fresh(dataset) as tree:
            with translated(dataset):
                os.mkdir(tree, 0o755, dir_fd=self._trees())
                fd = os.open(tree, _DIRECTORY, dir_fd=self._trees())
                try:
                    os.fchmod(fd, 0o755)  # whatever the umask
                    os.fsync(fd)
                finally:
                    os.close(fd)
                os.fsync(self._trees())
            with self._verb(dataset) as verbs:
                verbs.room_for(dataset)
                self._rows.add_head(dataset, tree, None)

    def clone(self, origin: Snapshot, dataset: Dataset) -> None:
        with self._verb(dataset) as verbs:
            _, frozen = verbs.frozen(origin)
            verbs.room_for(dataset)
            self._views.trees[frozen.tree] += 1
        try:
            with self._fresh(dataset) as tree:
                self._copy(dataset, frozen.tree, tree)
                with self._verb(dataset) as verbs:
                    if self._rows.frozen_by_id(frozen.id) is None:
                        raise Missing(f"{origin} does not exist")
                    verbs.room_for(dataset)
                    self._rows.add_head(dataset, tree, frozen.id)
        finally:
            self._release(frozen.tree)

    def _copy(self, dataset: Dataset, source: str, target: str) -> None:
        with translated(dataset):
            with self._alone(source):
                copy_tree(self._trees(), source, target)
            self._flush()

    def _alone(self, source: str) -> AbstractContextManager[object]:
        # Without root a copy makes readable for its time what we may not read: another would take that for its mode.
        if os.geteuid() == 0:
            return nullcontext()
        with self._guard:
            return self._sources.setdefault(source, threading.Lock())

    def snapshot(self, snapshot: Snapshot) -> None:
        self.batch([TakeSnapshot(snapshot)])

    def snapshot_each(self, snapshots: Sequence[Snapshot]) -> Sequence[ZfsfsError | None]:
        def in_one(snapshots: Sequence[Snapshot]) -> None:
            self.batch([TakeSnapshot(each) for each in snapshots])  # one transaction

        return in_one_or_each(in_one, self.snapshot, snapshots)

    def promote(self, dataset: Dataset) -> None:
        with self._verb(dataset) as verbs:
            verbs.promote(dataset)

    def rename(self, old: Dataset, new: Dataset) -> None:
        self._reserve.helping(lambda: self._run(old, lambda verbs: verbs.rename(old, new)))

    def destroy(self, dataset: Dataset) -> None:
        self._reserve.helping(lambda: self._run(dataset, lambda verbs: verbs.destroy(dataset)))

    def destroy_snapshot(self, snapshot: Snapshot, *, defer: bool) -> None:
        self._reserve.helping(
            lambda: self._run(snapshot, lambda verbs: verbs.destroy_snapshot(snapshot, defer=defer))
        )

    def _run(self, what: object, verb: Callable[[Verbs], None]) -> None:
        with self._verb(what) as verbs:
            verb(verbs)

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        with self._verb(snapshot) as verbs:
            verbs.rename_snapshot(snapshot, name)

    def set_property(self, dataset: Dataset, name: str, value: str) -> None:
        with self._verb(dataset) as verbs:
            verbs.set_property(dataset, name, value)

    def batch(self, steps: Sequence[Step]) -> None:
        if any(isinstance(step, TakeSnapshot) for step in steps):
            self.sync()  # a snapshot that is in the catalogue has its contents on stable storage
            self._run(self.name, lambda verbs: self._take(verbs, steps))
        else:
            self._reserve.helping(lambda: self._run(self.name, lambda verbs: verbs.steps(steps)))

    def _take(self, verbs: Verbs, steps: Sequence[Step]) -> None:
        for dataset in [each.snapshot.dataset for each in steps if isinstance(each, TakeSnapshot)]:
            if number := self._lost.pop(verbs.head(dataset).id, 0):
                raise OSError(number, "something that was written is lost")
        verbs.steps(steps)

    # Views

    def view(self, target: Dataset | Snapshot, *, writable: bool) -> View:
        row: Head | Frozen
        with self._verb(target) as verbs:
            if isinstance(target, Snapshot):
                _, row = verbs.frozen(target)
                counter = self._views.snapshots
            else:
                row = verbs.head(target)
                counter = self._views.heads
            counter[row.id] += 1  # from here on it can't be destroyed
        try:
            if isinstance(target, Dataset) and writable:
                self._unshare(target, row.id)
            return self._open(target, row.id)
        except BaseException:
            self._let_go(target, row.id)
            raise

    def native(self, target: Dataset | Snapshot, *, writable: bool) -> Native:
        # A mount is counted by nobody here: the caller's view is what holds.
        view = self.view(target, writable=writable)
        try:
            with translated(target):
                return mountable(view.fd, read_only=not writable)
        finally:
            view.close()

    def _open(self, target: Dataset | Snapshot, number: int) -> View:
        with self._guard, self._verb(target):
            row = self._rows.head_by_id(number) if isinstance(target, Dataset) else self._rows.frozen_by_id(number)
            assert row is not None
            fd = os.open(row.tree, _DIRECTORY, dir_fd=self._trees())
            self._views.trees[row.tree] += 1
        return _View(self, target, number, row.tree, fd)

    def _unshare(self, dataset: Dataset, number: int) -> None:
        """Give a head a tree of its own."""
        if not self._shared(dataset, number)[1]:
            return
        with self._unsharing:  # one at a time, so that no copy is made twice
            tree, sharing = self._shared(dataset, number)
            if not sharing:
                return
            with self._guard:
                self._views.trees[tree] += 1
            try:
                with self._fresh(dataset) as own:
                    self._copy(dataset, tree, own)
                    with self._verb(dataset):
                        # While one of those snapshots is there, nobody has written to the tree.
                        if sharing & self._rows.sharing(tree):
                            self._rows.change_head(number, "tree", own)
            finally:
                self._release(tree)

    def _shared(self, dataset: Dataset, number: int) -> tuple[str, set[int]]:
        with self._verb(dataset):
            tree = self._rows.head_by_id(number).tree
            return tree, self._rows.sharing(tree)

    def _let_go(self, target: Dataset | Snapshot, number: int, tree: str = "") -> None:
        with self._guard:
            counter = self._views.heads if isinstance(target, Dataset) else self._views.snapshots
            counter[number] -= 1
            if not counter[number]:
                del counter[number]
        if tree:
            self._release(tree)


class _View:
    """See zfsfs.driver.View."""

    def __init__(self, driver: DirectoryDriver, target: Dataset | Snapshot, number: int, tree: str, fd: int) -> None:
        self.fd = fd
        self._driver = driver
        self._once = threading.Lock()
        self._target, self._number, self._tree = target, number, tree

    def close(self) -> None:
        with self._once:
            fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)
            self._driver._let_go(self._target, self._number, self._tree)

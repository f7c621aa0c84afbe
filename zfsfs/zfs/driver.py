"""The dataset verbs on OpenZFS, through libzfs_core and detached mounts; no child process but in `freeing`.

Guarantees: each verb is one call into the kernel's ZFS that changes something, and returns when its transaction
group is on the disk (libzfs_core's promise), so a crash falls between verbs. The lock is an flock(2) on
POOL/state/lock, through a mount that no one else sees: the kernel drops it with the process.

Assumes: who maps a file of a dataset natively (mmap(2)) and wants those pages in a snapshot calls msync(2) or
syncfs(2) first. What write(2) has taken is in ZFS, and a snapshot holds it.

Sources: zfs-program(8), zfsprops(7), libzfs_core.h, and pyzfs's docstrings; measured on OpenZFS 2.3.9.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Any

from zfsfs import locking
from zfsfs.driver import (
    DatasetInfo,
    Destroy,
    Listing,
    Need,
    Promote,
    RenameSnapshot,
    SetProperty,
    Space,
    Step,
    View,
    in_one_or_each,
)
from zfsfs.errors import Busy, Exists, Missing, ZfsfsError
from zfsfs.handover import Native
from zfsfs.names import Dataset, PoolName, Snapshot, shown
from zfsfs.zfs import changes, health, library, programs
from zfsfs.zfs.views import look_into, mount

# Groups stay out of every mount table, and so does what is made in them. No directory lists a .zfs, at which rm -r
# would stop, and names are their bytes, as the kernel's cache of them has it. Numbers as zfs.h has them:
# canmount=off, acltype=posix, xattr=sa, atime=off, snapdir=hidden, casesensitivity=sensitive, normalization=none,
# utf8only=off.
_GROUP_PROPERTIES = {
    b"mountpoint": b"none", b"canmount": 0, b"acltype": 1, b"xattr": 2, b"atime": 0, b"snapdir": 0,
    b"casesensitivity": 0, b"normalization": 0, b"utf8only": 0,
}  # fmt: skip
_LOCK = "lock"
_SNAPSHOT_TRIES = 5


class ZfsDriver:
    """Storage of a pool or dataset `name`. Raises InvalidName, or Unavailable with what to install or do."""

    stable_inodes = True
    cheap_clones = True
    own_filesystems = True
    set_id_goes_if_executable = True  # zfs_clear_setid_bits_if_necessary in OpenZFS's zfs_vnops.c

    def __init__(self, name: str) -> None:
        self._pool = PoolName(name)
        self.name = name
        self._core = library.load()
        library.check_available(self._core, name)
        self._held: ExitStack | None = None
        self._health_is_told = health.is_told(name)
        self._trouble = ""

    # The lock and the groups.

    def lock(self) -> None:
        """See `Driver.lock`. POOL/state is made when it is missing."""
        state = Dataset("state")
        if not self._exists(self._pool.full(state)):
            self._create_group(state)
        with ExitStack() as stack:
            view = self.view(state, writable=True)
            stack.callback(view.close)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            try:
                fd = os.open(_LOCK, flags, 0o600, dir_fd=view.fd)
            except OSError as error:
                raise library.meaning(error.errno or errno.EIO, f"{self._pool.full(state)}: the lock file") from error
            stack.callback(os.close, fd)
            locking.take(fd, self.name)
            self._held = stack.pop_all()

    def close(self) -> None:
        """See `Driver.close`."""
        held, self._held = self._held, None
        if held is not None:
            held.close()

    def prepare(self) -> None:
        """See `Driver.prepare`. Groups that are there keep the properties that they have."""
        for group in Dataset.GROUPS:
            if not self._exists(self._pool.full(Dataset(group))):
                self._create_group(Dataset(group))

    def _create_group(self, group: Dataset) -> None:
        full = self._pool.full(group)
        with suppress(Exists):
            self._call(self._core.lzc_create, full, full.encode(), "zfs", dict(_GROUP_PROPERTIES))

    # Reading.

    def list(self) -> Listing:
        """See `Driver.list`."""
        return self._read([Dataset(group) for group in Dataset.GROUPS], children=True)

    def info(self, dataset: Dataset) -> DatasetInfo | None:
        """See `Driver.info`."""
        return self._read([dataset], children=False).get(dataset)

    def space(self, dataset: Dataset) -> Space:
        """See `Driver.space`. The numbers are those of the last transaction group that was written."""
        full = self._pool.full(dataset)
        query = self._core.lzc_channel_program_nosync
        found = self._program(query, programs.SPACE, [full.encode()], full, programs.SMALL)
        if found is None:
            raise Missing(f"{full} does not exist")
        return Space(found[b"used"], found[b"referenced"])

    def written(self, dataset: Dataset, *, wait: bool) -> int | None:
        """See `Driver.written`: the property of that name (zfsprops(7)). A fresh clone may have its own object set's
        block, where the origin had an intent log; the least change makes more blocks. A program that syncs runs
        when those of its transaction group are on the disk."""
        full = self._pool.full(dataset)
        run = self._core.lzc_channel_program if wait else self._core.lzc_channel_program_nosync
        found = self._program(run, programs.WRITTEN, [full.encode()], full, programs.SMALL)
        if found is None:
            raise Missing(f"{full} does not exist")
        # It counts from the last snapshot on: a clone's own hide what was written before them.
        return found[b"written"] if found[b"origin"] and not found[b"own"] else None

    def needs(self, dataset: Dataset) -> Sequence[Need]:
        """See `Driver.needs`."""
        info = self.info(dataset)
        found = []
        for each in info.snapshots if info else ():
            full = self._pool.full(each.snapshot)
            gone = {errno.ENOENT: lambda what: Missing(f"{what} is gone")}
            with suppress(Missing):
                tags = self._call(self._core.lzc_get_holds, full, full.encode(), meanings=gone) if each.holds else {}
                found += [Need("hold", each.snapshot, shown(tag)) for tag in tags]
            if each.clones:
                query = self._core.lzc_channel_program_nosync
                clones = self._program(query, programs.CLONES, [full.encode()], full, programs.SMALL)
                found += [Need("clone", each.snapshot, shown(name)) for name in clones.values()]
        return found

    def mounted_as(self, dataset: Dataset) -> str:
        """See `Driver.mounted_as`."""
        return self._pool.full(dataset)

    def freeing(self) -> int:
        """See `Driver.freeing`. libzfs_core has no call for a pool's properties, so this asks zpool(8)."""
        pool = self._pool.name.partition("/")[0]
        try:
            done = subprocess.run(
                ["zpool", "get", "-Hpo", "value", "freeing", pool], stdin=subprocess.DEVNULL, capture_output=True
            )
        except OSError as error:
            raise library.meaning(error.errno or errno.EIO, "zpool") from error
        if done.returncode != 0 or not done.stdout.strip().isdigit():
            raise library.meaning(errno.EIO, pool, None, f"zpool get: {done.stderr.decode(errors='replace').strip()}")
        return int(done.stdout)

    def view(self, target: Dataset | Snapshot, *, writable: bool) -> View:
        """See `Driver.view`."""
        return look_into(self._pool.full(target), writable=writable)

    def native(self, target: Dataset | Snapshot, *, writable: bool) -> Native:
        """See `Driver.native`."""
        return Native(mount(self._pool.full(target), writable=writable), detached=True, read_only=not writable)

    # Changing.

    def create(self, dataset: Dataset) -> None:
        """See `Driver.create`."""
        full = self._pool.full(dataset)
        self._call(self._core.lzc_create, full, full.encode(), "zfs")

    def clone(self, origin: Snapshot, dataset: Dataset) -> None:
        """See `Driver.clone`."""
        full, source = self._pool.full(dataset), self._pool.full(origin)
        missing = {errno.ENOENT: lambda what: Missing(f"{source} does not exist, so it has no clone {what}")}
        self._call(self._core.lzc_clone, full, full.encode(), source.encode(), meanings=missing)

    def snapshot(self, snapshot: Snapshot) -> None:
        """See `Driver.snapshot`; for pages of mapped files see the module's words."""
        full = self._pool.full(snapshot)
        self._call(self._core.lzc_snapshot, full, [full.encode()], meanings=changes.TAKE_SNAPSHOT)

    def snapshot_each(self, snapshots: Sequence[Snapshot]) -> Sequence[ZfsfsError | None]:
        """See `Driver.snapshot_each`: lzc_snapshot takes all of them in one transaction group, or none."""

        def in_one(snapshots: Sequence[Snapshot]) -> None:
            self._call(self._core.lzc_snapshot, self.name, [self._pool.full(each).encode() for each in snapshots])

        return in_one_or_each(in_one, self.snapshot, snapshots)

    def promote(self, dataset: Dataset) -> None:
        """See `Driver.promote`."""
        # As a program, not lzc_promote: pyzfs drops the names of the snapshots that are in the way.
        self.batch([Promote(dataset)])

    def rename(self, old: Dataset, new: Dataset) -> None:
        """See `Driver.rename`."""
        source, target = self._pool.full(old), self._pool.full(new)
        exists = {errno.EEXIST: lambda _: Exists(f"{target} exists")}
        self._call(self._core.lzc_rename, source, source.encode(), target.encode(), meanings=exists)

    def destroy(self, dataset: Dataset) -> None:
        """See `Driver.destroy`."""
        full = self._pool.full(dataset)
        try:
            self._call(self._core.lzc_destroy, full, full.encode(), meanings=changes.DESTROY)
        except Busy as error:
            raise self._why_busy(dataset, error) from error

    def destroy_snapshot(self, snapshot: Snapshot, *, defer: bool) -> None:
        """See `Driver.destroy_snapshot`."""
        full = self._pool.full(snapshot)
        # To lzc_destroy_snaps what isn't there is destroyed already. It first unmounts what .zfs/snapshot has
        # mounted by itself, which no channel program does.
        if not self._exists(full):
            raise Missing(f"{full} does not exist")
        self._call(self._core.lzc_destroy_snaps, full, [full.encode()], defer, meanings=changes.DESTROY_SNAPSHOT)

    def rename_snapshot(self, snapshot: Snapshot, name: str) -> None:
        """See `Driver.rename_snapshot`."""
        self.batch([RenameSnapshot(snapshot, name)])

    def set_property(self, dataset: Dataset, name: str, value: str) -> None:
        """See `Driver.set_property`."""
        self.batch([SetProperty(dataset, name, value)])

    def batch(self, steps: Sequence[Step]) -> None:
        """See `Driver.batch`: one channel program, so a crash keeps all steps or none."""
        tries = _SNAPSHOT_TRIES
        while steps:
            failure = self._run_batch(steps)
            if failure is None:
                return
            steps, tries = steps[failure.step :], tries - 1
            # A dataset gets one snapshot in a transaction group; the next group takes the rest.
            if failure.errno != errno.EAGAIN or not tries:
                raise self._explain(steps[0], failure)

    def trouble(self) -> str:
        """See `Driver.trouble`."""
        if self._health_is_told:
            with suppress(OSError):  # what was true a moment ago is the best answer
                self._trouble = health.trouble(self.name)
        return self._trouble

    def sync(self) -> None:
        """See `Driver.sync`: waits for the pool's transaction groups."""
        pool = self._pool.name.partition("/")[0]
        self._call(self._core.lzc_sync, pool, pool.encode())

    # Calling the library.

    def _run_batch(self, steps: Sequence[Step]) -> changes.Failure | None:
        argv = changes.encode(self._pool, steps)
        about = f"{self.name}: changes beginning with {changes.subject(self._pool, steps[0])}"
        done = self._program(self._core.lzc_channel_program, changes.PROGRAM, argv, about, programs.SMALL)
        if not done[b"errno"]:
            return None
        return changes.Failure(done[b"step"], done[b"errno"], done.get(b"details", b"").decode())

    def _explain(self, step: Step, failure: changes.Failure) -> ZfsfsError:
        what = changes.subject(self._pool, step)
        error = library.meaning(failure.errno, what, changes.meanings(self._pool, step, failure.details))
        if isinstance(step, Destroy) and isinstance(error, Busy):
            return self._why_busy(step.dataset, error)
        return error

    def _why_busy(self, dataset: Dataset, error: Busy) -> Busy:
        """A Busy that names the snapshots, where those are why a head can't be destroyed."""
        info = self.info(dataset)
        if info is None or not info.snapshots:
            return error
        names = ", ".join(each.snapshot.name for each in info.snapshots)
        return Busy(f"{self._pool.full(dataset)} has snapshots: {names}")

    def _read(self, datasets: Sequence[Dataset], *, children: bool) -> dict[Dataset, DatasetInfo]:
        argv = programs.reading(self._pool, datasets, children=children)
        memory = programs.MEMORY if children else programs.SMALL
        found = self._program(self._core.lzc_channel_program_nosync, programs.READ, argv, self.name, memory)
        return programs.parse_listing(self._pool, found)

    def _program(self, run: Any, text: bytes, argv: Any, about: str, memory: int) -> Any:
        pool = self._pool.name.partition("/")[0].encode()
        return self._call(run, about, pool, text, programs.INSTRUCTIONS, memory, argv)

    def _exists(self, full: str) -> bool:
        return bool(self._call(self._core.lzc_exists, full, full.encode()))

    def _call(self, verb: Any, what: str, *arguments: Any, meanings: library.Meanings | None = None) -> Any:
        return library.call(self._core, verb, what, *arguments, meanings=meanings)

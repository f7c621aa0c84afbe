"""Open files and directories of areas, done on the dataset beneath: opening, reading, writing, closing.

Guarantees: what is open counts in its area, its node and its user until it is closed; an area knows whether anything
was written, by us or by the kernel itself (backing.py).
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress

from zfsfs.fs import mapped
from zfsfs.fs.area import Area
from zfsfs.fs.backing import Backings
from zfsfs.fs.caller import Caller, error, magic
from zfsfs.fs.handles import DirectoryHandle, FileHandle
from zfsfs.fs.mapped import traces
from zfsfs.fs.nodes import Node, NodeTable
from zfsfs.fs.users import FILE, Users
from zfsfs.fs.workers import Workers

#: Reading through us moves no times, as results promise. Who isn't root may ask for that of own files only.
NOATIME = os.O_NOATIME if os.geteuid() == 0 else 0
#: The coarsest clock that filesystems date changes with, and some more; in ns.
_TICK = 100_000_000
SET_ID = stat.S_ISUID | stat.S_ISGID


class OpenFiles:
    """See the module. What is open is in `handles`, by number; `users` counts it."""

    def __init__(self, table: NodeTable, workers: Workers, users: Users) -> None:
        self.table = table
        self.users = users
        self.descriptors = table.descriptors
        table.outlive, table.mapped = self.outlive, self.mapped
        self.workers = workers
        self.descriptors.close_heavy = lambda fd: workers.put(lambda: os.close(fd), writes=True)
        self.handles: dict[int, FileHandle | DirectoryHandle] = {}
        self.writers: dict[Node, int] = {}  # files that are open to be written, and how often
        #: Of files that are open and what their areas show: who has opened each last. The short way to them.
        self._opened: dict[Node, FileHandle] = {}
        #: Where the kernel reads and writes by itself; and how it is told that a file's attributes have changed.
        self.backings: Backings | None = None
        self.outdated: Callable[[int], None] = lambda ino: None
        self.full: Callable[[int], object] = lambda number: None
        self.stopped: Callable[[], object] = lambda: False  # whether the storage would let everybody wait
        self.set_id_goes_if_executable = False  # see Driver
        #: Files that were written into, and what time the kernel believes them to have, see `_timed`.
        self._written: dict[Node, int] = {}

    def changing(self, area: Area, caller: Caller | None = None) -> None:
        """Something in an area is about to be changed. Raises what `may_change` does."""
        may_change(area, caller)
        area.changed = area.touched = True

    def open(self, node: Node, flags: int, caller: Caller) -> FileHandle:
        """open(2). The writeback cache reads what it writes into, so a file open for writing can be read, too."""
        with self.users.taking(FILE, caller.uid):
            return self._open(node, flags, caller)

    def _open(self, node: Node, flags: int, caller: Caller) -> FileHandle:
        writing = is_writing(flags)
        if writing or flags & os.O_TRUNC:
            may_change(node.area, caller)
            if flags & os.O_TRUNC:
                node.area.changed = True
        fd = self._open_by_name(node, flags)
        if fd < 0:
            path = magic(self.descriptors.of(node))
            try:
                fd = os.open(path, open_flags(flags))
            except PermissionError:
                fd = os.open(path, open_flags(flags, readable=False))
        try:
            if flags & os.O_TRUNC and caller.uid:
                clear_set_id(fd, caller)
            guest = not writing and _is_guest(node.area, caller)
            maps = maps_to_write(flags)
            handle = FileHandle(fd, node, writing, maps, uid=caller.uid, guest=guest, direct=node.area.frozen)
            if handle.direct:
                self.table.pin(node)  # its name may go any time
        except BaseException:
            os.close(fd)
            raise
        return self.opened(handle)

    def _open_by_name(self, node: Node, flags: int) -> int:
        """The short way, for what is still found there; -1 for the long one."""
        if node.name is None or node.parent is None or node.kind != stat.S_IFREG or flags & os.O_TRUNC:
            return -1
        try:
            fd = os.open(node.name, open_flags(flags) | os.O_NOFOLLOW, dir_fd=self.descriptors.of(node.parent))
        except OSError:
            return -1
        if os.fstat(fd).st_ino != node.st_ino:
            os.close(fd)
            return -1
        return fd

    def opened(self, handle: FileHandle) -> FileHandle:
        """A file was opened."""
        self.handles[handle.fd] = handle
        node = handle.node
        self._opened[node] = handle
        node.opens += 1
        if handle.writing:
            self.writers[node] = self.writers.get(node, 0) + 1
        node.told = False  # reading it moves a time, if only in the kernel
        node.area.mappable |= handle.maps
        node.area.opened(handle.writing, handle.guest)
        if self.backings is not None and not handle.direct:
            # What is read-only is cached by the kernel instead: it is to be read without a trace, and has no writers.
            wanted = node.kind == stat.S_IFREG and not node.area.read_only
            handle.backing = self.backings.opened(node, handle.fd, wanted, handle.writing)
            if handle.backing and handle.writing and not node.area.changed:
                handle.before = traces(handle.fd)
                # Two changes within a tick of the clock leave the same time.
                node.area.changed = time.time_ns() - handle.before[0] < _TICK
        return handle

    def _in(self, area: Area) -> list[FileHandle | DirectoryHandle]:
        """What is open of what an area shows."""
        return [each for each in self.handles.values() if each.node.area is area and not each.outlived]

    def outlive(self, area: Area) -> list[int]:
        """An area shows something else next, or the same for somebody else to change. What is open stays what it is
        and keeps nobody from anything; the names of its files are others' from now on, of which the kernel has to be
        told. Returns the numbers of these files."""
        files = set()
        for handle in self._in(area):
            handle.outlived = True
            self._opened.pop(handle.node, None)
            area.closed(isinstance(handle, FileHandle) and handle.writing, handle.guest)
            if handle.node.kind == stat.S_IFREG:
                files.add(handle.node)
        for node in files:
            self.table.part(node)
        return [node.ino for node in files]

    def fd_of(self, node: Node) -> int:
        """A descriptor by which a file is open, of any kind; -1 when there is none at hand."""
        handle = self._opened.get(node)
        return -1 if handle is None else handle.fd

    async def mapped(self, area: Area) -> int:
        """How many files of an area that nobody has open are mapped to be written into, see mapped.py."""
        if self.stopped():
            area.changed |= bool(area.mapped)  # perhaps: a look would wait
            return len(area.mapped)
        return await mapped.look(area, self.descriptors, self.outdated)

    def kept(self, area: Area) -> int:
        """How many files are open beneath that the kernel keeps pages of."""
        return sum(isinstance(each, FileHandle) and not each.direct for each in self._in(area))

    def notice(self) -> None:
        """See which areas were changed by those who have files of them open."""
        for handle in self.handles.values():
            if isinstance(handle, FileHandle):
                self._notice(handle)

    def _notice(self, handle: FileHandle) -> None:
        area = handle.node.area
        if handle.before is None or area.changed or handle.outlived:
            return
        if self.stopped():
            area.changed = True  # perhaps: a look would wait
            return
        if not handle.written_out:
            os.fdatasync(handle.fd)  # only so does ZFS date what was written through a mapping
        area.changed = traces(handle.fd) != handle.before

    def is_to_write_out(self, handle: FileHandle) -> bool:
        """Whether closing a file has to wait for a disk, and so for `written_out` first."""
        unsure = handle.before is not None and not handle.node.area.changed
        return unsure and not handle.written_out and not self.stopped()

    async def written_out(self, number: int) -> None:
        """Have a worker write what is in a file that is about to be closed."""
        handle = self.file(number)
        with suppress(OSError):  # close(2) has returned already
            await self.workers.run(lambda: os.fdatasync(handle.fd), writes=True)
        handle.written_out = True

    def file(self, number: int) -> FileHandle:
        """The open file of that number."""
        handle = self.handles[number]
        assert isinstance(handle, FileHandle)
        return handle

    async def read(self, handle: FileHandle, offset: int, size: int) -> bytes:
        """pread(2)."""
        return await self.workers.run(lambda: os.pread(handle.fd, size, offset))

    async def write(self, handle: FileHandle, offset: int, data: bytes) -> int:
        """pwrite(2), all of it or an error: the kernel takes no notice when less of a page was written."""
        return await self.workers.run(self.to_write(handle, offset, data), writes=True)

    def to_write(self, handle: FileHandle, offset: int, data: bytes) -> Callable[[], int]:
        """What a worker has to do for a write."""
        handle.node.area.changed = True
        # With backings the kernel gathers nothing, and sends no times, where it has none for a file, either.
        if self.backings is None and handle.node not in self._written:
            self._written[handle.node] = os.fstat(handle.fd).st_mtime_ns
        return lambda: _write_all(handle.fd, data, offset)

    def _timed(self, handle: FileHandle | DirectoryHandle) -> None:
        """Give a file the time back that it had before it was written into.

        The kernel keeps the time of what it gathers, and sends it after the data; but not when it is the one that it
        knows already (of a file that is written in the tick in which it was made). Then it is our write that is late.
        """
        then = self._written.pop(handle.node, None)
        if then is not None and not self.stopped():
            os.utime(handle.fd, ns=(os.fstat(handle.fd).st_atime_ns, then))

    async def fsync(self, number: int, data_only: bool) -> None:
        """fsync(2), fdatasync(2)."""
        handle = self.handles[number]
        fd = handle.fd
        if self.stopped():
            raise error(errno.EIO)
        self._timed(handle)
        await self.workers.run(lambda: os.fdatasync(fd) if data_only else os.fsync(fd), writes=True)

    def close(self, number: int) -> None:
        """close(2)."""
        handle = self.handles.pop(number)
        node = handle.node
        if self._opened.get(node) is handle:
            del self._opened[node]
        if isinstance(handle, FileHandle) and handle.writing:
            self.writers[node] -= 1
            if not self.writers[node]:
                del self.writers[node]
        node.told = False
        try:
            self._timed(handle)
            if isinstance(handle, FileHandle) and self.backings is not None and not handle.direct:
                self._notice(handle)
                self.backings.closed(node, _is_to_keep(handle))
                if handle.backing and handle.writing:
                    self._written_by_kernel(handle)
        finally:
            os.close(handle.fd)
            if handle.uid:
                self.users.give(FILE, handle.uid)
            area = node.area
            if isinstance(handle, FileHandle) and handle.backing and handle.maps and not handle.outlived:
                mapped.closed(node, self.descriptors)
            self.table.closed(node)
            if not handle.outlived:
                area.closed(isinstance(handle, FileHandle) and handle.writing, handle.guest)

    def _written_by_kernel(self, handle: FileHandle) -> None:
        """A file is closed into which the kernel has written by itself."""
        if handle.maps and handle.node.lookups:
            self.outdated(handle.node.ino)  # of what is written through a mapping it learns nothing
        if not os.fstatvfs(handle.fd).f_bavail:
            self.full(errno.ENOSPC)  # of which only the writer has heard

    # Open directories.

    def opendir(self, node: Node, caller: Caller) -> DirectoryHandle:
        """opendir(3)."""
        with self.users.taking(FILE, caller.uid):
            fd = open_folder(self.descriptors.of(node))
        handle = DirectoryHandle(fd, node, uid=caller.uid, guest=_is_guest(node.area, caller))
        self.handles[fd] = handle
        node.opens += 1
        node.area.opened(False, handle.guest)
        return handle


def open_folder(folder: int) -> int:
    """A descriptor of its own to list a directory by, of which there is one of any kind."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | NOATIME
    try:
        return os.open(b".", flags, dir_fd=folder)
    except PermissionError:
        return os.open(magic(folder), flags)  # who isn't root may list what he may not search


def _is_to_keep(handle: FileHandle) -> bool:
    node = handle.node
    return not handle.writing and node.name is not None and node.lookups > 0 and not node.area.read_only


def clear_set_id(fd: int, caller: Caller) -> None:
    """What a truncation by others than root does to set-user-ID and set-group-ID files, and mostly a write.

    Where the group may not execute a file, its bit goes only if the caller isn't in the group
    (setattr_should_drop_sgid in the kernel's fs/attr.c)."""
    st = os.fstat(fd)
    mode = stat.S_IMODE(st.st_mode)
    if mode & SET_ID:
        group_too = mode & stat.S_ISGID and (mode & stat.S_IXGRP or not caller.belongs_to(st.st_gid))
        os.fchmod(fd, mode & ~(stat.S_ISUID | (stat.S_ISGID if group_too else 0)))


def _write_all(fd: int, data: bytes, offset: int) -> int:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
    return written


def may_change(area: Area, caller: Caller | None = None) -> None:
    """Raises EROFS, EBUSY; and what the area's gate does, for a caller who was not asked about yet."""
    if area.read_only:
        raise error(errno.EROFS)
    if area.frozen:
        raise error(errno.EBUSY)
    if area.gate is not None and caller is not None:
        area.gate(area, caller)


def _is_guest(area: Area, caller: Caller) -> bool:
    return caller.uid != 0 and area.is_guest is not None and area.is_guest(area, caller)


def is_writing(flags: int) -> bool:
    """Whether a file that is opened so may be written into."""
    return bool(flags & os.O_ACCMODE)


def maps_to_write(flags: int) -> bool:
    """Whether a file that is opened so may be written through a mapping (EACCES in mmap(2))."""
    return flags & os.O_ACCMODE == os.O_RDWR


def open_flags(flags: int, readable: bool = True) -> int:
    """What to open with: the kernel appends by itself, and makes links and files as it was told."""
    kept = flags & (os.O_TRUNC | os.O_SYNC | os.O_DSYNC)
    access = flags & os.O_ACCMODE
    if access == os.O_WRONLY and readable:
        access = os.O_RDWR
    return kept | access | (NOATIME if readable else 0) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

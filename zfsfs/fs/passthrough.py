"""Operations on files in areas, done on the dataset beneath: what the kernel asks for, with errno as OSError.

The daemon is root and acts for others. The kernel has checked permissions (default_permissions); what is made
belongs to the caller. Everything goes by directory descriptor and name, never by a path.

Guarantees: nothing is changed in a read-only area (EROFS), nor in one that is held natively (EBUSY); an area knows
whether anything was changed.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass

from zfsfs import syscalls
from zfsfs.fs.area import Area
from zfsfs.fs.backing import Backings
from zfsfs.fs.handles import DirectoryHandle, FileHandle
from zfsfs.fs.nodes import Node, NodeTable, stale
from zfsfs.fs.users import FILE, Users
from zfsfs.fs.workers import Workers

_ROOT = os.geteuid() == 0
#: Reading through us moves no times, as results promise. Who isn't root may ask for that of own files only.
_NOATIME = os.O_NOATIME if _ROOT else 0
#: The coarsest clock that filesystems date changes with, and some more; in ns.
_TICK = 100_000_000
_SET_ID = stat.S_ISUID | stat.S_ISGID
_DEFAULT_ACL = "system.posix_acl_default"


@dataclass(slots=True)
class Caller:
    """Who asks."""

    uid: int
    gid: int
    pid: int = 0

    def belongs_to(self, group: int) -> bool:
        """Whether a group is the caller's own or one of the supplementary ones."""
        return group == self.gid or group in self.groups()

    def groups(self) -> set[int]:
        """The caller's own group and the supplementary ones (proc(5): /proc/PID/status)."""
        found = {self.gid}
        try:
            with open(f"/proc/{self.pid}/status") as lines:
                for line in lines:
                    if line.startswith("Groups:"):
                        found.update(map(int, line.split()[1:]))
        except OSError:
            pass  # it is gone
        return found


def error(number: int) -> OSError:
    """An OSError with its usual text."""
    return OSError(number, os.strerror(number))


def magic(fd: int) -> str:
    """A path to what an O_PATH descriptor stands for, for calls that take no descriptor (proc(5))."""
    return f"/proc/self/fd/{fd}"


class Passthrough:
    """See the module. Files and directories stay open in `handles`, by number; `users` counts them."""

    def __init__(self, table: NodeTable, workers: Workers, users: Users) -> None:
        self.table = table
        self.users = users
        self.descriptors = table.descriptors
        self.workers = workers
        self.handles: dict[int, FileHandle | DirectoryHandle] = {}
        #: Where the kernel reads and writes by itself; and how it is told that a file's attributes have changed.
        self.backings: Backings | None = None
        self.outdated: Callable[[int], None] = lambda ino: None
        self.full: Callable[[int], object] = lambda number: None
        #: Files that were written into, and what time the kernel believes them to have, see `_timed`.
        self._written: dict[Node, int] = {}

    # Looking.

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """The node of an entry, and its attributes."""
        st = os.stat(name, dir_fd=self.descriptors.of(parent), follow_symlinks=False)
        return self.table.remember(parent, name, st), st

    def stat(self, node: Node) -> os.stat_result:
        """A node's attributes."""
        return os.fstat(self.descriptors.of(node))

    def readlink(self, node: Node) -> bytes:
        """A symbolic link's text."""
        return os.fsencode(os.readlink(b"", dir_fd=self.descriptors.of(node)))

    # Making.

    def _changing(self, area: Area) -> None:
        _may_change(area)
        area.changed = True

    def _make(self, parent: Node, name: bytes, caller: Caller, mode: int, make: Callable[[int], None]) -> None:
        """Make an entry and give it to the caller; it goes again when that fails."""
        self._changing(parent.area)
        fd = self.descriptors.of(parent)
        make(fd)
        try:
            gid = _group(fd, caller)
            if _ROOT and (caller.uid or gid > 0):
                os.chown(name, caller.uid, gid, dir_fd=fd, follow_symlinks=False)
                if mode & _SET_ID and not stat.S_ISLNK(mode):
                    _restore_mode(fd, name, mode)
        except BaseException:
            (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=fd)
            raise

    def masked(self, parent: Node, mode: int, umask: int) -> int:
        """The mode that something new is made with: a umask counts only where no default ACL does (umask(2))."""
        if not mode & umask:
            return mode
        try:
            os.getxattr(magic(self.descriptors.of(parent)), _DEFAULT_ACL)
        except OSError:
            return mode & ~umask
        return mode

    def mkdir(self, parent: Node, name: bytes, mode: int, caller: Caller) -> None:
        """mkdir(2)."""
        self._make(parent, name, caller, stat.S_IFDIR, lambda fd: os.mkdir(name, mode & 0o7777, dir_fd=fd))

    def mknod(self, parent: Node, name: bytes, mode: int, device: int, caller: Caller) -> None:
        """mknod(2): files, fifos, sockets, devices."""
        self._make(parent, name, caller, mode, lambda fd: os.mknod(name, mode, device, dir_fd=fd))

    def symlink(self, parent: Node, name: bytes, target: bytes, caller: Caller) -> None:
        """symlink(2)."""
        self._make(parent, name, caller, stat.S_IFLNK, lambda fd: os.symlink(target, name, dir_fd=fd))

    def link(self, node: Node, parent: Node, name: bytes) -> None:
        """link(2) within an area; EXDEV between two."""
        if node.area is not parent.area:
            raise error(errno.EXDEV)
        self._changing(parent.area)
        source = magic(self.descriptors.of(node))
        os.link(source, name, dst_dir_fd=self.descriptors.of(parent), follow_symlinks=True)

    def create(self, parent: Node, name: bytes, mode: int, flags: int, caller: Caller) -> FileHandle:
        """open(2) with O_CREAT of what the kernel has found to be absent.

        Raises ESTALE when it is there after all: the kernel then looks again and checks who may open it.
        """
        self._changing(parent.area)
        with self.users.taking(FILE, caller.uid):
            return self._create(parent, name, stat.S_IMODE(mode), flags, caller)

    def _create(self, parent: Node, name: bytes, mode: int, flags: int, caller: Caller) -> FileHandle:
        folder = self.descriptors.of(parent)
        try:
            fd = os.open(name, _flags(flags) | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise stale() from None
        try:
            gid = _group(folder, caller)
            if _ROOT and (caller.uid or gid > 0):
                os.fchown(fd, caller.uid, gid)
                if mode & _SET_ID:
                    os.fchmod(fd, mode)  # chown has cleared them
            node = self.table.remember(parent, name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=folder)
            raise
        return self._opened(FileHandle(fd, node, _writing(flags), uid=caller.uid))

    # Removing and moving.

    def unlink(self, parent: Node, name: bytes) -> None:
        """unlink(2)."""
        self._remove(parent, name, os.unlink)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """rmdir(2)."""
        self._remove(parent, name, os.rmdir)

    def _remove(self, parent: Node, name: bytes, remove: Callable[..., None]) -> None:
        self._changing(parent.area)
        fd = self.descriptors.of(parent)
        node = self._losing(parent, name, fd)
        try:
            remove(name, dir_fd=fd)
        except OSError:
            if node is not None:
                self.table.unpin(node)
            raise
        if node is not None:
            self.table.unnamed(node, parent, name)

    def _losing(self, parent: Node, name: bytes, fd: int) -> Node | None:
        """The node of a name that is about to go. It keeps its descriptor: it may be open, or have other names."""
        try:
            st = os.stat(name, dir_fd=fd, follow_symlinks=False)
        except FileNotFoundError:
            return None
        node = self.table.known(parent, st.st_ino)
        if node is not None and node.lookups:
            if node.fd < 0 and node.name != name:
                return node  # it is found by another name
            self.table.pin(node)
        return node

    def rename(self, old_parent: Node, old: bytes, new_parent: Node, new: bytes, flags: int, caller: Caller) -> None:
        """renameat2(2) within an area; EXDEV between two. A whiteout that is left behind belongs to the caller."""
        if old_parent.area is not new_parent.area:
            raise error(errno.EXDEV)
        if flags & ~(syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT):
            raise error(errno.EINVAL)
        self._changing(old_parent.area)
        new_fd = os.dup(self.descriptors.of(new_parent))
        other = None
        try:
            old_fd = self.descriptors.of(old_parent)
            moved = self._known(old_parent, old, old_fd)
            if flags & syscalls.RENAME_EXCHANGE:
                other = self._known(new_parent, new, new_fd)
            else:
                other = self._losing(new_parent, new, new_fd)
                old_fd = self.descriptors.of(old_parent)
            if flags:
                syscalls.renameat2(old_fd, old, new_fd, new, flags)
            else:
                os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
            if flags & syscalls.RENAME_WHITEOUT and _ROOT:
                os.chown(old, caller.uid, _group(old_fd, caller), dir_fd=old_fd, follow_symlinks=False)
        except BaseException:
            if other is not None:
                self.table.unpin(other)
            raise
        finally:
            os.close(new_fd)
        if moved is other and moved is not None:
            return  # two names of one file: rename(2) does nothing
        if other is not None:
            if flags & syscalls.RENAME_EXCHANGE:
                self.table.moved(other, (new_parent, new), (old_parent, old))
            else:
                self.table.unnamed(other, new_parent, new)
        if moved is not None:
            self.table.moved(moved, (old_parent, old), (new_parent, new))

    def _known(self, parent: Node, name: bytes, fd: int) -> Node | None:
        try:
            return self.table.known(parent, os.stat(name, dir_fd=fd, follow_symlinks=False).st_ino)
        except FileNotFoundError:
            return None

    # Attributes.

    def chmod(self, node: Node, mode: int) -> None:
        """chmod(2)."""
        self._changing(node.area)
        os.chmod(magic(self.descriptors.of(node)), stat.S_IMODE(mode))

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """chown(2), of a link itself; -1 leaves as it is."""
        self._changing(node.area)
        syscalls.fchownat(self.descriptors.of(node), uid, gid)

    def chown_to_nobody_new(self, node: Node, uid: int) -> None:
        """chown(2) with neither user nor group, which dates the change and clears set-user-ID all the same. That the
        caller may do so is not checked by the kernel, which asks for the same when somebody writes into the file."""
        st = self.stat(node)
        mine = uid in (0, st.st_uid) or self._is_written_by(node, uid)
        if st.st_mode & _SET_ID and not stat.S_ISDIR(st.st_mode) and not mine:
            raise error(errno.EPERM)
        self.chown(node, -1, -1)

    def _is_written_by(self, node: Node, uid: int) -> bool:
        handles = self.handles.values()
        return any(
            isinstance(each, FileHandle) and each.node is node and each.writing and each.uid == uid
            for each in handles
        )

    def truncate(self, node: Node, size: int, handle: FileHandle | None) -> None:
        """truncate(2), or ftruncate(2) by a handle."""
        self._changing(node.area)
        if handle is not None:
            os.ftruncate(handle.fd, size)
        else:
            os.truncate(magic(self.descriptors.of(node)), size)

    def clear_set_id(self, node: Node) -> None:
        """Take the bits away that writing takes away."""
        fd = os.open(magic(self.descriptors.of(node)), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            _clear_set_id(fd)
        finally:
            os.close(fd)

    def utime(self, node: Node, atime: int, mtime: int) -> None:
        """utimensat(2) of a file, or of a link itself, in ns."""
        self._changing(node.area)
        self._written.pop(node, None)
        if node.kind == stat.S_IFLNK and node.parent is not None and node.name is not None:
            parent = self.descriptors.of(node.parent)
            os.utime(node.name, ns=(atime, mtime), dir_fd=parent, follow_symlinks=False)
        else:
            os.utime(magic(self.descriptors.of(node)), ns=(atime, mtime))

    # Extended attributes. Through the magic path they are those of a symbolic link itself, too.

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """getxattr(2)."""
        return os.getxattr(magic(self.descriptors.of(node)), name)

    def listxattr(self, node: Node, caller: Caller) -> list[bytes]:
        """listxattr(2), which shows trusted attributes to root only."""
        names = map(os.fsencode, os.listxattr(magic(self.descriptors.of(node))))
        return [name for name in names if not (caller.uid and name.startswith(b"trusted."))]

    def setxattr(self, node: Node, name: bytes, value: bytes, caller: Caller) -> None:
        """setxattr(2). An access list set by who is not in a file's group clears its set-group-ID bit."""
        self._changing(node.area)
        path = magic(self.descriptors.of(node))
        os.setxattr(path, name, value)
        if name == b"system.posix_acl_access" and caller.uid:
            st = os.stat(path)
            if st.st_mode & stat.S_ISGID and not caller.belongs_to(st.st_gid):
                os.chmod(path, stat.S_IMODE(st.st_mode) & ~stat.S_ISGID)

    def removexattr(self, node: Node, name: bytes) -> None:
        """removexattr(2)."""
        self._changing(node.area)
        os.removexattr(magic(self.descriptors.of(node)), name)

    # Open files.

    def open(self, node: Node, flags: int, caller: Caller) -> FileHandle:
        """open(2). The writeback cache reads what it writes into, so a file open for writing can be read, too."""
        with self.users.taking(FILE, caller.uid):
            return self._open(node, flags, caller)

    def _open(self, node: Node, flags: int, caller: Caller) -> FileHandle:
        writing = _writing(flags)
        if writing or flags & os.O_TRUNC:
            _may_change(node.area)
            if flags & os.O_TRUNC:
                node.area.changed = True
        path = magic(self.descriptors.of(node))
        try:
            fd = os.open(path, _flags(flags))
        except PermissionError:
            fd = os.open(path, _flags(flags, readable=False))
        if flags & os.O_TRUNC and caller.uid:
            _clear_set_id(fd)
        guest = not writing and _is_guest(node.area, caller)
        handle = FileHandle(fd, node, writing, uid=caller.uid, guest=guest, direct=node.area.frozen)
        if handle.direct:
            self.table.pin(node)  # its name may go any time
        return self._opened(handle)

    def _opened(self, handle: FileHandle) -> FileHandle:
        self.handles[handle.fd] = handle
        node = handle.node
        node.opens += 1
        node.area.opened(handle.writing, handle.guest)
        if self.backings is not None and not handle.direct:
            # What is read-only is cached by the kernel instead: it is to be read without a trace, and has no writers.
            wanted = node.kind == stat.S_IFREG and not node.area.read_only
            handle.backing = self.backings.opened(node, handle.fd, wanted, not handle.uid)
            if handle.backing and handle.writing and handle.uid and self.backings.roots(node):
                _clear_set_id(handle.fd)
            if handle.backing and handle.writing and not node.area.changed:
                handle.before = _traces(handle.fd)
                # Two changes within a tick of the clock leave the same time.
                node.area.changed = time.time_ns() - handle.before[0] < _TICK
        return handle

    def kept(self, area: Area) -> int:
        """How many files are open beneath that the kernel keeps pages of."""
        handles = self.handles.values()
        return sum(isinstance(each, FileHandle) and each.node.area is area and not each.direct for each in handles)

    def notice(self) -> None:
        """See which areas were changed by those who have files of them open."""
        for handle in self.handles.values():
            if isinstance(handle, FileHandle):
                self._notice(handle)

    @staticmethod
    def _notice(handle: FileHandle) -> None:
        area = handle.node.area
        if handle.before is None or area.changed:
            return
        os.fdatasync(handle.fd)  # only so does ZFS date what was written through a mapping
        area.changed = _traces(handle.fd) != handle.before

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
        return await self.workers.run(self.to_write(handle, offset, data))

    def to_write(self, handle: FileHandle, offset: int, data: bytes) -> Callable[[], int]:
        """What a worker has to do for a write."""
        handle.node.area.changed = True
        if handle.node not in self._written:
            self._written[handle.node] = os.fstat(handle.fd).st_mtime_ns
        return lambda: _write_all(handle.fd, data, offset)

    def _timed(self, handle: FileHandle | DirectoryHandle) -> None:
        """Give a file the time back that it had before it was written into.

        The kernel keeps the time of what it gathers, and sends it after the data; but not when it is the one that it
        knows already (of a file that is written in the tick in which it was made). Then it is our write that is late.
        """
        then = self._written.pop(handle.node, None)
        if then is not None:
            os.utime(handle.fd, ns=(os.fstat(handle.fd).st_atime_ns, then))

    async def fsync(self, number: int, data_only: bool) -> None:
        """fsync(2), fdatasync(2)."""
        handle = self.handles[number]
        fd = handle.fd
        self._timed(handle)
        await self.workers.run(lambda: os.fdatasync(fd) if data_only else os.fsync(fd))

    def close(self, number: int) -> None:
        """close(2)."""
        handle = self.handles.pop(number)
        node = handle.node
        try:
            self._timed(handle)
            if isinstance(handle, FileHandle) and self.backings is not None and not handle.direct:
                self._notice(handle)
                self.backings.closed(node)
                if handle.backing and handle.writing:
                    self._written_by_kernel(handle)
        finally:
            os.close(handle.fd)
            if handle.uid:
                self.users.give(FILE, handle.uid)
            area = handle.node.area
            self.table.closed(handle.node)
            area.closed(isinstance(handle, FileHandle) and handle.writing, handle.guest)

    def _written_by_kernel(self, handle: FileHandle) -> None:
        """A file is closed into which the kernel has written by itself."""
        if handle.node.lookups:
            self.outdated(handle.node.ino)  # of what is written through a mapping it learns nothing
        if not os.fstatvfs(handle.fd).f_bavail:
            self.full(errno.ENOSPC)  # of which only the writer has heard

    # Open directories.

    def opendir(self, node: Node, caller: Caller) -> DirectoryHandle:
        """opendir(3)."""
        with self.users.taking(FILE, caller.uid):
            fd = os.open(
                b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | _NOATIME, dir_fd=self.descriptors.of(node)
            )
        handle = DirectoryHandle(fd, node, uid=caller.uid, guest=_is_guest(node.area, caller))
        self.handles[fd] = handle
        node.opens += 1
        node.area.opened(False, handle.guest)
        return handle


def _traces(fd: int) -> tuple[int, int, int]:
    """What shows that a file was written into."""
    st = os.fstat(fd)
    return st.st_ctime_ns, st.st_mtime_ns, st.st_size


def _group(folder: int, caller: Caller) -> int:
    """The group of what a caller makes in a directory; -1 when the filesystem has chosen it, see mkdir(2)."""
    return -1 if os.fstat(folder).st_mode & stat.S_ISGID else caller.gid


def _restore_mode(folder: int, name: bytes, mode: int) -> None:
    """Set the bits that chown has cleared, by descriptor: chmod by name would follow a link put in its place."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        if not stat.S_ISLNK(os.fstat(fd).st_mode):
            os.chmod(magic(fd), stat.S_IMODE(mode))
    finally:
        os.close(fd)


def _clear_set_id(fd: int) -> None:
    """What a write by others than root does to set-user-ID and set-group-ID programs."""
    mode = stat.S_IMODE(os.fstat(fd).st_mode)
    if mode & _SET_ID:
        gone = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        os.fchmod(fd, mode & ~gone)


def _write_all(fd: int, data: bytes, offset: int) -> int:
    written = os.pwrite(fd, data, offset)
    while written < len(data):
        written += os.pwrite(fd, memoryview(data)[written:], offset + written)
    return written


def _may_change(area: Area) -> None:
    if area.read_only:
        raise error(errno.EROFS)
    if area.frozen:
        raise error(errno.EBUSY)


def _is_guest(area: Area, caller: Caller) -> bool:
    return caller.uid != 0 and area.is_guest is not None and area.is_guest(caller)


def _writing(flags: int) -> bool:
    return bool(flags & os.O_ACCMODE)


def _flags(flags: int, readable: bool = True) -> int:
    """What to open with: the kernel appends by itself, and makes links and files as it was told."""
    kept = flags & (os.O_TRUNC | os.O_SYNC | os.O_DSYNC)
    access = flags & os.O_ACCMODE
    if access == os.O_WRONLY and readable:
        access = os.O_RDWR
    return kept | access | (_NOATIME if readable else 0) | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK

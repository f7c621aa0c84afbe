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
from collections.abc import Callable
from contextlib import suppress

from zfsfs import syscalls
from zfsfs.fs.caller import Caller, error, magic
from zfsfs.fs.handles import Changes, FileHandle
from zfsfs.fs.nodes import Node, stale
from zfsfs.fs.openfiles import SET_ID, OpenFiles, clear_set_id, is_writing, maps_to_write, open_flags
from zfsfs.fs.users import FILE

_ROOT = os.geteuid() == 0
_DEFAULT_ACL = "system.posix_acl_default"
_CAPABILITY = b"security.capability"
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
#: From so many blocks of 512 bytes on a file is given up by a worker: 0.1 ms for each MiB in memory.
_HEAVY = 4 << 11


class Passthrough(OpenFiles):
    """See the module."""

    # Looking.

    def lookup(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """The node of an entry, and its attributes."""
        st = os.stat(name, dir_fd=self.descriptors.of(parent), follow_symlinks=False)
        return self.table.remember(parent, name, st), st

    def stat(self, node: Node) -> os.stat_result:
        """A node's attributes."""
        if (fd := self.fd_of(node)) >= 0:
            return os.fstat(fd)
        if node.fd < 0 and node.parent is not None and node.name is not None:
            # By name, which needs no descriptor, if it is still that file's.
            with suppress(OSError):
                st = os.stat(node.name, dir_fd=self.descriptors.of(node.parent), follow_symlinks=False)
                if st.st_ino == node.st_ino:
                    return st
        # Who asks may have it open, of what was shown before.
        kept = node.area.outlived.get(node, -1)
        return os.fstat(kept if kept >= 0 else self.descriptors.of(node))

    def readlink(self, node: Node) -> bytes:
        """A symbolic link's text."""
        return os.fsencode(os.readlink(b"", dir_fd=self.descriptors.of(node)))

    # Making.

    def _make(self, parent: Node, name: bytes, caller: Caller, mode: int, make: Callable[[int], None]) -> None:
        """Make an entry and give it to the caller; it goes again when that fails."""
        self.changing(parent.area)
        fd = self.descriptors.of(parent)
        make(fd)
        try:
            if _is_given(caller):
                os.chown(name, caller.uid, _group(fd, caller), dir_fd=fd, follow_symlinks=False)
                if mode & SET_ID and not stat.S_ISLNK(mode):
                    _restore_set_id(fd, name, mode)
        except BaseException:
            (os.rmdir if stat.S_ISDIR(mode) else os.unlink)(name, dir_fd=fd)
            raise

    def masked(self, parent: Node, mode: int, umask: int) -> int:
        """The mode that something new is made with: a umask counts only where no default ACL does (umask(2))."""
        if parent.plain or not mode & umask:
            return mode & ~umask
        try:
            os.getxattr(magic(self.descriptors.of(parent)), _DEFAULT_ACL)
        except OSError:
            parent.plain = not parent.area.frozen
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
        self.changing(parent.area)
        source = magic(self.descriptors.of(node))
        os.link(source, name, dst_dir_fd=self.descriptors.of(parent), follow_symlinks=True)

    def create(
        self, parent: Node, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileHandle, os.stat_result]:
        """open(2) with O_CREAT of what the kernel has found to be absent; with its attributes.

        Raises ESTALE when it is there after all: the kernel then looks again and checks who may open it.
        """
        self.changing(parent.area, caller)
        with self.users.taking(FILE, caller.uid):
            return self._create(parent, name, stat.S_IMODE(mode), flags, caller)

    def _create(
        self, parent: Node, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[FileHandle, os.stat_result]:
        folder = self.descriptors.of(parent)
        try:
            fd = os.open(name, open_flags(flags) | os.O_CREAT | os.O_EXCL, mode, dir_fd=folder)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            raise stale() from None
        try:
            if _is_given(caller):
                os.fchown(fd, caller.uid, _group(folder, caller))
                if mode & SET_ID:  # chown has cleared them
                    os.fchmod(fd, _with_set_id(os.fstat(fd), mode))
            st = os.fstat(fd)
            node = self.table.remember(parent, name, st)
            node.plain = True
        except BaseException:
            os.close(fd)
            os.unlink(name, dir_fd=folder)
            raise
        return self.opened(FileHandle(fd, node, is_writing(flags), maps_to_write(flags), uid=caller.uid)), st

    # Removing and moving.

    def unlink(self, parent: Node, name: bytes) -> None:
        """unlink(2)."""
        self._remove(parent, name, os.unlink)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """rmdir(2)."""
        self._remove(parent, name, os.rmdir)

    def _remove(self, parent: Node, name: bytes, remove: Callable[..., None]) -> None:
        self.changing(parent.area)
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
            if st.st_blocks >= _HEAVY and st.st_nlink == 1:
                self.descriptors.heavy.add(node)
        return node

    def rename(self, old_parent: Node, old: bytes, new_parent: Node, new: bytes, flags: int, caller: Caller) -> None:
        """renameat2(2) within an area; EXDEV between two. A whiteout that is left behind belongs to the caller."""
        if old_parent.area is not new_parent.area:
            raise error(errno.EXDEV)
        if flags & ~(syscalls.RENAME_NOREPLACE | syscalls.RENAME_EXCHANGE | syscalls.RENAME_WHITEOUT):
            raise error(errno.EINVAL)
        self.changing(old_parent.area)
        other = None
        new_fd = self.descriptors.of(new_parent)
        same = new_parent is old_parent
        if not same:
            new_fd = os.dup(new_fd)  # finding one directory may close the descriptor of another
        try:
            old_fd = self.descriptors.of(old_parent)
            moved = self._known(old_parent, old, old_fd)
            if flags & syscalls.RENAME_EXCHANGE:
                other = self._known(new_parent, new, new_fd)
            elif not new_parent.area.is_absent(new_parent, new):
                other = self._losing(new_parent, new, new_fd)
                old_fd = self.descriptors.of(old_parent)
            if same:
                new_fd = old_fd
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
            if not same:
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

    # Attributes. What is open needs no way to it: three of these come for each file that is unpacked.

    def change(self, node: Node, new: Changes, handle: FileHandle | None) -> None:
        """Change attributes, in the order in which the kernel means them; `handle` is who has asked for a size."""
        if new.size is not None:
            self.truncate(node, new.size, handle)
        if new.uid >= 0 or new.gid >= 0:
            self.chown(node, new.uid, new.gid)
        if new.mode is not None:
            self.chmod(node, new.mode)
        if new.atime is None and new.mtime is None:
            return
        atime, mtime = new.atime, new.mtime
        if atime is None or mtime is None:
            now = self.stat(node)
            atime, mtime = now.st_atime_ns if atime is None else atime, now.st_mtime_ns if mtime is None else mtime
        self.utime(node, atime, mtime)

    def _way_to(self, node: Node) -> int | str:
        """What calls take for a file: a descriptor by which it is open, or else the magic path of one like O_PATH."""
        fd = self.fd_of(node)
        return fd if fd >= 0 else magic(self.descriptors.of(node))

    def chmod(self, node: Node, mode: int) -> None:
        """chmod(2)."""
        self.changing(node.area)
        os.chmod(self._way_to(node), stat.S_IMODE(mode))

    def chown(self, node: Node, uid: int, gid: int) -> None:
        """chown(2), of a link itself; -1 leaves as it is."""
        self.changing(node.area)
        if (fd := self.fd_of(node)) >= 0:
            os.fchown(fd, uid, gid)
        else:
            syscalls.fchownat(self.descriptors.of(node), uid, gid)

    def chown_to_nobody_new(self, node: Node, caller: Caller) -> None:
        """chown(2) with neither user nor group, which dates the change and clears set-user-ID all the same. That the
        caller may do so is not checked by the kernel, which asks for the same when somebody writes into the file."""
        st, uid = self.stat(node), caller.uid
        writes = node in self.writers  # by whomever it was opened: who writes may have been given the descriptor
        if st.st_mode & SET_ID and not stat.S_ISDIR(st.st_mode) and not (writes or uid in (0, st.st_uid)):
            raise error(errno.EPERM)
        if writes and uid and self.set_id_goes_if_executable:
            if st.st_mode & SET_ID and st.st_mode & _EXECUTABLE:
                self.chmod(node, st.st_mode & ~SET_ID)
            return
        self.chown(node, -1, -1)
        if uid and st.st_mode & stat.S_ISGID and stat.S_ISREG(st.st_mode):
            self.clear_set_id(node, caller)

    def truncate(self, node: Node, size: int, handle: FileHandle | None) -> None:
        """truncate(2), or ftruncate(2) by a handle."""
        self.changing(node.area)
        fd = self._to_cut(node, handle)
        try:
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def _to_cut(self, node: Node, handle: FileHandle | None) -> int:
        """A descriptor, the caller's, to truncate a file by. Raises EAGAIN where truncate(2) would wait: for who has
        a lease on it natively (fcntl(2)), 45 seconds long."""
        if handle is not None:
            return os.dup(handle.fd)
        return os.open(magic(self.descriptors.of(node)), os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)

    def is_long(self, node: Node, size: int, handle: FileHandle | None) -> bool:
        """Whether cutting a file off at a size takes a while, so that `cut` is to do it first."""
        st = self.stat(node) if handle is None else os.fstat(handle.fd)
        return st.st_size - size >= _HEAVY << 9 <= st.st_blocks << 9

    async def cut(self, node: Node, size: int, handle: FileHandle | None, caller: Caller) -> None:
        """truncate(2) by a worker. Raises what `changing` does, and OSError."""
        self.changing(node.area, caller if handle is None else None)
        fd = self._to_cut(node, handle)
        node.area.opened(True)  # nothing is published or given up meanwhile
        try:
            await self.workers.run(lambda: os.ftruncate(fd, size), writes=True)
        finally:
            os.close(fd)
            node.area.closed(True)

    def clear_set_id(self, node: Node, caller: Caller) -> None:
        """Take the bits away that the caller's writing takes away."""
        fd = os.open(magic(self.descriptors.of(node)), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            clear_set_id(fd, caller)
        finally:
            os.close(fd)

    def utime(self, node: Node, atime: int, mtime: int) -> None:
        """utimensat(2) of a file, or of a link itself, in ns."""
        self.changing(node.area)
        self._written.pop(node, None)
        os.utime(self._way_to(node), ns=(atime, mtime))

    # Extended attributes. Through the magic path they are those of a symbolic link itself, too.

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """getxattr(2)."""
        try:
            return os.getxattr(self._way_to(node), name)
        except OSError as failure:
            if failure.errno == errno.ENODATA and node.parent is None:
                node.area.found_lacking(name)
            raise

    def is_plain(self, node: Node) -> bool:
        """Whether a file is known to have no capabilities, or now turns out to have none."""
        if node.kind != stat.S_IFREG:
            return False
        if node.plain:
            return True
        try:
            self.getxattr(node, _CAPABILITY)
        except OSError as failure:
            if failure.errno != errno.ENODATA:
                return False
            node.plain = not node.area.frozen
            return True
        return False

    def listxattr(self, node: Node, caller: Caller) -> list[bytes]:
        """listxattr(2), which shows trusted attributes to root only."""
        names = map(os.fsencode, os.listxattr(self._way_to(node)))
        return [name for name in names if not (caller.uid and name.startswith(b"trusted."))]

    def setxattr(self, node: Node, name: bytes, value: bytes, caller: Caller) -> None:
        """setxattr(2). An access list set by who is not in a file's group clears its set-group-ID bit."""
        self.changing(node.area)
        node.plain = node.told = False
        way = self._way_to(node)
        os.setxattr(way, name, value)
        if name == b"system.posix_acl_access" and caller.uid:
            st = os.stat(way)
            if st.st_mode & stat.S_ISGID and not caller.belongs_to(st.st_gid):
                os.chmod(way, stat.S_IMODE(st.st_mode) & ~stat.S_ISGID)

    def removexattr(self, node: Node, name: bytes) -> None:
        """removexattr(2)."""
        self.changing(node.area)
        node.told = False
        os.removexattr(self._way_to(node), name)


def _is_given(caller: Caller) -> bool:
    """Whether what a caller makes has to be given to that user: it is ours at first."""
    return _ROOT and (caller.uid or caller.gid) != 0


def _group(folder: int, caller: Caller) -> int:
    """The group of what a caller makes in a directory; -1 when the filesystem has chosen it, see mkdir(2)."""
    return -1 if os.fstat(folder).st_mode & stat.S_ISGID else caller.gid


def _with_set_id(st: os.stat_result, mode: int) -> int:
    """The mode of what was made, with the bits of the mode asked for that chown has cleared; the others may be less
    than was asked for, by a default ACL."""
    return stat.S_IMODE(st.st_mode) | mode & SET_ID


def _restore_set_id(folder: int, name: bytes, mode: int) -> None:
    """Set the bits that chown has cleared, by descriptor: chmod by name would follow a link put in its place."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    try:
        st = os.fstat(fd)
        if not stat.S_ISLNK(st.st_mode):
            os.chmod(magic(fd), _with_set_id(st, mode))
    finally:
        os.close(fd)

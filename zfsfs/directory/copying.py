"""Faithful copies of directory trees, and their removal.

Guarantees
- A copy has its source's names (any bytes), modes, owners (as far as we may set them), access and modification
  times, extended attributes and ACLs, symbolic links, hard links among its files, fifos, sockets, devices and holes.
- Trees of any depth: two descriptors at a time, no recursion and no joined path. Up leads '..'.
- Contents are shared with the source where the filesystem can (ioctl_ficlone(2)).

Assumes: nobody changes the source while it is copied, nor a tree while it is removed. Without root, only one copy of
a source is made at a time.

Without root, a directory or file of ours that we may not read is made readable while it is copied. Not copied:
times of creation and of change, and file flags (chattr(1)).

Sources: lseek(2) on SEEK_DATA and SEEK_HOLE, copy_file_range(2), xattr(7), acl(5).
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from zfsfs import syscalls

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_NOT_HERE = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EPERM)
_CHUNK = 1 << 20
_LINKS = ".links"


def copy_tree(trees: int, source: str, target: str) -> None:
    """Copy the directory `source` to the new directory `target`, both in the directory `trees`.

    Nothing of it is synced yet. On an error (OSError) a part of `target` is left for `remove_tree`.
    """
    copy = _Copy(trees, target + _LINKS)
    try:
        copy.run(source, target)
    finally:
        copy.close()


def remove_tree(trees: int, name: str) -> None:
    """Remove `name`, of any kind, from the directory `trees`, and what a copy to it may have left beside it.

    A missing one is no error. Raises OSError for what can't be removed.
    """
    for each in (name, name + _LINKS):
        with suppress(FileNotFoundError):
            _remove(trees, each)


def tree_size(trees: int, name: str) -> int:
    """Bytes that a tree's files and directories take; what can't be read, or changes meanwhile, may not count."""
    total, seen = 0, set[int]()

    def count(fd: int) -> list[str]:
        nonlocal total
        below = []
        with os.scandir(fd) as entries:
            for entry in entries:
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if status.st_ino not in seen:
                        total += status.st_blocks * 512
                        if status.st_nlink > 1:
                            seen.add(status.st_ino)
                    if stat.S_ISDIR(status.st_mode):
                        below.append(entry.name)
        return below

    def open_readable(parent: int, below: str) -> int:
        readable = os.access(below, os.R_OK | os.X_OK, dir_fd=parent)
        return os.open(below, _DIRECTORY, dir_fd=parent) if readable else -1

    root = open_readable(trees, name)
    if root >= 0:
        total += os.fstat(root).st_blocks * 512
        with suppress(OSError):  # where we are has gone, or was moved
            _walk(root, count, lambda parent, below: None, open_readable)
    return total


@dataclass(slots=True)
class _Level:
    """A directory on the way from the root to where the copy is."""

    status: os.stat_result
    below: list[str]
    opened_up: bool


class _Copy:
    """One copy at work. `links` holds one more link to each file with several, so that it can be found again."""

    def __init__(self, trees: int, links: str) -> None:
        self._trees = trees
        self._links = links
        self._links_fd = -1
        self._reflink = True
        self._range = True
        self._root = os.geteuid() == 0
        self._source = -1
        self._target = -1
        self._stack: list[_Level] = []

    def run(self, source: str, target: str) -> None:
        self._enter(self._trees, source, self._trees, target)
        while self._stack:
            if self._stack[-1].below:
                name = self._stack[-1].below.pop()
                self._enter(self._source, name, self._target, name)
            else:
                self._leave()

    def close(self) -> None:
        """Give back the modes of a copy that broke off, the descriptors and the extra links."""
        while self._stack:
            level = self._stack.pop()
            if level.opened_up:
                os.fchmod(self._source, stat.S_IMODE(level.status.st_mode))
            if self._stack:
                self._source = _replace(self._source, os.open("..", _DIRECTORY, dir_fd=self._source))
        for fd in (self._source, self._target, self._links_fd):
            if fd >= 0:
                os.close(fd)
        if self._links_fd >= 0:
            _remove(self._trees, self._links)
        self._source = self._target = self._links_fd = -1

    def _enter(self, source_parent: int, source: str, target_parent: int, target: str) -> None:
        status = os.stat(source, dir_fd=source_parent, follow_symlinks=False)
        os.mkdir(target, 0o700, dir_fd=target_parent)
        below_target = os.open(target, _DIRECTORY, dir_fd=target_parent)
        try:
            below, opened_up = self._open(source_parent, source, status, _DIRECTORY, 0o500)
        except BaseException:
            os.close(below_target)
            raise
        self._source = _replace(self._source, below)
        self._target = _replace(self._target, below_target)
        self._stack.append(_Level(status, [], opened_up))
        with os.scandir(self._source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._stack[-1].below.append(entry.name)
                else:
                    self._entry(entry.name, entry.stat(follow_symlinks=False))

    def _leave(self) -> None:
        level = self._stack[-1]
        mode, last = stat.S_IMODE(level.status.st_mode), len(self._stack) == 1
        target = self._target
        self._target = -1 if last else os.open("..", _DIRECTORY, dir_fd=target)
        try:
            # Only now: files made under a default ACL would inherit it, and every entry would change the times.
            self._attributes(self._source, target, level.status)
            os.fchmod(target, mode)
            os.utime(target, ns=_times(level.status))
        finally:
            os.close(target)
        up = -1 if last else os.open("..", _DIRECTORY, dir_fd=self._source)
        if level.opened_up:
            os.fchmod(self._source, mode)
        self._stack.pop()
        self._source = _replace(self._source, up)

    def _open(self, parent: int, name: str, status: os.stat_result, flags: int, needed: int) -> tuple[int, bool]:
        """Open a source for reading, without a trace in its access time where that may be. The second value says
        that its mode was changed for this."""
        opened_up = False
        if not self._root and status.st_mode & needed != needed:
            os.chmod(name, stat.S_IMODE(status.st_mode) | needed, dir_fd=parent)
            opened_up = True
        try:
            try:
                return os.open(name, flags | os.O_NOATIME, dir_fd=parent), opened_up
            except PermissionError:  # not its owner
                return os.open(name, flags, dir_fd=parent), opened_up
        except OSError:
            if opened_up:
                os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=parent)
            raise

    def _entry(self, name: str, status: os.stat_result) -> None:
        if status.st_nlink > 1:
            key = str(status.st_ino)
            if self._links_fd < 0:
                os.mkdir(self._links, 0o700, dir_fd=self._trees)
                self._links_fd = os.open(self._links, _DIRECTORY, dir_fd=self._trees)
            try:
                os.link(key, name, src_dir_fd=self._links_fd, dst_dir_fd=self._target, follow_symlinks=False)
                return
            except FileNotFoundError:
                pass
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                # The source has as many as there may be, so this is the last: it gets the one that was ours.
                os.rename(key, name, src_dir_fd=self._links_fd, dst_dir_fd=self._target)
                return
            self._content(name, status)
            os.link(name, key, src_dir_fd=self._target, dst_dir_fd=self._links_fd, follow_symlinks=False)
        else:
            self._content(name, status)

    def _content(self, name: str, status: os.stat_result) -> None:
        if stat.S_ISREG(status.st_mode):
            self._file(name, status)
            return
        if stat.S_ISLNK(status.st_mode):
            os.symlink(os.readlink(name, dir_fd=self._source), name, dir_fd=self._target)
        else:
            os.mknod(name, stat.S_IFMT(status.st_mode) | 0o600, status.st_rdev, dir_fd=self._target)
        self._owner(status, lambda uid, gid: os.chown(name, uid, gid, dir_fd=self._target, follow_symlinks=False))
        source, target = (f"/proc/self/fd/{fd}/{name}" for fd in (self._source, self._target))
        _copy_xattrs(source, target)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=self._target)
        os.utime(name, ns=_times(status), dir_fd=self._target, follow_symlinks=False)

    def _file(self, name: str, status: os.stat_result) -> None:
        source, opened_up = self._open(self._source, name, status, _FILE, 0o400)
        target = -1
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            target = os.open(name, flags, 0o600, dir_fd=self._target)
            if status.st_size:
                self._data(source, target, status.st_size)
            self._attributes(source, target, status)
            os.fchmod(target, stat.S_IMODE(status.st_mode))
            os.utime(target, ns=_times(status))
        finally:
            if target >= 0:
                os.close(target)
            if opened_up:
                os.fchmod(source, stat.S_IMODE(status.st_mode))
            os.close(source)

    def _attributes(self, source: int, target: int, status: os.stat_result) -> None:
        # In this order: chown(2) takes away file capabilities, which are an extended attribute.
        self._owner(status, lambda uid, gid: os.fchown(target, uid, gid))
        _copy_xattrs(source, target)

    def _owner(self, status: os.stat_result, chown: Callable[[int, int], None]) -> None:
        if self._root:
            chown(status.st_uid, status.st_gid)
        elif status.st_gid != os.getegid():
            with suppress(PermissionError):
                chown(-1, status.st_gid)

    def _data(self, source: int, target: int, size: int) -> None:
        if self._reflink:
            try:
                syscalls.reflink(source, target)
                return
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                self._reflink = False
        at = 0
        while at < size:
            try:
                start = os.lseek(source, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break  # only a hole is left
            end = min(os.lseek(source, start, os.SEEK_HOLE), size)
            self._extent(source, target, start, end)
            at = end
        if at < size:
            os.ftruncate(target, size)

    def _extent(self, source: int, target: int, start: int, end: int) -> None:
        while start < end and self._range:
            try:
                done = os.copy_file_range(source, target, end - start, start, start)
            except OSError as error:
                if error.errno not in _NOT_HERE:
                    raise
                done = 0
            self._range = done > 0
            start += done
        while start < end:
            data = os.pread(source, min(_CHUNK, end - start), start)
            if not data:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            start += os.pwrite(target, data, start)


def _replace(old: int, new: int) -> int:
    """Close a directory that is done and go on with the next."""
    if old >= 0:
        os.close(old)
    return new


def _times(status: os.stat_result) -> tuple[int, int]:
    return status.st_atime_ns, status.st_mtime_ns


def _copy_xattrs(source: int | str, target: int | str) -> None:
    follow = {} if isinstance(source, int) else {"follow_symlinks": False}
    try:
        names = os.listxattr(source, **follow)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return
    for name in names:
        try:
            os.setxattr(target, name, os.getxattr(source, name, **follow), **follow)
        except OSError as error:
            # A label or capability is not everyone's to give; a user's attribute or an ACL must not get lost.
            if not name.startswith(("security.", "trusted.")):
                raise
            if error.errno not in (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.EINVAL, errno.ENODATA):
                raise


def _remove(parent: int, name: str) -> None:
    if not stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
        os.unlink(name, dir_fd=parent)
        return

    def clear(fd: int) -> list[str]:
        below = []
        with os.scandir(fd) as entries:
            for entry in list(entries):  # first all names: what is read while names go may skip some
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.name)
                else:
                    os.unlink(entry.name, dir_fd=fd)
        return below

    _walk(_open_up(parent, name), clear, lambda up, below: os.rmdir(below, dir_fd=up), _open_up)
    os.rmdir(name, dir_fd=parent)


def _walk(
    fd: int,
    enter: Callable[[int], list[str]],
    leave: Callable[[int, str], None],
    open_below: Callable[[int, str], int],
) -> None:
    """Visit a directory, which is closed at the end, and those that `enter` names below it; `leave` is called with
    the parent once all below a directory is done. `open_below` answers -1 for one to pass over."""
    path = [("", enter(fd))]
    try:
        while path:
            name, below = path[-1]
            if below:
                path_down = below.pop()
                down = open_below(fd, path_down)
                if down >= 0:
                    fd = _replace(fd, down)
                    path.append((path_down, enter(fd)))
            else:
                path.pop()
                if path:
                    fd = _replace(fd, os.open("..", _DIRECTORY, dir_fd=fd))
                    leave(fd, name)
    finally:
        os.close(fd)


def _open_up(parent: int, name: str) -> int:
    """Open a directory that is going to be removed, whatever its mode was."""
    if os.geteuid() != 0:
        with suppress(PermissionError):
            os.chmod(name, 0o700, dir_fd=parent)
    return os.open(name, _DIRECTORY, dir_fd=parent)

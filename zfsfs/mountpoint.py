"""The directory that the tree is mounted on: is it free, is it a dead mount of ours, how is it unmounted."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from zfsfs import syscalls
from zfsfs.errors import Busy, MountError

FSTYPE = "fuse.zfsfs"
#: The most links in a row, as for the kernel.
_LINKS = 40
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


class _Mount(NamedTuple):
    """What lies at `path`: `root` is the part of the filesystem that it is, `device` the filesystem's number, and
    `options` those of the filesystem."""

    device: str
    root: str
    path: str
    kind: str
    source: str
    options: str

    @property
    def is_tree(self) -> bool:
        """Whether it is a tree, the whole of it."""
        return self.kind == FSTYPE and self.root == "/"


def _mounts() -> Iterator[_Mount]:
    """All that this process sees, what covers another after it. See proc(5), mountinfo."""
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            yield _Mount(*map(_unescaped, (*before.split(b" ")[2:5], *after.split()[:3])))


def real(mountpoint: str) -> str:
    """The path of a mountpoint without links, as the kernel tells it. What is mounted there is not asked: its daemon
    may be gone, and realpath(3) would go no further."""
    path = os.path.abspath(mountpoint)
    for _ in range(_LINKS):
        folder, name = os.path.split(path)
        folder = os.path.realpath(folder)
        path = os.path.normpath(os.path.join(folder, name))  # name may be '..', and folder has no more links
        try:
            path = os.path.join(folder, os.readlink(path)).rstrip("/") or "/"
        except OSError:
            break  # no link, or nothing
    return path


def mounted_type(mountpoint: str) -> str | None:
    """The type of the filesystem mounted there (the topmost), None when there is none."""
    wanted = real(mountpoint)
    kinds = [mount.kind for mount in _mounts() if mount.path == wanted]
    return kinds[-1] if kinds else None


def owner(mountpoint: str) -> int | None:
    """The user who has mounted the tree there, as the kernel has it."""
    path = real(mountpoint)
    options = [mount.options.split(",") for mount in _mounts() if mount.path == path and mount.kind == FSTYPE]
    return next((int(each[8:]) for each in options[-1] if each.startswith("user_id=")), None) if options else None


def trees() -> list[tuple[str, str]]:
    """The mounted trees that this process sees: what is served, and where."""
    return [(mount.source, mount.path) for mount in _mounts() if mount.is_tree]


def serves(path: str) -> bool:
    """Whether what is at a path is in a tree, or in a part of one that is mounted elsewhere. Raises OSError."""
    st_dev = os.stat(path).st_dev
    device = f"{os.major(st_dev)}:{os.minor(st_dev)}"
    return any(mount.device == device and mount.kind == FSTYPE for mount in _mounts())


def tree_above(path: str) -> str | None:
    """Where the tree is mounted that a path (a real one, without links) lies in; None when it lies in none. What only
    looks like a tree is none, and neither is a part of one that is mounted elsewhere."""
    topmost = {mount.path: mount.is_tree for mount in _mounts()}
    while not topmost.get(path):
        if path == os.path.dirname(path):
            return None
        path = os.path.dirname(path)
    return path


def _unescaped(field: bytes) -> str:
    return os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field))


def is_dead(mountpoint: str) -> bool:
    """Whether the daemon of a mount is gone. Opening asks the daemon; stat(2) might be answered from memory."""
    try:
        os.close(os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as failure:
        return failure.errno in _DEAD
    return False


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount a tree. Raises Busy, MountError."""
    mountpoint = real(mountpoint)  # fusermount3 follows no link
    if os.geteuid() == 0:
        try:
            syscalls.umount(os.fsencode(mountpoint), syscalls.MNT_DETACH if lazy else 0)
        except OSError as failure:
            kind = Busy if failure.errno == errno.EBUSY else MountError
            raise kind(f"{mountpoint} can't be unmounted: {os.strerror(failure.errno or 0)}") from None
        return
    import subprocess  # here: a client that only looks where trees are has no time for it

    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        kind = Busy if "busy" in done.stderr else MountError
        raise kind(f"{mountpoint} can't be unmounted: {done.stderr.strip()}")


def prepare(mountpoint: str) -> str:
    """See to it that a tree can be mounted there; returns its real path. A dead mount of ours is cleaned up.

    Raises MountError: missing, no directory, not empty, or mounted already.
    """
    path = real(mountpoint)
    while mounted_type(path) == FSTYPE:
        if not is_dead(path):
            raise MountError(f"{mountpoint} has a zfsfs already; zfsfs umount {mountpoint} ends it")
        unmount(path, lazy=True)
    try:
        entries = os.listdir(path)
    except FileNotFoundError:
        raise MountError(f"{mountpoint} does not exist; make the directory first") from None
    except NotADirectoryError:
        raise MountError(f"{mountpoint} is no directory") from None
    except OSError as failure:
        raise MountError(f"{mountpoint} can't be used: {os.strerror(failure.errno or 0)}") from None
    if entries:
        raise MountError(f"{mountpoint} is not empty; what is in it would be hidden")
    return path

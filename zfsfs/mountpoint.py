"""The directory that the tree is mounted on: is it free, is it a dead mount of ours, how is it unmounted."""

from __future__ import annotations

import errno
import os
import re
import subprocess

from zfsfs import syscalls
from zfsfs.errors import Busy, MountError

FSTYPE = "fuse.zfsfs"
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED)


def mounted_type(mountpoint: str) -> str | None:
    """The type of the filesystem mounted there (the topmost), None when there is none. See proc(5), mountinfo."""
    found = None
    wanted = os.path.join(os.path.realpath(os.path.dirname(mountpoint)), os.path.basename(mountpoint))
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            if os.fsdecode(_unescaped(before.split(b" ")[4])) == wanted:
                found = after.split(b" ")[0].decode()
    return found


def trees() -> list[tuple[str, str]]:
    """The mounted trees that this process sees: what is served, and where."""
    found = []
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            before, _, after = line.partition(b" - ")
            root, path = (_unescaped(field) for field in before.split(b" ")[3:5])
            kind, source = after.split(b" ")[:2]
            if os.fsdecode(kind) == FSTYPE and root == b"/":
                found.append((os.fsdecode(_unescaped(source)), os.fsdecode(path)))
    return found


def _unescaped(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)


def is_dead(mountpoint: str) -> bool:
    """Whether the daemon of a mount is gone. Opening asks the daemon; stat(2) might be answered from memory."""
    try:
        os.close(os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as failure:
        return failure.errno in _DEAD
    return False


def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount a tree. Raises Busy, MountError."""
    if os.geteuid() == 0:
        try:
            syscalls.umount(os.fsencode(mountpoint), syscalls.MNT_DETACH if lazy else 0)
        except OSError as failure:
            kind = Busy if failure.errno == errno.EBUSY else MountError
            raise kind(f"{mountpoint} can't be unmounted: {os.strerror(failure.errno or 0)}") from None
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        kind = Busy if "busy" in done.stderr else MountError
        raise kind(f"{mountpoint} can't be unmounted: {done.stderr.strip()}")


def prepare(mountpoint: str) -> str:
    """See to it that a tree can be mounted there; returns the absolute path. A dead mount of ours is cleaned up.

    Raises MountError: missing, no directory, not empty, or mounted already.
    """
    path = os.path.abspath(mountpoint)
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

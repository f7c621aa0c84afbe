"""The lock of a store: one process serves it, and the kernel knows as long as it lives (flock(2))."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress

from zfsfs import killed
from zfsfs.errors import Locked

#: Seconds for a daemon that was killed to be gone.
PATIENCE = 10.0


def take(fd: int, store: str) -> None:
    """Take the lock, which is an open file, and leave our pid there; closing the file gives it up. Waits for who was
    killed, and helps it to end. Raises Locked, with the pid of who has it."""
    if not _take(fd):
        pid = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
        if not (pid.isdecimal() and killed.finish(int(pid), PATIENCE) and _take(fd)):
            raise Locked(f"{store} is served by process {pid or 'unknown'}")
    with suppress(OSError):  # a store without room must be served, to be emptied; the pid is for others to read
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)


def _take(fd: int) -> bool:
    with suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False

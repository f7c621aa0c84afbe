"""Errors of the storage and of the daemon itself, told to people once: what is wrong, and what to do.

An errno reaches one caller, who may be a compiler that says nothing of it. So each kind of trouble is an event, too,
and stands in the log; again at most once a minute.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable

_SENTENCES = {
    errno.ENOSPC: "the store is full: remove results or caches, or give it more room",
    errno.EDQUOT: "a quota of the storage is reached: remove results or caches, or raise it (zfsprops(7), quota(1))",
    errno.EIO: "the storage answered with an error: look at `zpool status` or the kernel's log",
    errno.ENXIO: "the storage is gone: import its pool (`zpool import`), then unmount and mount again",
    errno.ENFILE: "the daemon has no descriptors left: raise its limit of open files (`ulimit -n`, LimitNOFILE=)",
    errno.ENOMEM: "the daemon has no memory left: give it more, or look with `zfsfs status` at who uses so much",
}
PAUSE = 60.0
#: With so many bytes and inodes a filesystem isn't full: a directory's index or an inode's attributes have no room
#: (ext4(5): large_dir, ea_inode).
_ROOM, _INODES = 1 << 26, 1000


class Troubles:
    """What was told when. `say` is called with a sentence, from the event loop; `space` tells of the storage's."""

    def __init__(
        self,
        say: Callable[[str], object],
        space: Callable[[], os.statvfs_result],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._say = say
        self._space = space
        self._clock = clock
        self._told: dict[int, float] = {}

    def met(self, number: int) -> int:
        """An operation is about to fail with this errno. Returns the one that its caller should get."""
        if number == errno.EMFILE:
            number = errno.ENFILE  # it is not the caller's process that has too many
        if number in _SENTENCES and not (number == errno.ENOSPC and self._has_room()):
            self.tell(number)
        return number

    def tell(self, number: int) -> None:
        """The storage, or a part of it, has the trouble that this errno stands for."""
        now = self._clock()
        if now - self._told.get(number, -PAUSE) >= PAUSE:
            self._told[number] = now
            self._say(_SENTENCES[number] + self._details(number))

    def _has_room(self) -> bool:
        try:
            space = self._space()
        except OSError:
            return False
        # Filesystems that make inodes as needed may count none (statvfs(3)).
        inodes = space.f_favail > _INODES or not space.f_files
        return inodes and space.f_bavail * space.f_frsize > _ROOM

    @staticmethod
    def _details(number: int) -> str:
        if number != errno.ENFILE:
            return ""
        try:
            return f"; {len(os.listdir('/proc/self/fd'))} are open"
        except OSError:
            return ""  # a look takes one, too

"""What the kernel is told unasked, and pyfuse3 has no call for: written to /dev/fuse as it is.

The kernel may wait for a request that we have to answer before it takes a notification: always from a thread.

Sources: include/uapi/linux/fuse.h and fs/fuse/dev.c, fs/fuse/dir.c (fuse_reverse_inval_entry).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable
from contextlib import suppress

_HEADER = struct.Struct("=IiQ")
_INODE = struct.Struct("=Qqq")
_ENTRY = struct.Struct("=QII")
_INVAL_INODE, _INVAL_ENTRY = 2, 3
_EXPIRE_ONLY = 1


class Kernel:
    """The kernel's end of the tree, by the descriptor of /dev/fuse."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of_this_process(cls) -> Kernel:
        """By the descriptor that libfuse has opened and keeps to itself."""
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                    return cls(int(name))
        raise AssertionError("nothing is mounted")

    def _send(self, code: int, body: bytes) -> None:
        with suppress(FileNotFoundError):  # it knows nothing of the kind
            os.write(self._fd, _HEADER.pack(_HEADER.size + len(body), code, 0) + body)

    def look_up_again(self, names: Iterable[tuple[int, bytes]], folders: Iterable[int]) -> None:
        """Ask for these names, absent or not, when they are next needed, and for the directories' attributes. What is
        in use stays in use: a working directory is still one, and nothing mounted is unmounted. (Kernels before 6.2
        drop the names instead.) Blocks."""
        for parent, name in names:
            self._send(_INVAL_ENTRY, _ENTRY.pack(parent, len(name), _EXPIRE_ONLY) + name + b"\0")
        for ino in folders:
            self._send(_INVAL_INODE, _INODE.pack(ino, -1, 0))

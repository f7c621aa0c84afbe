"""What the kernel is told unasked: written to /dev/fuse as it is, past libfuse.

The kernel may wait for a request that we have to answer before it takes a notification: always from a thread, but
for `outdated`.

Sources: include/uapi/linux/fuse.h and fs/fuse/dev.c, fs/fuse/dir.c (fuse_reverse_inval_entry).
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import suppress

from zfsfs.fs.control import CACHES
from zfsfs.threads import at_last

_HEADER = struct.Struct("=IiQ")
_INODE = struct.Struct("=Qqq")
_ENTRY = struct.Struct("=QII")
_STORE = struct.Struct("=QQII")
_INVAL_INODE, _INVAL_ENTRY, _STORED = 2, 3, 4
_EXPIRE_ONLY = 1


class Kernel:
    """The kernel's end of the tree, by the descriptor of /dev/fuse."""

    def __init__(self) -> None:
        self._fd = -1

    def attach(self) -> None:
        """Find the descriptor once the tree is mounted: libfuse has opened it and keeps it to itself."""
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):
                if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                    self._fd = int(name)
                    return
        raise AssertionError("nothing is mounted")

    def detach(self) -> None:
        """Tell it nothing more: the descriptor is about to be closed."""
        self._fd = -1

    def _send(self, code: int, body: bytes) -> None:
        if self._fd < 0:
            return
        with suppress(FileNotFoundError):  # it knows nothing of the kind
            os.write(self._fd, _HEADER.pack(_HEADER.size + len(body), code, 0) + body)

    def outdated(self, ino: int) -> None:
        """Ask for a file's attributes when they are next needed. Waits for nothing."""
        self._send(_INVAL_INODE, _INODE.pack(ino, -1, 0))

    def forget(self, ino: int) -> None:
        """Forget a file's attributes and pages, having written what was gathered. Blocks."""
        self._send(_INVAL_INODE, _INODE.pack(ino, 0, 0))

    def grown(self, ino: int, size: int) -> None:
        """A file has this size now: where the kernel gathers writes it believes that if the last byte is put into its
        pages. Blocks."""
        self._send(_STORED, _STORE.pack(ino, size - 1, 1, 0) + b"\n")

    async def changed(self, name: bytes, inodes: list[int]) -> None:
        """A cache's area shows other contents: forget the names in it and its inodes' attributes and pages."""

        def tell() -> None:
            for ino in inodes:
                self.forget(ino)
            try:
                self._send(_INVAL_ENTRY, _ENTRY.pack(CACHES, len(name), 0) + name + b"\0")
            except OSError as failure:
                if failure.errno != errno.EBUSY:
                    raise

        await at_last(tell)

    def look_up_again(self, names: Iterable[tuple[int, bytes]], folders: Iterable[int] = ()) -> None:
        """Ask for these names, absent or not, when they are next needed, and for the directories' attributes. What is
        in use stays in use: a working directory is still one, and nothing mounted is unmounted. (Kernels before 6.2
        drop the names instead.) Blocks."""
        for parent, name in names:
            self._send(_INVAL_ENTRY, _ENTRY.pack(parent, len(name), _EXPIRE_ONLY) + name + b"\0")
        for ino in folders:
            self.outdated(ino)

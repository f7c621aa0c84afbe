"""Files whose contents the kernel reads, writes and maps by itself, once they are open (FUSE passthrough).

Source: Documentation/filesystems/fuse/fuse-passthrough.rst and fs/fuse/{backing,iomode,passthrough}.c, Linux 6.9.
The kernel refuses (EIO) to have one file open in two ways, or with two backings, at a time: so how a file is opened
is settled by who has it open, and all of them share one backing. Where the kernel can't (a filesystem stacked on
another), a file is opened the other way: its reads and writes come to us.

Who writes through a backing does so with the rights that we had when it was made: without CAP_FSETID, so that writing
takes set-user-ID bits away, unless it is root who opens the file. An ordinary user who opens it for writing while
root has it open takes them away by that.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass

from zfsfs import syscalls
from zfsfs.fs.nodes import Node

_MAP = struct.Struct("<iIQ")
_OPEN, _CLOSE = 0x4010E501, 0x4004E502  # FUSE_DEV_IOC_BACKING_OPEN and _CLOSE


@dataclass(slots=True)
class _Open:
    """How an open file is open: its backing, 0 for none; whether with root's rights; and how often."""

    backing: int
    root: bool
    count: int = 1


class Backings:
    """See the module. `device` is the descriptor of /dev/fuse."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._rights = syscalls.Capabilities(without=syscalls.CAP_FSETID)
        self._open: dict[Node, _Open] = {}

    def opened(self, node: Node, fd: int, wanted: bool, root: bool) -> int:
        """A file was opened as `fd`: the number of the backing that it has, 0 for none."""
        found = self._open.get(node)
        if found is not None:
            found.count += 1
            return found.backing
        backing = self._register(fd, root) if wanted else 0
        self._open[node] = _Open(backing, root)
        return backing

    def roots(self, node: Node) -> bool:
        """Whether an open file is written with root's rights."""
        return self._open[node].root

    def _register(self, fd: int, root: bool) -> int:
        if not root:
            self._rights.reduce()
        try:
            # Only with a buffer that it could change does Python tell what the call returned.
            number: int = fcntl.ioctl(self._device, _OPEN, bytearray(_MAP.pack(fd, 0, 0)))
        except OSError:
            return 0
        finally:
            if not root:
                self._rights.restore()
        return number

    def closed(self, node: Node) -> None:
        """A handle of it was closed."""
        found = self._open[node]
        found.count -= 1
        if not found.count:
            del self._open[node]
            if found.backing:
                fcntl.ioctl(self._device, _CLOSE, struct.pack("<I", found.backing))

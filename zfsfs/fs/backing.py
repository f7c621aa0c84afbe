"""Files whose contents the kernel reads, writes and maps by itself, once they are open (FUSE passthrough).

Source: Documentation/filesystems/fuse/fuse-passthrough.rst and fs/fuse/{backing,iomode,passthrough}.c, Linux 6.9.
The kernel refuses (EIO) to have one file open in two ways, or with two backings, at a time: so how a file is opened
is settled by who has it open, and all of them share one backing. Where the kernel can't (a filesystem stacked on
another), a file is opened the other way: its reads and writes come to us.

Who writes through a backing does so with our rights: set-user-ID bits stay. But before the kernel writes, it asks for
them to be taken away (SETATTR of nothing, see `Passthrough.chown_to_nobody_new`) if they are to go for this caller.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass

from zfsfs.fs.nodes import Node

_MAP = struct.Struct("<iIQ")
_OPEN, _CLOSE = 0x4010E501, 0x4004E502  # FUSE_DEV_IOC_BACKING_OPEN and _CLOSE


@dataclass(slots=True)
class _Open:
    """How an open file is open: its backing, 0 for none; and how often."""

    backing: int
    count: int = 1


class Backings:
    """See the module. `device` is the descriptor of /dev/fuse."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._open: dict[Node, _Open] = {}

    def opened(self, node: Node, fd: int, wanted: bool) -> int:
        """A file was opened as `fd`: the number of the backing that it has, 0 for none."""
        found = self._open.get(node)
        if found is not None:
            found.count += 1
            return found.backing
        backing = self._register(fd) if wanted else 0
        self._open[node] = _Open(backing)
        return backing

    def _register(self, fd: int) -> int:
        try:
            # Only with a buffer that it could change does Python tell what the call returned.
            number: int = fcntl.ioctl(self._device, _OPEN, bytearray(_MAP.pack(fd, 0, 0)))
        except OSError:
            return 0
        return number

    def closed(self, node: Node) -> None:
        """A handle of it was closed."""
        found = self._open[node]
        found.count -= 1
        if not found.count:
            del self._open[node]
            if found.backing:
                fcntl.ioctl(self._device, _CLOSE, struct.pack("<I", found.backing))

"""Files whose contents the kernel reads, writes and maps by itself, once they are open (FUSE passthrough).

Source: Documentation/filesystems/fuse/fuse-passthrough.rst and fs/fuse/{backing,iomode,passthrough}.c, Linux 6.9.
The kernel refuses (EIO) to have one file open in two ways, or with two backings, at a time: so how a file is opened
is settled by who has it open, and all of them share one backing. Where the kernel can't (a filesystem stacked on
another), a file is opened the other way: its reads and writes come to us.

Who writes through a backing does so with our rights: set-user-ID bits stay. But before the kernel writes, it asks for
them to be taken away (SETATTR of nothing, see `Passthrough.chown_to_nobody_new`) if they are to go for this caller.

The last `MOST` files that were open for reading only keep their backings for whoever opens them next: headers and
sources are opened again and again, and making a backing costs a quarter of that. They are no descriptors of ours; in
the kernel each is a file and an inode. What was open for writing keeps none: nobody could execute it natively
meanwhile (ETXTBSY).

Guarantees: nothing is kept of a file that has lost a name, or that the kernel has forgotten; nor of an area that
shows something else, is frozen or published (`NodeTable.keeper`). So no space stays taken, and no dataset busy.
"""

from __future__ import annotations

import fcntl
import struct
from dataclasses import dataclass

from zfsfs.driver import View
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import Node

_MAP = struct.Struct("<iIQ")
_OPEN, _CLOSE = 0x4010E501, 0x4004E502  # FUSE_DEV_IOC_BACKING_OPEN and _CLOSE
#: How many files that nobody has open have a backing.
MOST = 2048


@dataclass(slots=True)
class _Open:
    """How an open file is open: its backing, 0 for none; whether that could be written through; what its area showed
    then; and how often."""

    backing: int
    writable: bool
    view: View | None
    count: int = 1


class Backings:
    """See the module. `device` is the descriptor of /dev/fuse."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._open: dict[Node, _Open] = {}
        self._kept: dict[Node, int] = {}  # the oldest first

    def opened(self, node: Node, fd: int, wanted: bool, writable: bool) -> int:
        """A file was opened as `fd`: the number of the backing that it has, 0 for none."""
        found = self._open.get(node)
        if found is not None:
            found.count += 1
            return found.backing
        backing = 0
        if wanted:
            backing = self._kept.pop(node, 0) or self._register(fd)
        else:
            self.drop(node)
        self._open[node] = _Open(backing, writable, node.area.view)
        return backing

    def _register(self, fd: int) -> int:
        try:
            # Only with a buffer that it could change does Python tell what the call returned.
            number: int = fcntl.ioctl(self._device, _OPEN, bytearray(_MAP.pack(fd, 0, 0)))
        except OSError:
            return 0
        return number

    def closed(self, node: Node, keep: bool) -> None:
        """A handle of it was closed; its backing may be kept."""
        found = self._open[node]
        found.count -= 1
        if found.count:
            return
        del self._open[node]
        if keep and found.backing and not found.writable and found.view is node.area.view:
            if len(self._kept) >= MOST:
                self.drop(next(iter(self._kept)))
            self._kept[node] = found.backing
        elif found.backing:
            self._unregister(found.backing)

    def _unregister(self, backing: int) -> None:
        fcntl.ioctl(self._device, _CLOSE, struct.pack("<I", backing))

    def drop(self, node: Node) -> None:
        """Keep nothing of a file."""
        backing = self._kept.pop(node, 0)
        if backing:
            self._unregister(backing)

    def passes(self, area: Area) -> bool:
        """Whether files that are open in an area are passed through, which the daemon's end does not end."""
        return any(each.backing and node.area is area for node, each in self._open.items())

    def drop_area(self, area: Area) -> None:
        """Keep nothing of what is in an area."""
        for node in [each for each in self._kept if each.area is area]:
            self.drop(node)

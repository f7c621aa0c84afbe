"""READDIRPLUS: the entries of a directory with their attributes, laid out as the kernel wants them.

Of what the kernel has been told already, and nothing has changed since (`Node.told`), only the name is said: that
costs a tenth of an entry with all its attributes. Should the kernel have forgotten after all, it asks.
"""

from __future__ import annotations

import os
import stat

from zfsfs.fs import wire
from zfsfs.fs.handles import DirectoryHandle
from zfsfs.fs.nodes import Node, NodeTable


def listed(table: NodeTable, handle: DirectoryHandle, offset: int, size: int, above: int) -> tuple[bytes, int]:
    """A reply of at most `size` bytes with what is in a directory from an offset on, and how many entries that is;
    `above` is what '..' shows. Raises OSError."""
    node = handle.node
    folder = table.descriptors.of(node) if handle.outlived else handle.fd  # the same, wherever that is now
    by_st_ino, keeps = node.area.by_st_ino, node.area.timeout > 0
    parts: list[bytes] = []
    for name, following, number in handle.entries(offset):
        length = len(name)
        padded = length + 7 & ~7
        size -= wire.ENTRY_SIZE + wire.DIRENT.size + padded
        if size < 0:
            break
        found = by_st_ino.get(number)
        if name in (b".", b".."):  # the kernel keeps nothing of them
            entry, shown, kind = wire.UNTOLD, node.shown if name == b"." else above, wire.DIRECTORY
        elif found is not None and keeps and _is_known(found, node, name):
            entry, shown, kind = wire.UNTOLD, found.shown, found.kind >> 12
        else:
            try:
                st = os.stat(name, dir_fd=folder, follow_symlinks=False)
                found = table.remember(node, name, st)
            except FileNotFoundError:
                size += wire.ENTRY_SIZE + wire.DIRENT.size + padded
                continue  # removed since the directory was read
            except OSError:  # who asks for it by name gets to know
                entry, shown, kind = wire.UNTOLD, node.area.shown ^ number, wire.UNKNOWN
            else:
                found.lookups += 1
                entry, shown, kind = wire.entry(found, st), found.shown, found.kind >> 12
        parts += (entry, wire.DIRENT.pack(shown, following, length, kind), name.ljust(padded, b"\0"))
    return b"".join(parts), len(parts) // 3


def _is_known(found: Node, parent: Node, name: bytes) -> bool:
    """Whether the kernel knows all of a file under that name. Directories change with each entry that they get."""
    known = found.told and found.lookups > 0 and found.kind != stat.S_IFDIR
    return known and found.name == name and found.parent is parent

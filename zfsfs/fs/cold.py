"""Names that may have to be read from a disk: a worker looks at them first, so that the event loop need not wait.

What was made through the tree, or looked through before, is taken to be in memory (`Node.warm`). Elsewhere the kernel
is asked whether it knows a name by itself, 3 us for each. If it doesn't, a worker looks for it and, while it is about
it, at the others in a small directory, which is warm from then on. Where the filesystem beneath can't tell what is in
memory, that is done at the first look into each directory, and the later ones are answered at once.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress

from zfsfs import syscalls
from zfsfs.fs.handles import DirectoryHandle
from zfsfs.fs.nodes import Descriptors, Node
from zfsfs.fs.workers import Workers

#: The fewest bytes that an entry takes in a reply.
_ENTRY = 160
#: How many entries are looked at for the sake of one.
_FEW = 100


def is_cold(descriptors: Descriptors, parent: Node, name: bytes) -> bool:
    """Whether looking a name up in a directory that isn't warm may have to wait for a disk."""
    return not (parent.area.tells and syscalls.is_cached(descriptors.of(parent), name))


async def warm(workers: Workers, descriptors: Descriptors, parent: Node, name: bytes) -> None:
    """Wait until a name can be looked up at once."""
    folder = os.dup(descriptors.of(parent))
    try:
        whole = await workers.run(lambda: _look_around(folder, name))
        # Who still doesn't know it never will.
        parent.area.tells = syscalls.is_cached(folder, name)
        parent.warm = whole or not parent.area.tells
    finally:
        os.close(folder)


async def warm_listing(workers: Workers, handle: DirectoryHandle, offset: int, size: int) -> None:
    """Wait until a directory can be read on from an offset, to fill `size` bytes of a reply."""
    await workers.run(lambda: _look_through(handle.fd, offset, size // _ENTRY + 1))
    handle.warm_at = offset


def _look(folder: int, names: Iterable[bytes]) -> None:
    for name in names:
        with suppress(OSError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)


def _look_around(folder: int, name: bytes) -> bool:
    _look(folder, [name])
    return _look_through(folder, 0, _FEW)


def _look_through(folder: int, offset: int, count: int) -> bool:
    """Look at `count` entries; whether that is all. By a descriptor of its own: `folder` may be read elsewhere."""
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=folder)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        names = [name for name, _ in syscalls.directory_entries(fd)]
        _look(fd, names[:count])
        return len(names) <= count and not syscalls.directory_entries(fd)
    finally:
        os.close(fd)

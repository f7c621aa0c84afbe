"""Names that may have to be read from a disk: a worker looks at them first, so that the event loop need not wait.

What was made through the tree, or looked through before, is taken to be in memory (`Node.warm`). Elsewhere the kernel
is asked whether it knows a name by itself. If it doesn't, a worker looks for it and, while it is about it, at the
others in a small directory, which is warm from then on. Where the filesystem beneath can't tell what is in memory,
that is done at the first look into each directory. What is in a directory is looked at when it is opened.

A thread costs more than a name does (300 us, most of it for Python's lock), and asking the kernel 3 us. So an area
where the last `_ENOUGH` names were in memory is taken to be so as a whole, until an answer takes `_SLOW`.

Guarantees: a request waits for a disk in the event loop only if those before it in its area didn't have to.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable
from contextlib import suppress

from zfsfs import syscalls
from zfsfs.fs.area import Area
from zfsfs.fs.handles import DirectoryHandle
from zfsfs.fs.nodes import Descriptors, Node
from zfsfs.fs.openfiles import NOATIME
from zfsfs.fs.workers import Workers

#: After so many names that were in memory all are taken to be, until one takes so many seconds.
_ENOUGH, _SLOW = 8, 0.002
#: Seconds that an entry may take.
_EACH = 0.00002
#: The fewest bytes that an entry takes in a reply.
_ENTRY = 160
#: How many entries are looked at for the sake of one.
_FEW = 100
#: How many are looked at ahead.
_MANY = 1000


def is_cold(descriptors: Descriptors, parent: Node, name: bytes) -> bool:
    """Whether looking a name up may have to wait for a disk."""
    area = parent.area
    if parent.warm or area.quiet >= _ENOUGH:
        return False
    cached = area.tells and syscalls.is_cached(descriptors.of(parent), name)
    area.quiet = area.quiet + 1 if cached else 0
    return not cached


def answered(area: Area, start: float, entries: int = 1) -> None:
    """A request for so many entries was answered that may have waited for a disk. It was begun at `start` by
    time.perf_counter."""
    if time.perf_counter() - start > _SLOW + entries * _EACH:
        area.quiet = 0


async def warm(workers: Workers, descriptors: Descriptors, parent: Node, name: bytes) -> None:
    """Wait until a name can be looked up at once."""
    folder = os.dup(descriptors.of(parent))
    try:
        whole = await workers.run(lambda: _look_around(folder, name, parent.area))
        # Who still doesn't know it never will.
        parent.area.tells = syscalls.is_cached(folder, name)
        parent.warm = whole or not parent.area.tells
    finally:
        os.close(folder)


def look_ahead(workers: Workers, handle: DirectoryHandle) -> None:
    """A directory was opened: have a worker look at what will be read of it first, while the caller is answered."""
    if handle.node.warm or handle.node.area.quiet >= _ENOUGH:
        return
    fd = _again(handle.fd)
    looked = handle.looking = threading.Lock()
    looked.acquire()

    def look() -> None:
        try:
            if _look_at_next(fd, _MANY, handle.node.area):
                handle.node.warm = True
            handle.warm_at = 0
        except OSError:
            pass  # whoever reads it gets to know
        finally:
            os.close(fd)
            looked.release()

    workers.put(look)


def is_cold_at(handle: DirectoryHandle, offset: int) -> bool:
    """Whether reading a directory on from an offset may have to wait for a disk."""
    if handle.node.warm or handle.node.area.quiet >= _ENOUGH:
        return False
    return handle.warm_at != offset or (handle.looking is not None and handle.looking.locked())


async def warm_listing(workers: Workers, handle: DirectoryHandle, offset: int, size: int) -> None:
    """Wait until a directory can be read on from an offset, to fill `size` bytes of a reply."""
    looking, handle.looking = handle.looking, None
    if looking is not None:
        await workers.run(looking.acquire)
    if is_cold_at(handle, offset):
        area, count = handle.node.area, size // _ENTRY + 1
        handle.node.warm |= await workers.run(lambda: _look_through(handle.fd, offset, count, area))
        handle.warm_at = offset


def _look(folder: int, names: Iterable[bytes]) -> None:
    for name in names:
        with suppress(OSError):
            os.stat(name, dir_fd=folder, follow_symlinks=False)


def _look_around(folder: int, name: bytes, area: Area) -> bool:
    _look(folder, [name])
    return _look_through(folder, 0, _FEW, area)


def _again(folder: int) -> int:
    """A descriptor of its own, for `folder` may be read elsewhere."""
    return os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | NOATIME, dir_fd=folder)


def _look_through(folder: int, offset: int, count: int, area: Area) -> bool:
    fd = _again(folder)
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        return _look_at_next(fd, count, area)
    finally:
        os.close(fd)


def _look_at_next(fd: int, count: int, area: Area) -> bool:
    """Look at the next `count` entries. True when all of the directory is taken to be in memory: because these are,
    as a sample shows, or because there are no more."""
    found = [name for name, _ in syscalls.directory_entries(fd)]
    if not found:
        return True
    if all(syscalls.is_cached(fd, name) for name in {found[0], found[len(found) // 2], found[-1]}):
        area.quiet += 1
        return True
    area.quiet = 0
    _look(fd, found[:count])
    return len(found) <= count and not syscalls.directory_entries(fd)

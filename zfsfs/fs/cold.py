"""What may have to be read from a disk: a worker looks at it first, so that the event loop need not wait.

Before a request looks at a name, or at an inode by its name, the kernel is asked whether it knows it by itself
(openat2(2) with RESOLVE_CACHED, 2 us). If it doesn't, a worker looks for it, opens the directories on the way and,
while it is about it, looks at others in the directory: a few, and the next time those after them. A file that is
open, here or by the kernel, is in memory. What is in a directory is looked at when it is opened, and before each part
of it is read, unless all that was looked at of late was in memory (handing that to a worker costs more than a small
directory does).

A directory that was made or looked through, and used since, with never `TRUST` seconds in between, is taken to be in
memory as a whole: that is not what the kernel gives up. A look through a directory ends early where a sample of it is
in memory. Where the filesystem beneath can't tell what is in memory, each directory is looked through at the first
look into it.

Guarantees: a request waits in the event loop for a disk to find something only if memory went within `TRUST` seconds
or between the look and the request. It may wait for what a change takes (room in a transaction), and for a block of a
directory that is not in memory although the names in it are.
"""

from __future__ import annotations

import math
import os
import threading
from contextlib import suppress
from time import monotonic

from zfsfs import syscalls
from zfsfs.fs.area import Area
from zfsfs.fs.handles import DirectoryHandle
from zfsfs.fs.nodes import NEVER, Node, stale
from zfsfs.fs.openfiles import open_folder
from zfsfs.fs.workers import PATIENCE, Workers

#: Seconds for which what was in memory is taken to be.
TRUST = 10.0
#: After so many names and directories that were in memory all directories are taken to be, until one takes so many
#: seconds, and so many for each entry, or a name is not.
_ENOUGH, _SLOW, _EACH = 8, 0.002, 0.00002
#: The fewest bytes that an entry takes in a reply.
_ENTRY = 160
#: How many entries are looked at for the sake of one, and for how many seconds.
_FEW, _WHILE = 100, 0.003
#: How many are looked at ahead.
_MANY = 1000
#: How many of the first entries tell of the others; and bytes for a part of them, which Python's lock is held for.
_SAMPLE, _PART = 8, 1 << 12
#: Where a look through a directory ended that saw all of it, or so much that the rest is taken to be in memory.
_ALL = -1
#: Of how many directories in an area is known how far they were looked through.
_UNFINISHED = 256
#: The longest path that the kernel is asked about in one go.
_LONGEST = 4000


def is_cold(node: Node, name: bytes | None = None) -> bool:
    """Whether looking a name up in a directory may have to wait for a disk; without a name, looking at the node."""
    if name is None:
        parent, named = node.parent, node.name
        if node.fd >= 0 or node.opens or parent is None or named is None:
            return False  # it is held, or not to be found anyway
        node, name = parent, named
    if (now := monotonic()) - node.warm < TRUST:
        node.warm = now
        return False
    if not node.area.tells:
        return node.warm == NEVER
    if node.fd >= 0:
        known = syscalls.is_cached(node.fd, name)
    else:
        folder, names = way_to(node)
        path = b"/".join([*names, name])
        known = len(path) <= _LONGEST and syscalls.is_cached(folder, path)
    node.area.quiet = node.area.quiet + 1 if known else 0
    return not known


def is_fresh(node: Node) -> bool:
    """Whether all that is in a directory is taken to be in memory."""
    return monotonic() - node.warm < TRUST


def slow(area: Area, start: float, entries: int) -> None:
    """So many entries were listed, from `start` on, which may have waited for a disk: so may the next."""
    if monotonic() - start > _SLOW + entries * _EACH:
        area.quiet = 0


def way_to(node: Node) -> tuple[int, list[bytes]]:
    """The nearest descriptor that is open, and the names from there on."""
    names = []
    while node.fd < 0 and node.parent is not None and node.name is not None:
        names.append(node.name)
        node = node.parent
    return node.fd if node.fd >= 0 else node.area.fd, names[::-1]


class Look:
    """A worker looks at what `is_cold` said it of, and at others in that directory. Once `call` has ended, `finish`
    takes note of what came of it. Raises OSError: there is nothing to look at, or no descriptor."""

    def __init__(self, workers: Workers, node: Node, name: bytes | None = None) -> None:
        self._folder, named = _named(node, name)
        area = self._folder.area
        at, when = area.looked.get(self._folder, (0, NEVER))
        if monotonic() - when > TRUST:
            at = 0
        # A sample says nothing of a directory of which the beginning was looked at and the rest wasn't.
        sample = when == NEVER
        nearest, names = way_to(self._folder)
        nearest = os.dup(nearest)

        def look() -> int:
            try:
                return _look_around(nearest, names, named, area, at, sample)
            finally:
                os.close(nearest)

        self.call = workers.begin(look)

    def finish(self) -> None:
        """Raises what nobody expected."""
        at, folder = self.call.result(), self._folder
        looked = folder.area.looked
        looked.pop(folder, None)
        if at == _ALL or not folder.area.tells:
            folder.warm = monotonic()
            return
        if len(looked) >= _UNFINISHED:
            looked.clear()
        looked[folder] = at, monotonic()


def _named(node: Node, name: bytes | None) -> tuple[Node, bytes]:
    """A directory, and a name in it: a node's own where there is no other. Raises ESTALE when it has none."""
    if name is not None:
        return node, name
    if node.parent is None or node.name is None:
        raise stale()
    return node.parent, node.name


async def warm(workers: Workers, node: Node, name: bytes | None = None) -> None:
    """Wait until what `is_cold` said it of can be looked at at once. Raises OSError."""
    look = Look(workers, node, name)
    if not look.call.has_ended(PATIENCE):
        await workers.until_ended(look.call)
    look.finish()


def look_ahead(workers: Workers, handle: DirectoryHandle) -> None:
    """A directory was opened: have a worker look at what will be read of it first, while the caller is answered."""
    area = handle.node.area
    if is_fresh(handle.node) or area.quiet >= _ENOUGH:
        return
    try:
        fd = open_folder(handle.fd)
    except OSError:
        return  # the directory is open all the same
    looked = handle.looking = threading.Lock()
    looked.acquire()

    def look() -> None:
        try:
            if _look_at_next(fd, _MANY, area) == _ALL:
                handle.node.warm = monotonic()
            handle.warm_at = 0
        except OSError:
            pass  # whoever reads it gets to know
        finally:
            os.close(fd)
            looked.release()

    workers.put(look)


def is_cold_at(handle: DirectoryHandle, offset: int) -> bool:
    """Whether reading a directory on from an offset may have to wait for a disk."""
    if is_fresh(handle.node) or handle.node.area.quiet >= _ENOUGH:
        return False
    return handle.warm_at != offset or (handle.looking is not None and handle.looking.locked())


async def warm_listing(workers: Workers, handle: DirectoryHandle, offset: int, size: int) -> None:
    """Wait until a directory can be read on from an offset, to fill `size` bytes of a reply."""
    looking, handle.looking = handle.looking, None
    if looking is not None:
        await workers.run(looking.acquire)
    if is_cold_at(handle, offset):
        area, count = handle.node.area, size // _ENTRY + 1
        if await workers.run(lambda: _look_through(handle.fd, offset, count, area)) == _ALL:
            handle.node.warm = monotonic()
        handle.warm_at = offset


def _look_around(nearest: int, names: list[bytes], name: bytes, area: Area, at: int, sample: bool) -> int:
    """Look at a name at the end of a way, and at what is in that directory from `at` on. `area.tells` is then whether
    the kernel says that it knows the name. Returns what `_look_at_next` does, or `at` when the way ends before."""
    try:
        folder = syscalls.descend(nearest, names)
    except OSError:
        return at  # whoever asks gets to know
    try:
        with suppress(FileNotFoundError):  # of which some filesystems take no note: tmpfs
            os.stat(name, dir_fd=folder, follow_symlinks=False)
            # It may also be at a loss because something is being renamed just then.
            area.tells = any(syscalls.is_cached(folder, name) for _ in range(3))
        return _look_through(folder, at, _FEW, area, sample, _WHILE)
    except OSError:
        return at  # whoever asks gets to know
    finally:
        os.close(folder)


def _look_through(
    folder: int, offset: int, count: int, area: Area, sample: bool = True, patience: float = math.inf
) -> int:
    fd = open_folder(folder)  # for that one may be read elsewhere
    try:
        os.lseek(fd, offset, os.SEEK_SET)
        return _look_at_next(fd, count, area, sample, monotonic() + patience)
    finally:
        os.close(fd)


def _look_at_next(fd: int, count: int, area: Area, sample: bool = True, end: float = math.inf) -> int:
    """Look at the next `count` entries, until `end`. Returns the offset where that ended, or `_ALL` when all of the
    directory is taken to be in memory: because these are, as a sample shows, or because there are no more."""
    at = 0
    while found := syscalls.directory_entries(fd, _PART):
        if sample and all(syscalls.is_cached(fd, name) for name, _, _ in found[:: len(found) // _SAMPLE + 1]):
            area.quiet += 1
            return _ALL
        sample, area.quiet = False, 0
        for name, following, _ in found:
            if count <= 0 or (at and monotonic() > end):
                return at
            with suppress(OSError):
                os.stat(name, dir_fd=fd, follow_symlinks=False)
            count, at = count - 1, following
    return _ALL

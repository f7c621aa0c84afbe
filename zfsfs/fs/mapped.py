"""Files that nobody has open, and that somebody may still write into through a mapping.

A mapping of a file that the kernel reads and writes by itself (backing.py) is one of the file beneath: it keeps that
one open, and not ours, so RELEASE comes with close(2) while it lives on (`backing_file_mmap` in the kernel's
fs/backing-file.c). Nothing tells when it goes. But who asks for a lease on a file is told whether anybody can write
into it (fcntl(2), F_SETLEASE); the kernel does not forget the file meanwhile, for the mapping keeps its name.

Assumes: a file that was opened for writing and is mapped privately only is mapped to be written, too; that can't be
told apart. Where leases can't be had (`can_tell`) no file may have a backing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable

import trio

from zfsfs.fs.area import Area, Traces
from zfsfs.fs.caller import magic
from zfsfs.fs.nodes import Descriptors, Node
from zfsfs.threads import in_thread

#: What says nothing of a file: there are no descriptors, or no memory.
_WANTING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
_UNKNOWN = (0, 0, 0)


def traces(fd: int) -> Traces:
    """What shows that a file was written into."""
    st = os.fstat(fd)
    return st.st_ctime_ns, st.st_mtime_ns, st.st_size


def can_be_written(fd: int) -> bool:
    """Whether somebody can write into a file, of which `fd` is a descriptor of any kind that can't."""
    reading = os.open(magic(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Who opens the file to write meanwhile waits for us, and has the kernel say so: by a signal that ends nobody.
        fcntl.fcntl(reading, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(reading, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as failure:
        return failure.errno == errno.EAGAIN
    finally:
        os.close(reading)
    return False


def can_tell(folder: int) -> bool:
    """Whether leases can be had on the filesystem of a directory, on others' files, too: that takes CAP_LEASE, which
    root of a container mostly lacks."""
    try:
        fd = os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fchown(fd, 1, 1)
            return can_be_written(fd)  # by us
        finally:
            os.close(fd)
    except OSError:
        return False


def closed(node: Node, descriptors: Descriptors) -> None:
    """A file that could be mapped to be written was closed."""
    mapped = node.area.mapped
    before = mapped.pop(node, None)
    try:
        fd = descriptors.of(node)
        node.area.changed |= before is not None and traces(fd) != before
        if can_be_written(fd):
            mapped[node] = traces(fd)
    except OSError as failure:
        if failure.errno in _WANTING:
            mapped[node] = _UNKNOWN


async def look(area: Area, descriptors: Descriptors, outdated: Callable[[int], None]) -> int:
    """How many files of an area are mapped so, or can't be looked at for want of something. Whether one was written
    into since it was closed makes the area changed, as far as that can be told; one that still is may be."""
    found = 0
    for node, before in list(area.mapped.items()):
        await trio.lowlevel.checkpoint()  # there may be any number
        try:
            fd = descriptors.of(node)
            # Not in a thread: who opens the file to write while there is the lease is refused, if it is one of us.
            mapped = can_be_written(fd)
            now = None if mapped else await _written_out(fd)
        except OSError as failure:
            if failure.errno not in _WANTING:
                area.mapped.pop(node, None)  # it is gone
                continue
            mapped, now = True, None
        if area.mapped.get(node) is not before:
            continue
        outdated(node.ino)
        area.changed |= mapped or now != before
        if mapped:
            found += 1
        else:
            del area.mapped[node]
    return found


async def _written_out(fd: int) -> Traces | None:
    """What shows that a file was written into; None when that can't be told."""
    reading = os.open(magic(fd), os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        await in_thread(os.fdatasync, reading)  # only so does ZFS date what was written through a mapping
        return traces(reading)
    except OSError:
        return None
    finally:
        os.close(reading)

"""The kernel's FUSE protocol, as far as the fast lane speaks it: what requests hold and how replies are laid out.

Source: include/uapi/linux/fuse.h of the kernel, whose layout never changes. Everything is little-endian here because
the protocol has the machine's own byte order and zfsfs runs where that is so.
"""

from __future__ import annotations

import os
from functools import cache
from struct import Struct

from zfsfs.fs.area import FOREVER
from zfsfs.fs.control import Facts
from zfsfs.fs.nodes import Node

# Requests.
LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
RELEASE, GETXATTR, INIT, OPENDIR, RELEASEDIR = 18, 22, 26, 27, 29
CREATE, INTERRUPT, BATCH_FORGET, READDIRPLUS, RENAME2 = 35, 36, 42, 44, 45

HEADER = Struct("<IIQQIIII")  # length, opcode, unique, inode, uid, gid, pid, padding
HEADER_SIZE = 40
U32 = Struct("<I")
U64 = Struct("<Q")
TWO_U32 = Struct("<II")
FORGET_ONE = Struct("<QQ")  # inode, count
CREATE_IN = Struct("<IIII")  # flags, mode, umask, open_flags
MKNOD_IN = Struct("<IIII")  # mode, device, umask, padding
RENAME2_IN = Struct("<QII")  # new parent, flags, padding
READ_IN = Struct("<QQI")  # handle, offset, size; then what we don't use, in 40 bytes
READ_SIZE = 40
# valid, -, handle, size, owner; access, change and status time and their ns; mode, -, uid, gid
SETATTR_IN = Struct("<IIQQQqqqIIIIIII")
INIT_IN = Struct("<IIIII")  # major, minor, max_readahead, flags, flags2

# Replies.
REPLY = Struct("<IiQ")  # length, -errno, unique
REPLY_SIZE = 16
_ENTRY = Struct("<QQQQIIQQQqqqIIIIIIIIII")
ENTRY_SIZE = 128
#: What stands in the place of the attributes of what is only named in a listing.
UNTOLD = bytes(ENTRY_SIZE)
DIRENT = Struct("<QqII")  # inode, offset of the next, length of the name, type
UNKNOWN, DIRECTORY, FILE = 0, 0o4, 0o10  # of types
_VALID = slice(24, 32)  # in an entry: for how long its attributes are good
_NO_FRACTION = bytes(8)
_ATTR_AT = 40  # where a file's attributes begin in an entry, with the inode first
OPENED = Struct("<QIi")  # handle, flags, backing
INIT_OUT = Struct("<IIIIHHIIHHII24x")

# What INIT can ask for.
ASYNC_READ, ATOMIC_O_TRUNC, BIG_WRITES, DONT_MASK = 1 << 0, 1 << 3, 1 << 5, 1 << 6
DO_READDIRPLUS, ASYNC_DIO, WRITEBACK_CACHE = 1 << 13, 1 << 15, 1 << 16
PARALLEL_DIROPS, POSIX_ACL, MAX_PAGES, CACHE_SYMLINKS = 1 << 18, 1 << 20, 1 << 22, 1 << 23
AUTO_INVAL_DATA, HANDLE_KILLPRIV_V2, INIT_EXT, PASSTHROUGH = 1 << 12, 1 << 28, 1 << 30, 1 << 37

DIRECT_IO, KEEP_CACHE, CACHE_DIR, BACKED = 1, 2, 8, 128  # of OPENED

NOTIFY_POLL = 1
RENAME_EXCHANGE = 2

# What SETATTR sets.
(MODE, UID, GID, SIZE, ATIME, MTIME, HANDLE) = (1 << bit for bit in range(7))
CTIME, KILL_SET_ID = 1 << 10, 1 << 11
WHAT = MODE | UID | GID | SIZE | ATIME | MTIME

#: A reply without a body; b"" stands for no reply.
DONE = b"done"

_SECOND = 1_000_000_000
_NO_ATTRIBUTES = (0,) * 16


@cache
def absent(timeout: int) -> bytes:
    """The answer to a lookup that the kernel may remember for `timeout` seconds: there is nothing of that name."""
    return _ENTRY.pack(0, 0, timeout, 0, 0, 0, *_NO_ATTRIBUTES)


def entry(node: Node, st: os.stat_result) -> bytes:
    """A file; the kernel may keep name and attributes as long as its area says."""
    area = node.area
    node.told = True
    seconds, above = area.timeout, area.shown
    valid = 0 if area.mapped and node in area.mapped else seconds  # its times change, and we don't hear of it
    mode, number, _, links, uid, gid, size, atime, mtime, ctime = st  # one step instead of ten
    return _ENTRY.pack(
        node.ino,
        0,
        seconds,
        valid,
        0,
        0,
        node.ino if not above or node.parent is None else above ^ number,
        size,
        st.st_blocks,
        atime,
        mtime,
        ctime,
        st.st_atime_ns % _SECOND,
        st.st_mtime_ns % _SECOND,
        st.st_ctime_ns % _SECOND,
        mode,
        links,
        uid,
        gid,
        st.st_rdev & 0xFFFFFFFF,
        st.st_blksize,
        0,
    )


def own(ino: int, facts: Facts, born: int, *, passing: bool) -> bytes:
    """A directory or file of the tree's own; the kernel keeps the names of what stays and directories' attributes."""
    folder = facts.mode & 0o170000 == 0o040000
    kept = 0 if passing else FOREVER
    uid, gid = facts.owner or (os.geteuid(), os.getegid())
    seconds, fraction = divmod(born if facts.changed is None else int(facts.changed * 1e9), _SECOND)
    times = (seconds, seconds, seconds, fraction, fraction, fraction)
    links = 2 if folder else 1
    return _ENTRY.pack(
        ino, 0, kept, kept if folder else 0, 0, 0, ino, facts.size, 0, *times, facts.mode, links, uid, gid, 0, 4096, 0
    )


def in_ns(seconds: int, fraction: int) -> int:
    """A time that SETATTR sets. Where that is now, the kernel has put in what its own clock says (`notify_change` in
    fs/attr.c): by ours, which is finer, what is written next would be older."""
    return seconds * _SECOND + fraction


def attributes(entry: bytes) -> bytes:
    """The reply to GETATTR and SETATTR: an entry's attributes."""
    return entry[_VALID] + _NO_FRACTION + entry[_ATTR_AT:]

"""What is said to pyfuse3: attributes, and exceptions as errno."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ParamSpec, TypeVar

import pyfuse3

from zfsfs.errors import StoreError, ZfsfsError
from zfsfs.fs.area import FOREVER
from zfsfs.fs.control import Facts
from zfsfs.fs.nodes import Node

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


def attributes(node: Node, st: os.stat_result) -> pyfuse3.EntryAttributes:
    """A file's attributes under our own inode number; the kernel may keep them as long as its area says."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node.ino
    entry.entry_timeout = entry.attr_timeout = node.area.timeout
    entry.st_mode = st.st_mode
    entry.st_nlink = st.st_nlink
    entry.st_uid = st.st_uid
    entry.st_gid = st.st_gid
    entry.st_rdev = st.st_rdev
    entry.st_size = st.st_size
    entry.st_blksize = st.st_blksize
    entry.st_blocks = st.st_blocks
    entry.st_atime_ns = st.st_atime_ns
    entry.st_mtime_ns = st.st_mtime_ns
    entry.st_ctime_ns = st.st_ctime_ns
    return entry


def own_attributes(ino: int, facts: Facts, born: int, *, passing: bool) -> pyfuse3.EntryAttributes:
    """The attributes of a directory or file of the tree's own; the kernel keeps those of directories that stay."""
    entry = pyfuse3.EntryAttributes()
    folder = stat.S_ISDIR(facts.mode)
    entry.st_ino = ino
    entry.entry_timeout = 0.0 if passing else FOREVER
    entry.attr_timeout = FOREVER if folder and not passing else 0.0
    entry.st_mode = facts.mode
    entry.st_nlink = 2 if folder else 1
    entry.st_uid, entry.st_gid = facts.owner or (os.geteuid(), os.getegid())
    entry.st_size = facts.size
    entry.st_blksize = 4096
    when = born if facts.changed is None else int(facts.changed * 1e9)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = when
    return entry


def absent(timeout: float) -> pyfuse3.EntryAttributes:
    """The answer to a lookup that the kernel may remember for `timeout` seconds: there is nothing of that name."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = timeout
    return entry


def dot(ino: int) -> pyfuse3.EntryAttributes:
    """'.' or '..' in a listing."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino, entry.st_mode = ino, stat.S_IFDIR
    return entry


def _met(operations: Any, number: int) -> int:
    found: int = operations.met(number)
    return found


def answered(handler: Callable[P, Awaitable[T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """Turn what a handler raises into the errno that the caller gets; what nobody expected is EIO, and loud. The
    handler is a method of `Operations`, whose `met` is told of errors of the storage and may know a better number."""

    @functools.wraps(handler)
    async def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except OSError as error:
            raise pyfuse3.FUSEError(_met(args[0], error.errno or errno.EIO)) from None
        except StoreError as error:
            log.info("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(_met(args[0], error.errno)) from None
        except ZfsfsError as error:
            log.info("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(error.errno) from None
        except MemoryError:
            raise pyfuse3.FUSEError(_met(args[0], errno.ENOMEM)) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s failed in a way that nobody expected", handler.__name__)
            raise pyfuse3.FUSEError(5) from None

    return wrapper

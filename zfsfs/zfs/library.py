"""libzfs_core, OpenZFS's own Python bindings, and what its errors mean to us.

The module is imported when a driver is made, so that everything else works where it isn't installed. Numbers are
those of the C library; pyzfs's exceptions carry them as `errno` (`_error_translation.py`), except where it says
"no such pool" with EXDEV for what the kernel called ENOENT.
"""

from __future__ import annotations

import errno
import importlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from zfsfs.errors import (
    Busy,
    DriverError,
    Exists,
    Missing,
    NoSpace,
    ReadOnly,
    Stopped,
    StoreError,
    Unavailable,
    ZfsfsError,
)

#: What a verb makes of a number in its own way, before the general meaning.
Meanings = Mapping[int, Callable[[str], ZfsfsError]]

_RUNTIME_ERROR = 44  # ECHRNG: a channel program was ended by an error in it


def load() -> Any:
    """The module libzfs_core. Raises Unavailable when it, or the kernel's side of it, is not there."""
    try:
        core = importlib.import_module("libzfs_core")
    except (ImportError, OSError) as error:
        raise Unavailable(
            "libzfs_core for this Python is missing: install OpenZFS's bindings (Debian: python3-pyzfs, and a"
            " virtual environment made with --system-site-packages)"
        ) from error
    if not os.path.exists("/dev/zfs"):
        raise Unavailable("/dev/zfs is not there: load the kernel module with `modprobe zfs`")
    return core


def check_available(core: Any, name: str) -> None:
    """Raise Unavailable, with what to do, when the dataset `name` can't be reached."""
    pool = name.partition("/")[0]
    try:
        if core.lzc_exists(name.encode()):
            return
        imported = core.lzc_exists(pool.encode())
    except Exception as error:
        if not isinstance(error, core.exceptions.ZFSInitializationFailed):
            raise
        raise Unavailable(
            f"/dev/zfs can't be opened ({os.strerror(error.errno)}): is the module loaded (`modprobe zfs`)?"
        ) from error
    if not imported:
        raise Unavailable(f"pool {pool} is not imported: `zpool import {pool}`")
    raise Unavailable(f"dataset {name} does not exist: `zfs create -p {name}`")


def call(core: Any, verb: Callable[..., Any], what: str, *arguments: Any, meanings: Meanings | None = None) -> Any:
    """`verb(*arguments)`; what it raises becomes one of ours, about `what`."""
    try:
        return verb(*arguments)
    except core.exceptions.ZFSError as error:
        raise meaning(_number(core, error), what, meanings, _detail(error)) from error


def meaning(number: int, what: str, meanings: Meanings | None = None, detail: str = "") -> ZfsfsError:
    """The exception for an error number of ZFS, about the dataset `what`."""
    if meanings and number in meanings:
        return meanings[number](what)
    match number:
        case errno.ENOENT | errno.ESRCH:
            return Missing(f"{what} does not exist")
        case errno.EEXIST:
            return Exists(f"{what} exists")
        case errno.EBUSY:
            return Busy(f"{what} is in use")
        case errno.ENOSPC:
            return NoSpace(f"{what}: the pool is full")
        case errno.EDQUOT:
            return NoSpace(f"{what}: a quota is reached", number)
        case errno.EROFS:
            return ReadOnly(f"{what} is read-only")
        case errno.ENAMETOOLONG:
            return DriverError(f"{what}: the name, or that of a snapshot of it, gets too long", number)
        case errno.EAGAIN:
            return Stopped(f"{what}: the pool is suspended, see `zpool status`, then `zpool clear`")
        case errno.EPERM | errno.EACCES:
            return DriverError(f"{what}: not permitted; ZFS wants root, or a loaded key", number)
    return DriverError(f"{what}: {detail or os.strerror(number)}", number)


def busy(reason: str) -> Callable[[str], StoreError]:
    """A meaning: something holds the dataset, for this reason."""
    return lambda what: Busy(f"{what} {reason}")


def _number(core: Any, error: Any) -> int:
    if isinstance(error, core.exceptions.MultipleOperationsFailure) and error.errors:
        return _number(core, error.errors[0])
    if isinstance(error, core.exceptions.PoolNotFound):
        return errno.ENOENT
    if error.errno == _RUNTIME_ERROR:
        return errno.EIO
    # Of a channel program itself, not of the pool: its memory limit is no full disk.
    if isinstance(error, core.exceptions.ZCPSpaceError):
        return errno.ENOMEM
    return error.errno or errno.EIO


def _detail(error: Any) -> str:
    details = getattr(error, "details", None)
    return details.decode("utf-8", "replace").splitlines()[0] if details else ""

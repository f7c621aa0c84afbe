"""What can go wrong, as exceptions.

Every exception carries the errno that a path operation answers with and the exit code of the command line:

    ZfsfsError
    ├── InvalidName        EINVAL / ENAMETOOLONG   exit 2   a name that no dataset can have
    ├── UsageError         EINVAL                  exit 2   a command line that says nothing sensible
    ├── StoreError                                          a verb that a driver could not carry out
    │   ├── Exists         EEXIST                  exit 1
    │   ├── Missing        ENOENT                  exit 1
    │   ├── Busy           EBUSY                   exit 4
    │   ├── NoSpace        ENOSPC / EDQUOT         exit 1
    │   ├── Stopped        EIO                     exit 3   the storage waits for a person to mend it
    │   ├── ReadOnly       EROFS                   exit 1
    │   └── DriverError    any other               exit 1   the number is kept
    ├── Refused            EPERM / EACCES          exit 1   who asks may not
    ├── Unavailable        ENXIO                   exit 3   no pool, no module, no libzfs_core: says what to do
    ├── Locked             EBUSY                   exit 5   another daemon has this store
    ├── MountError         EIO                     exit 6   the mountpoint can't be used
    └── Inconsistent       EIO                     exit 7   what is stored breaks an invariant
"""

from __future__ import annotations

import errno as _errno


class ZfsfsError(Exception):
    """Base of all; `errno` is what a path operation answers, `exit_code` what the command line ends with."""

    errno: int = _errno.EIO
    exit_code: int = 1


class InvalidName(ZfsfsError):
    """A name that can't be a build, a cache, a label or a dataset."""

    errno = _errno.EINVAL
    exit_code = 2

    def __init__(self, message: str, errno: int = _errno.EINVAL) -> None:
        super().__init__(message)
        self.errno = errno


class UsageError(ZfsfsError):
    """The command line asks for something that does not exist."""

    errno = _errno.EINVAL
    exit_code = 2


class StoreError(ZfsfsError):
    """A dataset verb that could not be carried out."""


class Exists(StoreError):
    """What should be made is there already."""

    errno = _errno.EEXIST


class Missing(StoreError):
    """What is named is not there."""

    errno = _errno.ENOENT


class Busy(StoreError):
    """Something holds it: an open file, a mount, a dependent clone, a hold."""

    errno = _errno.EBUSY
    exit_code = 4


class NoSpace(StoreError):
    """The pool is full, or a quota is reached."""

    errno = _errno.ENOSPC

    def __init__(self, message: str, errno: int = _errno.ENOSPC) -> None:
        super().__init__(message)
        self.errno = errno


class ReadOnly(StoreError):
    """The pool, or what is named, can't be written."""

    errno = _errno.EROFS


class Stopped(StoreError):
    """The storage does nothing until a person has mended it; the message says what to do."""

    exit_code = 3


class DriverError(StoreError):
    """Any other error of a verb, with its number kept."""

    def __init__(self, message: str, errno: int = _errno.EIO) -> None:
        super().__init__(message)
        self.errno = errno


class Refused(ZfsfsError):
    """Who asks may not do this."""

    errno = _errno.EPERM

    def __init__(self, message: str, errno: int = _errno.EPERM) -> None:
        super().__init__(message)
        self.errno = errno


class Unavailable(ZfsfsError):
    """The store can't be reached; the message says what to install or do."""

    errno = _errno.ENXIO
    exit_code = 3


class Locked(ZfsfsError):
    """Another daemon serves this store."""

    errno = _errno.EBUSY
    exit_code = 5


class MountError(ZfsfsError):
    """The mountpoint can't be used, or is not one of ours."""

    exit_code = 6


class Inconsistent(ZfsfsError):
    """What is stored breaks an invariant that recovery could not restore."""

    exit_code = 7

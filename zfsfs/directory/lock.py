"""The file with the lock of a directory store."""

from __future__ import annotations

import os
from contextlib import ExitStack

from zfsfs import locking
from zfsfs.directory.catalogue import FILE
from zfsfs.errors import Unavailable


def take_lock(path: str, shown: str) -> int:
    """The locked file of the store in the directory `path`, closed on exec; closing it gives up the lock.

    A missing directory is made, an empty one taken. Raises Locked, with the pid of who has it, and Unavailable for a
    directory that holds something else.
    """
    _refuse_foreign(path, shown)
    try:
        os.makedirs(path, 0o700, exist_ok=True)
        fd = os.open(os.path.join(path, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise Unavailable(f"{shown} can't be a store: {error.strerror}") from error
    with ExitStack() as owner:
        owner.callback(os.close, fd)
        locking.take(fd, shown)
        owner.pop_all()
    return fd


def _refuse_foreign(path: str, shown: str) -> None:
    try:
        names = set(os.listdir(path))
    except FileNotFoundError:
        return
    except OSError as error:
        raise Unavailable(f"{shown} can't be a store: {error.strerror}") from error
    if names - {"lock"} and FILE not in names:
        raise Unavailable(f"{shown} is not empty and holds no zfsfs store")

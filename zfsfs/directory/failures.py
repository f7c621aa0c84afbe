"""From the kernel's error numbers to the errors of the driver's contract: the one place for it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from zfsfs.errors import DriverError, NoSpace, ReadOnly


@contextmanager
def translated(what: object) -> Iterator[None]:
    """Raise an OSError of the block as a StoreError that names `what`; other errors pass."""
    try:
        yield
    except OSError as error:
        number = error.errno or errno.EIO
        message = f"{what}: {os.strerror(number)}"
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(message, number) from error
        if number == errno.EROFS:
            raise ReadOnly(message) from error
        raise DriverError(message, number) from error

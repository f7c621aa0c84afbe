"""Whom the root of a new dataset belongs to."""

from __future__ import annotations

import os
import stat

from zfsfs.errors import DriverError
from zfsfs.names import Dataset


def give_root(root: int, dataset: Dataset, owner: tuple[int, int], mode: int) -> None:
    """Give the root of a dataset, open as `root`, to `owner`, with exactly `mode`. Blocks. Raises DriverError."""
    try:
        found = os.fstat(root)
        if (found.st_uid, found.st_gid) != owner:
            os.fchown(root, *owner)
        os.fchmod(root, stat.S_IMODE(mode))  # after fchown, which clears set-uid and set-gid
    except OSError as error:
        raise DriverError(f"{dataset}: its root can't be given to {owner[0]}:{owner[1]}", error.errno or 5) from None

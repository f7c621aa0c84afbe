"""A little room that is kept back, so that a full store can still be emptied.

Removing needs room as well: for the catalogue's log. So a file of random bytes (zeros might take no room) lies beside
the catalogue, and is given up when a verb that removes or renames finds no room; once a tree is gone it comes back.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from zfsfs.errors import NoSpace, Unavailable

_NAME = "reserve"
_SIZE = 1 << 19


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o600)


class Reserve:
    """The file in the directory `path`."""

    def __init__(self, path: str) -> None:
        self._file = os.path.join(path, _NAME)

    def lay(self) -> None:
        """Keep the room back, if there is some and it isn't yet."""
        with suppress(OSError):
            try:
                with open(self._file, "r+b", opener=_opened) as file:
                    os.fchmod(file.fileno(), 0o600)  # an older version has left it to the umask
                    if os.fstat(file.fileno()).st_size != _SIZE:
                        file.truncate(0)
                        file.write(os.urandom(_SIZE))
            except OSError:
                os.unlink(self._file)

    def spend(self) -> bool:
        """Give it up; False when there is none."""
        try:
            os.unlink(self._file)
        except OSError:
            return False
        return True

    def helping(self, verb: Callable[[], None]) -> None:
        """Carry out a verb, with the reserve given up if it has no room otherwise."""
        try:
            verb()
        except (NoSpace, Unavailable):
            if not self.spend():
                raise
            verb()

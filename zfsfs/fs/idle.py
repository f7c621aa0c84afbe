"""Results and failed builds that are looked into and that nobody has open: no more than so many, for the view of each
takes a descriptor of ours, and on ZFS a mount.

What was opened the longest ago is let go of first. Whoever asks for something in it afterwards has it looked into
again (`Tree.ready`), and finds the same: what can't be written has the same inode numbers in every view. So working
directories in it, and descriptors that only name it (O_PATH), need no view.

Guarantees: the view of what is open, or native for somebody, stays. Those come on top, as every open file does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress

from zfsfs.fs.area import Area
from zfsfs.fs.recent import Recent

#: How many there are where descriptors are plentiful.
MOST = 256


class Idle:
    """See the module. `let_go` has an area show nothing any more."""

    def __init__(self, let_go: Callable[[Area], None]) -> None:
        self.recent = Recent[Area](MOST, _may_go)
        self._let_go = let_go

    def add(self, area: Area) -> None:
        """An area shows something that never changes."""
        for each in self.recent.add(area):
            if each.view is not None:
                with suppress(OSError):
                    each.last = os.fstat(each.fd)
                self._let_go(each)

    def drop(self, area: Area) -> None:
        """An area shows nothing any more, or something that changes."""
        self.recent.drop(area)


def _may_go(area: Area) -> bool:
    touched, area.touched = area.touched, False
    return not (area.opens or touched)

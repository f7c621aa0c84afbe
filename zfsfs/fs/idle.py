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

#: How many there are where descriptors are plentiful.
MOST = 256


class Idle:
    """See the module. `let_go` has an area show nothing any more."""

    def __init__(self, let_go: Callable[[Area], None]) -> None:
        self.most = MOST
        self._let_go = let_go
        self._areas: dict[Area, None] = {}  # those that show something, what was used last at the end

    def add(self, area: Area) -> None:
        """An area shows something that never changes."""
        self._areas.pop(area, None)
        for each in list(self._areas):
            if len(self._areas) < self.most:
                break
            self._make_way(each)
        self._areas[area] = None

    def _make_way(self, area: Area) -> None:
        del self._areas[area]
        if area.opens or area.touched:
            area.touched = False
            self._areas[area] = None  # as the last one
        elif area.view is not None:
            with suppress(OSError):
                area.last = os.fstat(area.fd)
            self._let_go(area)

    def drop(self, area: Area) -> None:
        """An area shows nothing any more, or something that changes."""
        self._areas.pop(area, None)

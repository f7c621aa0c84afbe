"""What a builder prints, in a file of bounded size: its beginning and its end are kept, the middle is cut.

One process writes and any number read meanwhile. Positions are those in the whole output. The file is

    header   MAGIC, the sizes of head and ring, `reserved`, `total` (little-endian, 64 bits each)
    head     positions 0 to HEAD
    ring     position p from HEAD on lies at HEAD + (p - HEAD) % RING

Guarantees: what is below `total` and not further than RING below `reserved` is there. The writer moves `reserved`
before it overwrites and `total` after it has written, so a reader who looks at `reserved` after reading knows what
of it is good.
"""

from __future__ import annotations

import os
import struct

_MAGIC = b"zfslog1\n"
_HEADER = struct.Struct("<8sQQQQ")
_COUNTS = struct.Struct("<QQ")
_COUNTS_AT = _HEADER.size - _COUNTS.size
#: Pieces that one reader's way may have; each gap makes two.
_MOST = 1000


class Writer:
    """Writes a new log into an empty file that belongs to the caller; of `size` bytes, half is for the end."""

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._ring = max(size // 2, 1)
        self._head = max(size - self._ring, 1)
        self._total = 0
        os.pwrite(fd, _HEADER.pack(_MAGIC, self._head, self._ring, 0, 0), 0)

    def write(self, data: bytes) -> None:
        """Add to the log. Raises OSError."""
        view = memoryview(data)
        while view:
            view = view[self._piece(view) :]

    def _piece(self, view: memoryview) -> int:
        total = self._total
        within = total if total < self._head else (total - self._head) % self._ring
        room = self._head - within if total < self._head else self._ring - within
        piece = view[:room]
        at = within if total < self._head else self._head + within
        if total >= self._head + self._ring:
            self._counts(total + len(piece), total)
        written = os.pwrite(self._fd, piece, _HEADER.size + at)
        self._total += written
        self._counts(self._total, self._total)
        return written

    def _counts(self, reserved: int, total: int) -> None:
        os.pwrite(self._fd, _COUNTS.pack(reserved, total), _COUNTS_AT)


class View:
    """Reads a log. The descriptor belongs to the caller. Raises ValueError for a file that is none."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        header = os.pread(fd, _HEADER.size, 0)
        if len(header) < _HEADER.size or not header.startswith(_MAGIC):
            raise ValueError("this is no log")
        _, self._head, self._ring, _, _ = _HEADER.unpack(header)
        if self._head < 1 or self._ring < 1:
            raise ValueError("this is no log")

    def _counts(self) -> tuple[int, int]:
        reserved, total = _COUNTS.unpack(os.pread(self._fd, _COUNTS.size, _COUNTS_AT))
        return reserved, total

    @property
    def total(self) -> int:
        """How much was printed."""
        return self._counts()[1]

    def cut(self, position: int) -> int:
        """The first position from `position` on that is still there."""
        reserved, _ = self._counts()
        return position if position < self._head else max(position, reserved - self._ring)

    def read(self, position: int, size: int) -> bytes:
        """What is there from a position on, possibly less than asked for; nothing at the end and where it is cut."""
        size = min(size, self.total - position)
        if size <= 0 or self.cut(position) != position:
            return b""
        if position < self._head:
            return os.pread(self._fd, min(size, self._head - position), _HEADER.size + position)
        within = (position - self._head) % self._ring
        data = os.pread(self._fd, min(size, self._ring - within), _HEADER.size + self._head + within)
        return data if self.cut(position) == position else b""


class Reading:
    """One reader's way through a log: offsets count what it was given, with a mark where something is cut. Of very
    many such marks only the last are remembered; what was given between the first and those reads as the end."""

    def __init__(self, view: View) -> None:
        self._view = view
        self._pieces: list[tuple[int, int | bytes]] = [(0, 0)]  # from this offset on: a position, or a mark

    def read(self, offset: int, size: int) -> bytes:
        """As pread(2)."""
        start, what = next(each for each in reversed(self._pieces) if each[0] <= offset)
        if isinstance(what, bytes):
            return what[offset - start : offset - start + size]
        position = what + offset - start
        data = self._view.read(position, size)
        there = self._view.cut(position)
        if data or there == position:
            return data
        mark = b"\n[zfsfs: %d bytes are cut out here]\n" % (there - position)
        self._pieces += [(offset, mark), (offset + len(mark), there)]
        if len(self._pieces) > _MOST:
            self._pieces[1 : _MOST // 2] = [(self._pieces[1][0], b"")]
        return mark[:size]


def tail(view: View, size: int) -> bytes:
    """The last bytes of a log, without a gap."""
    total = view.total
    position = max(total - size, 0)
    found = b""
    while position < total:
        piece = view.read(position, size)
        if piece:
            found += piece
            position += len(piece)
        elif view.cut(position) > position:
            found, position = b"", view.cut(position)
        else:
            break
    return found

"""Open files and directories of areas."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from zfsfs import syscalls
from zfsfs.fs.nodes import Node


@dataclass(eq=False, slots=True)
class FileHandle:
    """An open file."""

    fd: int
    node: Node
    writing: bool
    maps: bool = False  # may be written through a mapping
    uid: int = 0
    guest: bool = False
    direct: bool = False  # the kernel keeps nothing of what is read by it
    backing: int = 0
    before: tuple[int, int, int] | None = None  # what is changed by who writes through the backing
    outlived: bool = False  # its area shows something else now, see OpenFiles.outlive
    written_out: bool = False  # nothing of it is in memory only any more, and it is about to be closed


@dataclass(slots=True)
class Changes:
    """What is to be changed of a file's attributes: None, or -1 of an owner, stays as it is. Times are in ns."""

    size: int | None = None
    uid: int = -1
    gid: int = -1
    mode: int | None = None
    atime: int | None = None
    mtime: int | None = None


@dataclass(eq=False, slots=True)
class DirectoryHandle:
    """An open directory. Positions in it are those of the filesystem beneath: good whatever changes meanwhile, and
    for any other handle of it. `_batch` holds what was read and not yet taken, the next one last; it begins `_at`.
    What comes at `warm_at` is in memory."""

    fd: int
    node: Node
    uid: int = 0
    guest: bool = False
    warm_at: int = -1
    outlived: bool = False
    looking: threading.Lock | None = None  # locked while a worker looks ahead, see cold.py
    _batch: list[tuple[bytes, int, int]] = field(default_factory=list)
    _at: int = 0

    def entries(self, offset: int) -> Iterator[tuple[bytes, int, int]]:
        """The names from an offset on, each with its successor's offset and the number that it had in the dataset
        when it was read. What was yielded last counts as taken once the next is asked for."""
        if offset != self._at or offset == 0:  # from the start: what is there now
            os.lseek(self.fd, offset, os.SEEK_SET)
            self._batch, self._at = [], offset
        while True:
            while self._batch:
                entry = self._batch[-1]
                yield entry
                self._at = entry[1]
                self._batch.pop()
            self._batch = syscalls.directory_entries(self.fd)
            if not self._batch:
                return
            self._batch.reverse()

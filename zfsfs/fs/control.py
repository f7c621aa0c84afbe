"""The tree's own directories and files: the top, the groups, and what stands in .zfsfs.

Guarantees
- An entry keeps its inode number as long as the kernel knows it; numbers are below `FIRST_INODE`.
- What a file holds is decided when it is opened; only files that grow or block read on.

A folder makes its entries out of what there is when it is asked, so nothing has to be told when that changes: the
kernel keeps none of these names.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

from zfsfs.fs.caller import error
from zfsfs.fs.nodes import Node
from zfsfs.names import FAILED_BUILDS

#: The first inode number of what lies in datasets; smaller ones are the tree's own.
FIRST_INODE = 1 << 20
#: The first number of entries that come and go.
_FIRST_PASSING = 64

ROOT, BUILDS, RESULTS, CACHES, CONTROL = 1, 2, 3, 4, 5
#: Failed builds, within the builds.
FAILED = 32


@dataclass(frozen=True, slots=True)
class Asker:
    """Who opens a file: flags as open(2) has them."""

    uid: int
    flags: int = os.O_RDONLY


@dataclass(frozen=True, slots=True)
class Facts:
    """The attributes of an entry; without an owner it is the daemon's."""

    mode: int
    size: int = 0
    owner: tuple[int, int] | None = None
    changed: float | None = None


class Reader(Protocol):
    """An open file."""

    async def read(self, offset: int, size: int) -> bytes:
        """As pread(2); may wait."""

    def ready(self, notify: Callable[[], None] | None) -> bool:
        """Whether `read` would not wait; if it would, `notify` is called once when that changes."""

    def close(self) -> None:
        """The last descriptor is closed."""


class File(Protocol):
    """A file. `on_disk`: its attributes have to be read there."""

    on_disk: bool

    def facts(self) -> Facts:
        """Its attributes, as they are now."""

    async def open(self, asker: Asker) -> Reader:
        """Open it for reading."""


class Folder:
    """A directory with what was put in it. Others may find their entries elsewhere."""

    on_disk = False

    def __init__(self, mode: int = 0o755) -> None:
        self.mode = mode
        self.entries: dict[bytes, Folder | File] = {}

    def facts(self) -> Facts:
        """Its attributes."""
        return Facts(stat.S_IFDIR | self.mode)

    def names(self) -> Iterable[bytes]:
        """What it lists."""
        return list(self.entries)

    def find(self, name: bytes) -> Folder | File | None:
        """An entry."""
        return self.entries.get(name)


class Text:
    """A file whose contents are made when it is opened."""

    on_disk = False

    def __init__(self, make: Callable[[], bytes]) -> None:
        self._make = make

    def facts(self) -> Facts:
        """See `File`."""
        return Facts(stat.S_IFREG | 0o444)

    async def open(self, asker: Asker) -> Reader:
        """See `File`."""
        return Bytes(self._make())


class Bytes:
    """An open file with contents that stay."""

    def __init__(self, contents: bytes) -> None:
        self._contents = contents

    async def read(self, offset: int, size: int) -> bytes:
        """See `Reader`."""
        return self._contents[offset : offset + size]

    def ready(self, notify: Callable[[], None] | None) -> bool:
        """See `Reader`."""
        return True

    def close(self) -> None:
        """See `Reader`."""


@dataclass(eq=False, slots=True)
class Listing:
    """An open directory: what it listed when it was opened, by names in directories. `held`: the roots of areas of
    which the kernel was told no more than the number; they keep it until then."""

    entries: list[tuple[int, bytes]]
    held: set[Node] = field(default_factory=set)


@dataclass(eq=False, slots=True)
class Own:
    """An entry that the kernel may know: its number, what it is, and how often it was looked up."""

    ino: int
    entry: Folder | File
    key: tuple[int, bytes]
    passing: bool
    lookups: int = 0
    told: int = 0  # the largest size that the kernel knows of


class Control:
    """All entries by their number, from `top` down. What is open of them, by its handle, is in `opened`."""

    def __init__(self) -> None:
        self.top = Folder()
        self.folder = Folder()
        self.by_ino: dict[int, Own] = {}
        self.opened: dict[int, Listing | Reader] = {}
        self._by_key: dict[tuple[int, bytes], Own] = {}
        self._next = _FIRST_PASSING
        self._keep(ROOT, self.top, (0, b""))
        builds = Folder(0o1777)
        for ino, name, folder in (
            (BUILDS, b"builds", builds),
            (RESULTS, b"results", Folder(0o1777)),
            (CACHES, b"caches", Folder(0o1777)),
        ):
            self.put(self.top, ROOT, ino, name, folder)
        self.put(self.top, ROOT, CONTROL, b".zfsfs", self.folder)
        self.put(builds, BUILDS, FAILED, FAILED_BUILDS, Folder(0o1777))

    def put(self, folder: Folder, parent: int, ino: int, name: bytes, entry: Folder | File) -> None:
        """Add an entry that stays, under a number of its own below 64."""
        folder.entries[name] = entry
        self._keep(ino, entry, (parent, name))

    def _keep(self, ino: int, entry: Folder | File, key: tuple[int, bytes]) -> None:
        self.by_ino[ino] = self._by_key[key] = Own(ino, entry, key, passing=False)

    def get(self, ino: int) -> Own:
        """An entry by its number. Raises ESTALE."""
        own = self.by_ino.get(ino)
        if own is None:
            raise error(errno.ESTALE)
        return own

    def names(self, ino: int) -> list[bytes]:
        """What a directory lists."""
        folder = self.get(ino).entry
        return list(folder.names()) if isinstance(folder, Folder) else []

    def find(self, parent: int, name: bytes) -> Own:
        """The entry of a directory. Counts no lookup. Raises ENOENT."""
        folder = self.get(parent).entry
        entry = folder.find(name) if isinstance(folder, Folder) else None
        if entry is None:
            raise error(errno.ENOENT)
        key = (parent, name)
        own = self._by_key.get(key)
        if own is None:
            own = Own(self._number(), entry, key, passing=True)
            self.by_ino[own.ino] = self._by_key[key] = own
        own.entry = entry
        return own

    def _number(self) -> int:
        for _ in range(_FIRST_PASSING, FIRST_INODE):
            number = self._next
            self._next = number + 1 if number + 1 < FIRST_INODE else _FIRST_PASSING
            if number not in self.by_ino:
                return number
        raise error(errno.ENFILE)

    def forget(self, ino: int, count: int) -> None:
        """The kernel gives a number back; without a count only if it was never told of it."""
        own = self.by_ino.get(ino)
        if own is None or not own.passing:
            return
        own.lookups -= count
        if own.lookups <= 0:
            del self.by_ino[ino]
            del self._by_key[own.key]

"""A disk that answers nothing while it is told to wait: `python slow_disk.py FOLDER IMAGE` is a filesystem with one
file in it, for a loop device to lie on.

What it is told on standard input, it says on standard output: `shut` (from now on reads, writes and flushes wait) and
`open`. While it is shut it says `waits` for the first that does.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyfuse3
import trio

#: Seconds after which nothing is expected any more.
PATIENCE = 20.0
_FILE = pyfuse3.ROOT_INODE + 1


class Disk(pyfuse3.Operations):
    def __init__(self, image: int) -> None:
        super().__init__()
        self._image = image
        self._opened = trio.Event()
        self._opened.set()
        self._said = True

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = stat.S_IFREG | 0o600 if inode == _FILE else stat.S_IFDIR | 0o700
        entry.st_size = os.fstat(self._image).st_size if inode == _FILE else 0
        entry.st_nlink = 1
        entry.attr_timeout = entry.entry_timeout = 1000
        return entry

    async def lookup(self, parent: int, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        if name != b"disk":
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self._attributes(_FILE)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def open(self, inode: int, flags: int, ctx: Any) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=0, direct_io=True)

    async def read(self, fh: int, offset: int, size: int) -> bytes:
        await self._turn()
        return os.pread(self._image, size, offset)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        await self._turn()
        return os.pwrite(self._image, data, offset)

    async def fsync(self, fh: int, data_only: bool) -> None:
        await self._turn()

    async def _turn(self) -> None:
        if not self._opened.is_set() and not self._said:
            self._said = True
            say("waits")
        await self._opened.wait()

    async def obey(self) -> None:
        async for line in trio.wrap_file(sys.stdin):
            if line == "shut\n":
                self._opened, self._said = trio.Event(), False
            elif line == "open\n":
                self._opened.set()
            say(line.strip())
        self._opened.set()


def say(word: str) -> None:
    print(word, flush=True)


async def serve(folder: str, image: str) -> None:
    disk = Disk(os.open(image, os.O_RDWR))
    pyfuse3.init(disk, folder, {"fsname=slow"})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.obey)
        say("open")
        await pyfuse3.main()
        nursery.cancel_scope.cancel()
    pyfuse3.close(unmount=False)


class SlowDisk:
    """What a test has of it: an ext4 filesystem at `path`, on which no two inodes share a block."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]) -> None:
        self.path = path
        self._process = process

    def _tell(self, word: str) -> None:
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), f"{word}\n".encode())
        while self.said() != word:
            pass

    def said(self) -> str:
        """The next thing that it says, sooner or later."""
        assert self._process.stdout is not None
        fd, word = self._process.stdout.fileno(), b""
        while not word.endswith(b"\n"):
            assert select.select([fd], [], [], PATIENCE)[0], "the disk has nothing to do"
            more = os.read(fd, 1)
            assert more, "the disk is gone"
            word += more
        return word.decode().strip()

    @contextlib.contextmanager
    def shut(self) -> Iterator[None]:
        """Nothing is read or written meanwhile."""
        self._tell("shut")
        try:
            yield
        finally:
            self._tell("open")


@contextlib.contextmanager
def slow_disk(folder: Path) -> Iterator[SlowDisk]:
    """A disk, in use until the end."""
    below, path, image = folder / "below", folder / "disk", folder / "image"
    below.mkdir()
    path.mkdir()
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    # No journal: it keeps blocks in memory.
    options = ("-O", "^has_journal", "-b", "1024", "-I", "1024", "-E", "lazy_itable_init=0")
    subprocess.run(["mkfs.ext4", "-q", *options, image], check=True)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen([sys.executable, __file__, below, image], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        disk = SlowDisk(path, process)
        assert disk.said() == "open"
        stack.callback(subprocess.run, ["umount", below], check=True)
        # Nothing of its own accord: no access times, no inodes for the sake of their neighbours.
        alone = "loop,noatime,inode_readahead_blks=0"
        subprocess.run(["mount", "-o", alone, below / "disk", path], check=True)
        stack.callback(subprocess.run, ["umount", path], check=True)
        yield disk


if __name__ == "__main__":
    trio.run(serve, *sys.argv[1:])

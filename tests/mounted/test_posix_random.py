"""Long random sequences, the same each time: of one file's contents (after Apple's fsx), of names and open files."""

from __future__ import annotations

import mmap
import os
import random
import stat
from collections.abc import Callable, Iterator
from typing import Any

from comparing import ANNA, BERT, ROOT, acting, compared, look, tried

from zfsfs.syscalls import renameat2

#: How long the file of the first kind gets, in bytes.
LENGTH = 200_000


def mapped(fd: int, offset: int, data: bytes) -> int:
    """Write into a file by a shared mapping."""
    length = os.fstat(fd).st_size
    if offset >= length:
        return 0
    with mmap.mmap(fd, length) as view:
        data = data[: length - offset]
        view[offset : offset + len(data)] = data
    return len(data)


def seen(fd: int, offset: int, length: int) -> bytes:
    """What a private mapping shows."""
    size = os.fstat(fd).st_size
    if not size:
        return b""
    with mmap.mmap(fd, size, mmap.MAP_PRIVATE) as view:
        return view[offset : offset + length]


def direct(fd: int, offset: int, data: bytes) -> int:
    """Write whole pages past the page cache, to a file without a broken last block."""
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT)
    with mmap.mmap(-1, 4096) as page:
        page[: len(data[:4096])] = data[:4096]
        written = os.pwritev(again, [page], offset & ~4095)
    os.close(again)
    return written


def appended(data: bytes) -> int:
    fd = os.open("f", os.O_WRONLY | os.O_APPEND)
    written = os.write(fd, data)
    os.close(fd)
    return written


def copied(fd: int, source: int, target: int) -> int:
    """Copy a page within the file, when it has one there."""
    if os.fstat(fd).st_size < source + 4096 or abs(source - target) < 4096:
        return 0
    return os.copy_file_range(fd, fd, 4096, source, target)


@compared()
def test_a_file_s_contents() -> Iterator[Any]:
    for seed in range(3):
        chance = random.Random(seed)
        fd = os.open("f", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        for number in range(150):
            offset, data = chance.randrange(LENGTH), chance.randbytes(chance.randrange(1, 20_000))
            kind = chance.choice("wwwrrmmstTdacfxo")
            if kind == "w":
                yield os.pwrite(fd, data, offset)
            elif kind == "r":
                yield os.pread(fd, len(data), offset)
            elif kind == "m":
                yield mapped(fd, offset, data)
            elif kind == "s":
                yield seen(fd, offset, len(data))
            elif kind == "t":
                yield os.ftruncate(fd, offset)
            elif kind == "T":
                yield os.truncate("f", offset)
            elif kind == "d":
                yield direct(fd, offset, data)
            elif kind == "a" and os.fstat(fd).st_size < 2 * LENGTH:
                yield appended(data)
            elif kind == "c":
                yield copied(fd, offset, chance.randrange(LENGTH))
            elif kind == "f":
                yield os.fsync(fd)
            elif kind == "x":
                yield os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            elif kind == "o":
                os.close(fd)
                fd = os.open("f", os.O_RDWR)
            yield seed, number, kind, os.fstat(fd).st_size
        yield os.pread(fd, 3 * LENGTH, 0)
        os.close(fd)


class Names:
    """Random calls on few names, up to three directories deep, and on what is open."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.open: dict[int, int] = {}

    def name(self) -> str:
        return "/".join(self.chance.choice("abcd") for _ in range(self.chance.choice((1, 1, 2, 2, 3))))

    def mode(self) -> int:
        return self.chance.choice((0o644, 0o600, 0o4755, 0o666, 0o2777, 0o1777, 0))

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """A call and its arguments; which ones doesn't depend on what happened before."""
        chance, name = self.chance, self.name()
        slot, offset = chance.randrange(5), chance.randrange(9000)
        flags = chance.choice((os.O_RDONLY, os.O_RDWR, os.O_WRONLY)) | os.O_NONBLOCK
        flags |= chance.choice((0, os.O_CREAT, os.O_CREAT | os.O_EXCL)) | chance.choice(
            (0, 0, os.O_TRUNC, os.O_APPEND)
        )
        user, group = chance.choice((-1, 0, 1234, 4321)), chance.choice((-1, 0, 2345, 3456))
        return chance.choice((
            (self.opened, (slot, name, flags, self.mode())), (self.opened, (slot, name, flags, self.mode())),
            (self.closed, (slot,)), (self.with_open, (slot, os.pwrite, chance.randbytes(3000), offset)),
            (self.with_open, (slot, os.pread, 5000, offset)), (self.with_open, (slot, os.ftruncate, offset)),
            (self.with_open, (slot, os.fchmod, self.mode())), (self.with_open, (slot, look)),
            (self.with_open, (slot, lambda fd: sorted(os.listdir(fd)))),
            (self.with_open, (slot, lambda fd: os.link(f"/proc/self/fd/{fd}", name, follow_symlinks=True))),
            (self.with_open, (slot, lambda fd: os.mkdir(name[:1], dir_fd=fd))),
            (self.with_open, (slot, lambda fd: os.unlink(name[:1], dir_fd=fd))),
            (os.mkdir, (name, self.mode())), (os.mkdir, (name, 0o777)), (os.rmdir, (name,)), (os.unlink, (name,)),
            (os.symlink, (self.name(), name)), (os.mkfifo, (name,)), (os.truncate, (name, offset)), (look, (name,)),
            (self.linked, (self.name(), name)), (self.linked, (self.name(), name)),
            (self.renamed, (self.name(), name)), (self.renamed, (self.name(), name)),
            (self.renamed, (self.name(), name, chance.choice((1, 2)))), (os.chmod, (name, self.mode())),
            (os.lchown, (name, user, group)), (os.setxattr, (name, chance.choice(("user.a", "user.b")), b"x")),
            (os.getxattr, (name, "user.a")), (os.utime, (name, (offset, offset))),
        ))  # fmt: skip

    def opened(self, slot: int, name: str, flags: int, mode: int) -> None:
        fd = os.open(name, flags, mode)
        self.closed(slot)
        self.open[slot] = fd

    def closed(self, slot: int) -> None:
        if slot in self.open:
            os.close(self.open.pop(slot))

    def with_open(self, slot: int, call: Callable[..., Any], *arguments: Any) -> Any:
        return call(self.open[slot], *arguments) if slot in self.open else None

    @staticmethod
    def linked(old: str, new: str) -> None:
        os.link(old, new, follow_symlinks=False)

    @staticmethod
    def renamed(old: str, new: str, flags: int = 0) -> None:
        renameat2(-100, old.encode(), -100, new.encode(), flags)


def tree() -> list[tuple[Any, ...]]:
    """All files, with their contents and which are the same."""
    found, first = [], {}
    for folder, folders, files, fd in os.fwalk("."):
        folders.sort()
        found.append((folder, look(fd)))
        for name in sorted(files):
            path = f"{folder}/{name}"
            st = os.lstat(path)
            contents: Any = None
            if stat.S_ISREG(st.st_mode):
                with open(path, "rb") as file:
                    contents = file.read()
            found.append((path, look(path), first.setdefault(st.st_ino, path), contents))
    return found


@compared("root")
def test_names_and_open_files_of_several_users() -> Iterator[Any]:
    for seed in range(4):
        os.mkdir(str(seed))
        os.chmod(str(seed), 0o777)
        os.chdir(str(seed))
        names = Names(random.Random(seed))
        for number in range(400):
            call, arguments = names.call()
            with acting(names.chance.choice((ROOT, ROOT, ANNA, BERT))):
                yield seed, number, call.__name__, tried(call, *arguments)
            if number % 80 == 79:
                yield tree()
        for slot in list(names.open):
            names.closed(slot)
        os.chdir("..")

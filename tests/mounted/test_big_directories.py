"""Directories of 100,000 entries that change while they are read, and positions in them (readdir(3), telldir(3))."""

from __future__ import annotations

import ctypes
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from comparing import Places
from mounted_tree import until, zfsfs

#: Fewer in the virtual machine, which takes minutes to make so many when it is emulated.
COUNT = 20_000 if "ZFSFS_TEST_POOL" in os.environ else 100_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="fills the directory natively")

MAKE = f"""import os
for n in range({COUNT}): os.mknod(f'kept{{n}}')
for n in range(3000): os.mknod(f'going{{n}}')"""


class Entry(ctypes.Structure):
    """struct dirent."""

    _fields_ = (
        ("ino", ctypes.c_uint64), ("offset", ctypes.c_int64), ("length", ctypes.c_ushort),
        ("kind", ctypes.c_ubyte), ("name", ctypes.c_char * 256),
    )  # fmt: skip


libc = ctypes.CDLL(None, use_errno=True)
libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Entry)
libc.telldir.restype = ctypes.c_long
for call in (libc.readdir, libc.telldir, libc.closedir, libc.rewinddir):
    call.argtypes = (ctypes.c_void_p,)
libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)


class Directory:
    """A stream of opendir(3)."""

    def __init__(self, path: Path) -> None:
        self._stream = libc.opendir(os.fsencode(path))
        assert self._stream

    def __iter__(self) -> Iterator[str]:
        while entry := libc.readdir(self._stream):
            yield os.fsdecode(entry.contents.name)

    def tell(self) -> int:
        return int(libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        libc.rewinddir(self._stream)

    def close(self) -> None:
        libc.closedir(self._stream)


@contextmanager
def opened(path: Path) -> Iterator[Directory]:
    directory = Directory(path)
    try:
        yield directory
    finally:
        directory.close()


@pytest.fixture(scope="module")
def big(places: Places) -> Iterator[Path]:
    """Made and removed natively, which takes a tenth of the time."""
    build = places.roots["build"]
    natively(build, f'{sys.executable} -c "{MAKE}"')
    yield build
    natively(build, "find -delete")


def natively(build: Path, command: str) -> None:
    zfsfs("exec", build, "--cwd", build, "--", "sh", "-c", command)
    status = build.parents[1] / ".zfsfs/status.json"
    until(lambda: not json.loads(status.read_text())["native"])


def kept(names: list[str]) -> list[str]:
    return [name for name in names if name.startswith("kept")]


def test_what_stays_is_listed_once_while_others_come_and_go(big):
    names = []
    with opened(big) as directory:
        for number, name in enumerate(directory):
            names.append(name)
            if number % 100 == 0:
                os.mknod(big / f"new{number}")
                os.unlink(big / f"going{number // 100}")
                os.rename(big / f"new{number}", big / f"newer{number}")
        assert len(names) == len(set(names))
        assert len(kept(names)) == COUNT
        directory.rewind()
        again = list(directory)
    assert set(again) - {".", ".."} == set(os.listdir(big))
    assert len(again) == len(set(again))
    assert len([name for name in again if name.startswith("newer")]) == (len(names) + 99) // 100


def test_a_position_stays_good_whatever_changes(big):
    places = {}
    names = []
    with opened(big) as directory:
        for number, name in enumerate(directory):
            names.append(name)
            if number % 9_000 == 7:
                places[number + 1] = directory.tell()
        for number in range(2000, 3000, 10):
            os.unlink(big / f"going{number}")
            os.mknod(big / f"new{number}")
        for index, position in reversed(places.items()):
            directory.seek(position)
            following = [name for name, _ in zip(directory, range(3000), strict=False) if name.startswith("kept")]
            expected = kept(names[index:])[: len(following)]
            assert len(following) > 2000 or index + 3000 > len(names)
            assert following == expected

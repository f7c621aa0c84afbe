"""Locks between processes: flock(2), fcntl(2) of both kinds, leases."""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable
from typing import Any

from comparing import compared, opened, tried, write

F_OFD_SETLK = 37


def elsewhere(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives in another process."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, repr(tried(call, *arguments)).encode())
        os._exit(0)
    os.close(writing)
    answer = os.read(reading, 1000)
    os.close(reading)
    os.waitpid(child, 0)
    return answer


def flocked(name: str, how: int) -> None:
    with opened(name, os.O_RDWR) as fd:
        fcntl.flock(fd, how | fcntl.LOCK_NB)


def locked(name: str, kind: int, start: int, length: int, flags: int = os.O_RDWR) -> None:
    with opened(name, flags) as fd:
        fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", kind, 0, start, length, 0))


def asked(name: str, kind: int, start: int, length: int) -> tuple[int, int]:
    with opened(name, os.O_RDWR) as fd:
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi", kind, 0, start, length, 0))
    kind, _, found, _, _ = struct.unpack("hhqqi", answer)
    return kind, found


@compared()
def test_locks_of_whole_files():
    write("f")
    with opened("f", os.O_RDWR) as fd:
        for mine in (fcntl.LOCK_EX, fcntl.LOCK_SH, fcntl.LOCK_UN):
            fcntl.flock(fd, mine)
            for theirs in (fcntl.LOCK_EX, fcntl.LOCK_SH):
                yield mine, theirs, elsewhere(flocked, "f", theirs), tried(flocked, "f", theirs)
        fcntl.flock(fd, fcntl.LOCK_EX)
    yield elsewhere(flocked, "f", fcntl.LOCK_EX)


@compared()
def test_locks_of_ranges():
    write("f", b"x" * 100)
    fd = os.open("f", os.O_RDWR)
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 10, 10, 0))
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi", fcntl.F_RDLCK, 0, 30, 10, 0))
    for kind in (fcntl.F_WRLCK, fcntl.F_RDLCK):
        for start, length in ((0, 10), (10, 1), (15, 100), (20, 10), (30, 5), (0, 0), (1 << 40, 0)):
            yield kind, start, elsewhere(locked, "f", kind, start, length), elsewhere(asked, "f", kind, start, length)
    yield (
        elsewhere(locked, "f", fcntl.F_WRLCK, 30, 1, os.O_RDONLY),
        elsewhere(locked, "f", fcntl.F_RDLCK, 0, 1, os.O_WRONLY),
    )
    os.close(os.open("f", os.O_RDONLY))  # closing any descriptor of it gives up all, see fcntl(2)
    yield elsewhere(locked, "f", fcntl.F_WRLCK, 0, 0)
    os.close(fd)


@compared()
def test_locks_of_open_descriptions():
    write("f", b"x")
    with opened("f", os.O_RDWR) as one, opened("f", os.O_RDWR) as two:
        whole = struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0)
        yield (
            isinstance(tried(fcntl.fcntl, one, F_OFD_SETLK, whole), bytes),
            tried(fcntl.fcntl, two, F_OFD_SETLK, whole),
        )
        yield elsewhere(locked, "f", fcntl.F_RDLCK, 0, 1)


@compared()
def test_a_lock_is_waited_for():
    write("f")
    reading, writing = os.pipe()
    fd = os.open("f", os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    child = os.fork()
    if child == 0:
        os.close(fd)
        with opened("f", os.O_RDWR) as mine:
            os.write(writing, b"asks ")
            fcntl.flock(mine, fcntl.LOCK_EX)
            os.write(writing, b"has it")
        os._exit(0)
    first = os.read(reading, 5)
    os.write(writing, b"was let in, ")
    os.close(fd)
    os.waitpid(child, 0)
    yield first + os.read(reading, 50)


@compared()
def test_locks_outlive_names():
    write("f")
    with opened("f", os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.rename("f", "g")
        yield elsewhere(flocked, "g", fcntl.LOCK_SH)
        os.link("g", "h")
        os.unlink("g")
        yield elsewhere(flocked, "h", fcntl.LOCK_SH)
    yield elsewhere(flocked, "h", fcntl.LOCK_SH)


@compared()
def test_locks_of_directories():
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd, opened("d", os.O_RDONLY) as other:
        yield tried(fcntl.flock, fd, fcntl.LOCK_EX), tried(fcntl.flock, other, fcntl.LOCK_EX | fcntl.LOCK_NB)

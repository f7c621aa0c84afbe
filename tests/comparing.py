"""Cases that run twice, in the mounted tree and on the filesystem beneath it, and must observe the same.

A case is a generator: it runs in an empty directory (its working directory) and yields what it observes. It runs in
a process of its own, as root or as an ordinary user, in a build, in a cache and natively.
"""

from __future__ import annotations

import errno
import itertools
import os
import pickle
import stat
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

#: CLOCK_REALTIME_COARSE, which is what files are stamped with at least (clock_gettime(2)).
_COARSE = 5
#: The attributes that access control lists are, see linux/posix_acl_xattr.h.
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
Case = Callable[[], Iterator[Any]]


@dataclass(frozen=True)
class User:
    """Who acts."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


ROOT = User(0, 0)
ANNA = User(1234, 2345, (3456,))
BERT = User(4321, 5432)
USERS = {"root": ROOT, "user": ANNA}


@contextmanager
def acting(user: User) -> Iterator[None]:
    """What is inside is done by a user; it takes root to become somebody else."""
    os.setgroups(user.groups)
    os.setresgid(user.gid, user.gid, 0)
    os.setresuid(user.uid, user.uid, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        os.setgroups([])


def tried(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """What a call returns, or the name of its errno."""
    try:
        return call(*arguments, **named)
    except OSError as failure:
        return errno.errorcode[failure.errno or 0]


def look(name: str | int) -> tuple[Any, ...]:
    """What there is to say of a file that is the same on every filesystem."""
    try:
        st = os.fstat(name) if isinstance(name, int) else os.lstat(name)
    except OSError as failure:
        return (errno.errorcode[failure.errno or 0],)
    size = -1 if stat.S_ISDIR(st.st_mode) else st.st_size
    return stat.filemode(st.st_mode), st.st_nlink, st.st_uid, st.st_gid, size, st.st_rdev


def tick() -> None:
    """Wait until a file that is changed now gets another time than one that was changed before."""
    before = time.clock_gettime_ns(_COARSE)
    while time.clock_gettime_ns(_COARSE) == before:
        os.sched_yield()


def moved(names: Sequence[str], call: Callable[..., Any], *arguments: Any, **named: Any) -> list[Any]:
    """The outcome of a call, and which times of the named files it has moved."""
    before = [tried(os.lstat, name) for name in names]
    tick()
    outcome: list[Any] = [tried(call, *arguments, **named)]
    for name, old in zip(names, before, strict=True):
        new = tried(os.lstat, name)
        if isinstance(old, str) or isinstance(new, str):
            outcome.append((name, isinstance(old, str), isinstance(new, str)))
        else:
            outcome.append((name, old.st_mtime_ns != new.st_mtime_ns, old.st_ctime_ns != new.st_ctime_ns))
    return outcome


def write(name: str, data: bytes = b"", mode: int = 0o666) -> None:
    """Make a file."""
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    os.write(fd, data)
    os.close(fd)


def read(name: str) -> bytes:
    """All of a file."""
    return Path(name).read_bytes()


@contextmanager
def opened(name: str, flags: int, mode: int = 0o666) -> Iterator[int]:
    """A descriptor."""
    fd = os.open(name, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def acl(*entries: tuple[int, ...]) -> bytes:
    """An access control list of (tag, permissions) or (tag, permissions, id), as its attribute holds it."""
    packed = [struct.pack("<HHI", each[0], each[1], each[2] if len(each) > 2 else 0xFFFFFFFF) for each in entries]
    return struct.pack("<I", 2) + b"".join(packed)


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """What is inside has another umask."""
    old = os.umask(mask)
    try:
        yield
    finally:
        os.umask(old)


def observed(case: Case, folder: Path, user: User) -> list[Any]:
    """What a case yields, in a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            os.chdir(folder)
            os.umask(0o022)
            if user.uid:
                os.setgroups(user.groups)
                os.setresgid(user.gid, user.gid, user.gid)
                os.setresuid(user.uid, user.uid, user.uid)
            try:
                answer: Any = list(case())
            except BaseException:
                answer = traceback.format_exc()
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pickle.load(pipe)
    os.waitpid(child, 0)
    assert isinstance(answer, list), answer
    return answer


class Places:
    """Where cases run: `roots` are a build, a cache, and a directory of the filesystem beneath."""

    def __init__(self, roots: dict[str, Path]) -> None:
        self.roots = roots
        self._numbers = itertools.count()

    def chosen(self, user: str) -> tuple[str, ...]:
        """Where a case runs for a user: in both, but in the virtual machine, which is slow, in one of them."""
        if "ZFSFS_TEST_POOL" in os.environ:
            return ("build",) if user == "root" else ("cache",)
        return "build", "cache"

    def run(self, case: Case, place: str, user: User) -> list[Any]:
        """What a case observes in an empty directory of its own."""
        folder = self.roots[place] / str(next(self._numbers))
        folder.mkdir()
        os.chown(folder, user.uid, user.gid)
        return observed(case, folder, user)


def differences(found: list[Any], expected: list[Any], place: str) -> list[str]:
    """What was observed otherwise, a line each."""
    pairs = enumerate(itertools.zip_longest(found, expected))
    return [f"{place} {number}: {here!r}, natively {there!r}" for number, (here, there) in pairs if here != there]


def compared(*users: str) -> Callable[[Case], Callable[..., None]]:
    """Make a test of a case: it observes in a build and in a cache what it observes natively.

    By default as root and as an ordinary user; cases that act as several users start as root.
    """

    def decorate(case: Case) -> Callable[..., None]:
        @pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
        @pytest.mark.parametrize("user", users or tuple(USERS))
        def test(places: Places, user: str) -> None:
            expected = places.run(case, "native", USERS[user])
            for place in places.chosen(user):
                assert differences(places.run(case, place, USERS[user]), expected, place) == []

        test.__name__ = case.__name__
        test.__doc__ = case.__doc__
        return test

    return decorate

"""When a name is looked for by a worker first: the kernel's word is a list here, what is beneath is real."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from zfsfs import syscalls
from zfsfs.fs import cold
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import Node, NodeTable
from zfsfs.fs.places import ResultPlace
from zfsfs.fs.workers import Workers
from zfsfs.names import BuildId


class Beneath:
    """A view of a plain directory."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def close(self) -> None:
        os.close(self.fd)


class Kernel:
    """What the kernel says that it has in memory, and what it was asked."""

    def __init__(self) -> None:
        self.known: set[bytes] = set()
        self.knows_all = False
        self.asked: list[bytes] = []

    def is_cached(self, folder: int, name: bytes) -> bool:
        self.asked.append(name)
        return self.knows_all or name in self.known


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    kernel = Kernel()
    monkeypatch.setattr(syscalls, "is_cached", kernel.is_cached)
    return kernel


@pytest.fixture
def top(tmp_path: Path) -> Iterator[Node]:
    area = Area(NodeTable(64), ResultPlace(BuildId(b"x")))
    area.attach(Beneath(tmp_path))
    yield area.root
    view = area.detach()
    assert view is not None
    view.close()


def is_cold(top: Node, name: bytes = b"name") -> bool:
    return cold.is_cold(top.area.table.descriptors, top, name)


def warm(top: Node, name: bytes) -> None:
    workers = Workers(1)
    try:
        trio.run(cold.warm, workers, top.area.table.descriptors, top, name)
    finally:
        workers.close()


def test_what_the_kernel_knows_is_not_cold(kernel, top):
    kernel.known = {b"known"}
    assert [is_cold(top, name) for name in (b"known", b"other", b"known")] == [False, True, False]


def test_after_some_names_in_memory_the_kernel_is_asked_no_more_until_one_is_slow(kernel, top):
    kernel.knows_all = True
    assert not any(is_cold(top) for _ in range(50))
    assert len(kernel.asked) == 8
    cold.answered(top.area, time.perf_counter())
    assert not is_cold(top)
    assert len(kernel.asked) == 8
    cold.answered(top.area, time.perf_counter() - 1)
    assert not is_cold(top)
    assert len(kernel.asked) == 9


def test_names_that_are_not_in_memory_start_the_count_again(kernel, top):
    kernel.known = {b"known"}
    for _ in range(3):
        assert [is_cold(top, name) for name in [b"known"] * 7 + [b"other"]] == [False] * 7 + [True]


def test_a_small_directory_is_warm_after_one_look(kernel, top, tmp_path):
    for number in range(50):
        (tmp_path / str(number)).touch()
    kernel.known = {b"1"}
    warm(top, b"1")
    assert (top.warm, top.area.tells) == (True, True)
    assert not is_cold(top, b"2")


def test_a_large_directory_is_looked_at_name_by_name(kernel, top, tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    kernel.known = {b"1"}
    warm(top, b"1")
    assert (top.warm, top.area.tells) == (False, True)
    assert is_cold(top, b"2")


def test_where_the_kernel_never_knows_each_directory_is_looked_at_once(kernel, top, tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    assert is_cold(top, b"1")
    warm(top, b"1")
    assert (top.warm, top.area.tells) == (True, False)
    assert not is_cold(top, b"2")


def test_a_name_that_is_not_there_is_no_error(kernel, top):
    warm(top, b"missing")
    assert top.warm


def test_the_kernels_own_word(top, tmp_path):
    (tmp_path / "file").touch()
    assert syscalls.is_cached(top.area.fd, b"file")

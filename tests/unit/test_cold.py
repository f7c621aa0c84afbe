"""When a name is looked for by a worker first: the kernel's word is a list here, what is beneath is real."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from beneath import Beneath

from zfsfs import syscalls
from zfsfs.fs import cold
from zfsfs.fs.area import Area
from zfsfs.fs.handles import DirectoryHandle
from zfsfs.fs.nodes import NEVER, Node, NodeTable
from zfsfs.fs.places import ResultPlace
from zfsfs.fs.workers import Workers
from zfsfs.names import BuildId


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What time it is."""
    now = [1000.0]
    monkeypatch.setattr(cold, "monotonic", lambda: now[0])
    return now


def is_cold(top: Node, name: bytes = b"name") -> bool:
    return cold.is_cold(top, name)


def warm(top: Node, name: bytes) -> None:
    workers = Workers(1)
    try:
        trio.run(cold.warm, workers, top, name)
    finally:
        workers.close()


def test_what_the_kernel_knows_is_not_cold(kernel, top):
    kernel.known = {b"known"}
    assert [is_cold(top, name) for name in (b"known", b"other", b"known")] == [False, True, False]


def test_each_name_is_asked_about_whatever_was_in_memory_before(kernel, top):
    kernel.known = {b"known"}
    assert not any(is_cold(top, b"known") for _ in range(50))
    assert is_cold(top, b"other")
    assert len(kernel.asked) == 51


def test_a_small_directory_is_in_memory_after_one_look_for_as_long_as_it_is_used(kernel, top, tmp_path, clock):
    for number in range(50):
        (tmp_path / str(number)).touch()
    kernel.known = {b"1"}
    warm(top, b"1")
    assert top.area.tells
    for _ in range(5):
        clock[0] += cold.TRUST * 0.9
        assert not is_cold(top, b"2")
    clock[0] += cold.TRUST * 1.1
    assert is_cold(top, b"2")


def test_a_directory_of_which_a_sample_is_in_memory_is_taken_to_be_as_a_whole(kernel, top, tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    kernel.knows_all = True
    warm(top, b"1")
    kernel.knows_all = False
    assert not is_cold(top, b"2")


def test_a_node_is_looked_for_by_its_name_unless_it_is_held(kernel, top, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    table = top.area.table
    folder = table.remember(top, b"folder", os.stat(tmp_path / "folder"))
    file = table.remember(folder, b"file", os.stat(tmp_path / "folder/file"))
    assert cold.is_cold(file)
    assert kernel.asked == [b"folder/file"]  # nothing on the way is opened for the sake of asking
    kernel.known = {b"folder/file"}
    assert not cold.is_cold(file)
    kernel.known = set()
    table.hold(file)
    assert not cold.is_cold(file)
    table.closed(file)
    assert cold.is_cold(file)
    table.descriptors.of(file)
    assert not cold.is_cold(file)


def test_a_worker_opens_the_way_to_what_it_looks_at(kernel, top, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").touch()
    folder = top.area.table.remember(top, b"folder", os.stat(tmp_path / "folder"))
    kernel.known = {b"file"}
    warm(folder, b"file")
    assert (folder.fd, top.area.tells, folder.warm > 0) == (-1, True, True)


def test_who_is_replaced_on_the_way_by_a_link_is_not_followed(kernel, top, tmp_path):
    (tmp_path / "folder").mkdir()
    folder = top.area.table.remember(top, b"folder", os.stat(tmp_path / "folder"))
    (tmp_path / "folder").rmdir()
    (tmp_path / "folder").symlink_to("/")
    warm(folder, b"etc")
    assert kernel.asked == []


def test_a_large_directory_is_looked_at_name_by_name(kernel, top, tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    kernel.known = {b"1"}
    warm(top, b"1")
    assert (top.warm, top.area.tells) == (NEVER, True)
    assert is_cold(top, b"2")


def test_each_look_into_a_large_directory_goes_on_where_the_last_one_ended(kernel, top, tmp_path, clock, monkeypatch):
    for number in range(250):
        (tmp_path / str(number)).touch()
    kernel.known = {b"1"}
    looked: list[bytes] = []
    stat = os.stat
    monkeypatch.setattr(os, "stat", lambda name, **more: looked.append(name) or stat(name, **more))
    for _ in range(3):
        assert top.warm == NEVER
        warm(top, b"1")
    assert top.warm == clock[0]
    assert len(looked) == 250 + len([b".", b".."]) + 3 * len([b"1"])
    assert set(looked) == {b".", b"..", *os.listdir(os.fsencode(tmp_path))}


def test_a_look_that_was_long_ago_begins_anew(kernel, top, tmp_path, clock):
    for number in range(150):
        (tmp_path / str(number)).touch()
    kernel.known = {b"1"}
    warm(top, b"1")
    clock[0] += cold.TRUST * 1.1
    kernel.knows_all = True  # of what was looked at then
    warm(top, b"1")
    assert top.warm == NEVER
    warm(top, b"1")
    assert top.warm == clock[0]


def test_where_the_kernel_never_knows_each_directory_is_looked_at_once(kernel, top, tmp_path):
    for number in range(200):
        (tmp_path / str(number)).touch()
    assert is_cold(top, b"1")
    warm(top, b"1")
    assert (top.warm > 0, top.area.tells) == (True, False)
    assert not is_cold(top, b"2")


def test_a_name_that_is_not_there_is_no_error(kernel, top):
    warm(top, b"missing")
    # That the kernel takes no note of it says nothing of others.
    assert (top.warm > 0, top.area.tells) == (True, True)


def test_a_directory_that_can_t_be_looked_at_ahead_is_open_all_the_same(top, monkeypatch):
    monkeypatch.setattr(os, "open", refused)
    workers = Workers(1)
    try:
        cold.look_ahead(workers, DirectoryHandle(top.area.fd, top))
    finally:
        workers.close()


def refused(*_arguments: object, **_named: object) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_the_kernels_own_word(top, tmp_path):
    (tmp_path / "file").touch()
    assert syscalls.is_cached(top.area.fd, b"file")

"""Which files keep a backing: the kernel is a list of what it was told here."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from beneath import Beneath

from zfsfs.fs import backing
from zfsfs.fs.area import Area
from zfsfs.fs.backing import Backings
from zfsfs.fs.caller import Caller
from zfsfs.fs.nodes import Node, NodeTable
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import ResultPlace
from zfsfs.fs.users import FILE, Users
from zfsfs.fs.workers import Workers
from zfsfs.names import BuildId

ROOT = Caller(0, 0)


class Files:
    """Files of an area, and the backings that the kernel has, by what is beneath."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(backing.fcntl, "ioctl", self._ioctl)
        self.made = 0
        self.backings: dict[int, str] = {}
        table = NodeTable(64)
        self.area = Area(table, ResultPlace(BuildId(b"x")))
        self.path = path
        self.area.attach(Beneath(path))
        self.workers = Workers(1)
        self.files = Passthrough(table, self.workers, Users({FILE: 100}, lambda user, text: None))
        self.files.backings = table.keeper = Backings(-1)

    def _ioctl(self, device: int, request: int, argument: Any) -> int:
        if request == backing._CLOSE:
            del self.backings[struct.unpack("<I", argument)[0]]
            return 0
        self.made += 1
        fd, *_ = struct.unpack("<iIQ", argument)
        self.backings[self.made] = os.path.basename(os.readlink(f"/proc/self/fd/{fd}"))
        return self.made

    def node(self, name: bytes) -> Node:
        node, _ = self.files.lookup(self.area.root, name)
        node.lookups += 1
        return node

    def use(self, node: Node, flags: int = os.O_RDONLY) -> int:
        """Open and close; the number of the backing."""
        handle = self.files.open(node, flags, ROOT)
        self.files.close(handle.fd)
        return handle.backing

    def show_again(self) -> None:
        """The area shows something else, in which all is the same."""
        before = self.area.view
        assert before is not None
        self.area.attach(Beneath(self.path))
        before.close()

    @property
    def kept(self) -> list[str]:
        return sorted(self.backings.values())


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    for name in ("a", "b", "c"):
        (tmp_path / name).write_text(name)
    files = Files(tmp_path, monkeypatch)
    yield files
    view = files.area.detach()
    assert view is not None
    view.close()
    files.workers.close()
    assert files.kept == []


def test_who_reads_a_file_again_finds_its_backing(files):
    node = files.node(b"a")
    assert [files.use(node) for _ in range(3)] == [1, 1, 1]
    assert files.kept == ["a"]


def test_where_the_kernel_can_make_none_what_we_write_has_the_time_of_its_writing(files, monkeypatch):
    monkeypatch.setattr(Backings, "_register", lambda *_: 0)
    handle = files.files.open(files.node(b"a"), os.O_RDWR, ROOT)
    os.utime(handle.fd, ns=(1, 1))
    files.files.to_write(handle, 0, b"x")()
    files.files.close(handle.fd)
    assert (files.path / "a").stat().st_mtime_ns > 1


def test_what_was_open_for_writing_keeps_none(files):
    node = files.node(b"a")
    assert [files.use(node, os.O_RDWR) for _ in range(2)] == [1, 2]
    assert files.kept == []


def test_nor_does_what_was_opened_for_writing_first_and_is_closed_by_a_reader_last(files):
    node = files.node(b"a")
    writing, reading = files.files.open(node, os.O_RDWR, ROOT), files.files.open(node, os.O_RDONLY, ROOT)
    assert writing.backing == reading.backing
    for handle in (writing, reading):
        files.files.close(handle.fd)
    assert files.kept == []


def test_the_oldest_goes_when_there_are_many(files, monkeypatch):
    monkeypatch.setattr(backing, "MOST", 2)
    for name in (b"a", b"b", b"a", b"c"):
        files.use(files.node(name))
    assert files.kept == ["a", "c"]


def test_nothing_is_kept_of_what_was_removed(files):
    files.use(files.node(b"a"))
    files.files.unlink(files.area.root, b"a")
    assert files.kept == []


def test_nothing_is_kept_of_what_was_renamed_nor_of_what_was_there(files):
    for name in (b"a", b"b"):
        files.use(files.node(name))
    files.files.rename(files.area.root, b"a", files.area.root, b"b", 0, ROOT)
    assert files.kept == []


def test_nothing_is_kept_of_what_loses_one_of_its_names(files):
    os.link(files.path / "a", files.path / "also")
    node = files.node(b"a")
    files.node(b"also")
    files.use(node)
    files.files.unlink(files.area.root, b"also")
    assert files.kept == []


def test_nothing_is_kept_of_what_was_removed_while_it_was_open(files):
    handle = files.files.open(files.node(b"a"), os.O_RDONLY, ROOT)
    files.files.unlink(files.area.root, b"a")
    files.files.close(handle.fd)
    assert files.kept == []


def test_nothing_is_kept_of_what_the_kernel_has_forgotten(files):
    node = files.node(b"a")
    files.use(node)
    files.area.table.forget(node.ino, node.lookups)
    assert files.kept == []


def test_nothing_is_kept_of_an_area_that_shows_something_else(files):
    files.use(files.node(b"a"))
    files.show_again()
    assert files.kept == []


def test_nor_of_what_was_opened_before_it_did(files):
    handle = files.files.open(files.node(b"a"), os.O_RDONLY, ROOT)
    files.show_again()
    files.files.close(handle.fd)
    assert files.kept == []


def test_nothing_is_kept_of_a_frozen_area(files):
    files.use(files.node(b"a"))
    files.area.freeze()
    assert files.kept == []


def test_nothing_is_kept_of_a_published_area(files):
    files.use(files.node(b"a"))
    files.area.read_only = True
    assert files.use(files.node(b"a")) == 0
    assert files.kept == []

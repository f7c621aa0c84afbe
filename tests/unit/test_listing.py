"""What a listing tells the kernel: everything once, and then names only, until something changes."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from struct import Struct

import pytest
from beneath import Beneath

from zfsfs.fs import listing
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.handles import DirectoryHandle
from zfsfs.fs.nodes import Node
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import ResultPlace
from zfsfs.names import BuildId

ROOT = Caller(0, 0)
ABOVE = 4711
#: linux/fuse.h: nodeid, the rest of an entry; inode, offset, length of the name, type.
ENTRY = Struct("<Q120xQqII")


@pytest.fixture
def top(files: Passthrough, tmp_path: Path) -> Iterator[Node]:
    """The root of an area with a file of two names, another, a link and a directory."""
    (tmp_path / "file").write_text("contents")
    os.link(tmp_path / "file", tmp_path / "alias")
    (tmp_path / "other").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    area = Area(files.table, ResultPlace(BuildId(b"x")))
    area.attach(Beneath(tmp_path))
    yield area.root
    for number in list(files.handles):
        files.close(number)
    view = area.detach()
    assert view is not None
    view.close()


def unpacked(reply: bytes) -> Iterator[tuple[str, int, int, int, int]]:
    at = 0
    while at < len(reply):
        node, shown, following, length, kind = ENTRY.unpack_from(reply, at)
        at += ENTRY.size
        yield reply[at : at + length].decode(), node, shown, kind, following
        at += length + 7 & ~7


def listed(files: Passthrough, top: Node, size: int = 1 << 16) -> Iterator[tuple[str, int, int, int, int]]:
    """All of a directory, reply by reply."""
    handle = files.opendir(top, ROOT)
    offset = 0
    while True:
        reply, count = listing.listed(files.table, handle, offset, size, ABOVE)
        entries = list(unpacked(reply))
        assert (len(entries), len(reply) <= size) == (count, True)
        if not entries:
            break
        yield from entries
        offset = entries[-1][-1]
    files.close(handle.fd)


def told(files: Passthrough, top: Node) -> list[str]:
    """The names that come with attributes."""
    return sorted(name for name, node, *_ in listed(files, top) if node)


def node(top: Node, name: str) -> Node:
    return next(each for each in top.area.by_st_ino.values() if each.name == name.encode())


def test_all_is_told_once(files, top):
    assert told(files, top) == ["alias", "file", "folder", "link", "other"]
    assert [node(top, name).lookups for name in ("other", "link")] == [1, 1]
    assert "other" not in told(files, top)
    assert node(top, "other").lookups == 1


def test_who_is_only_named_shows_the_same(files, top):
    def shown() -> list[tuple[str, int, int]]:
        return sorted((name, number, kind) for name, _, number, kind, _ in listed(files, top))

    first = shown()
    assert shown() == first
    kinds = {name: kind << 12 for name, _, kind in first}
    assert kinds == {
        ".": stat.S_IFDIR, "..": stat.S_IFDIR, "alias": stat.S_IFREG, "file": stat.S_IFREG, "folder": stat.S_IFDIR,
        "link": stat.S_IFLNK, "other": stat.S_IFREG,
    }  # fmt: skip
    numbers = {name: number for name, number, _ in first}
    assert (numbers[".."], numbers["."], numbers["file"]) == (ABOVE, top.shown, numbers["alias"])


def opened_and_closed(files: Passthrough, top: Node) -> None:
    files.close(files.open(node(top, "other"), os.O_RDONLY, ROOT).fd)


def renamed(files: Passthrough, top: Node) -> None:
    files.rename(top, b"link", top, b"other", 0, ROOT)
    files.rename(top, b"other", top, b"link", 0, ROOT)


CHANGES: dict[str, tuple[Callable[[Passthrough, Node], object], list[str]]] = {
    "nothing": (lambda files, top: None, []),
    "opened": (opened_and_closed, ["other"]),
    "is open": (lambda files, top: files.open(node(top, "other"), os.O_RDONLY, ROOT), ["other"]),
    "renamed": (renamed, ["link"]),
    "attribute": (lambda files, top: files.setxattr(node(top, "other"), b"user.x", b"1", ROOT), ["other"]),
    "forgotten": (lambda files, top: files.table.forget(node(top, "other").ino, 1), ["other"]),
    "frozen": (lambda files, top: setattr(top.area, "timeout", 0), ["link", "other"]),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_has_changed_is_told_again(files, top, change):
    told(files, top)
    act, expected = CHANGES[change]
    act(files, top)
    always = {"folder"}  # it changes with each entry that it gets
    hardlinked = {"alias", "file"}  # of which one is known by the other's name
    assert [name for name in told(files, top) if name not in always | hardlinked] == expected


def test_a_link_that_goes_changes_the_file(files, top):
    told(files, top)
    name = b"alias" if node_of_file(top).name == b"file" else b"file"
    files.unlink(top, name)
    assert {"alias", "file"} & set(told(files, top))


def node_of_file(top: Node) -> Node:
    return next(each for each in top.area.by_st_ino.values() if each.name in (b"file", b"alias"))


@pytest.mark.parametrize("size", [200, 400, 1000])
def test_small_replies_tell_each_entry_once(files, top, size):
    for number in range(20):
        os.close(os.open(b"more%d" % number, os.O_CREAT, dir_fd=top.area.fd))
    names = [name for name, *_ in listed(files, top, size)]
    assert sorted(names) == sorted([".", "..", *os.listdir(top.area.fd)])
    assert all(each.lookups == 1 for each in top.area.by_st_ino.values() if (each.name or b"").startswith(b"more"))


def test_what_goes_while_it_is_listed_is_left_out(files, top, tmp_path):
    handle = files.opendir(top, ROOT)
    reply, _ = listing.listed(files.table, handle, 0, 200, ABOVE)
    *_, offset = list(unpacked(reply))[-1]
    for path in tmp_path.iterdir():
        path.rmdir() if path.is_dir() else path.unlink()
    reply, _ = listing.listed(files.table, handle, offset, 1 << 16, ABOVE)
    assert {name for name, *_ in unpacked(reply)} <= {".", ".."}
    assert isinstance(handle, DirectoryHandle)


def test_what_can_t_be_looked_at_is_named_all_the_same(files, top, monkeypatch):
    look = os.stat

    def broken(name: object, **more: object) -> os.stat_result:
        if name == b"other":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return look(name, **more)  # type: ignore[call-overload, no-any-return]

    expected = sorted((name, number) for name, _, number, _, _ in listed(files, top))
    files.table.forget(node(top, "other").ino, 1)
    monkeypatch.setattr(os, "stat", broken)
    found = list(listed(files, top))
    assert sorted((name, number) for name, _, number, _, _ in found) == expected
    assert [(name, kind) for name, _, _, kind, _ in found if not kind] == [("other", 0)]


def test_an_open_directory_is_listed_wherever_it_is_now(files, top, tmp_path):
    (tmp_path / "folder/file").touch()
    folder, _ = files.lookup(top, b"folder")
    handle = files.opendir(folder, ROOT)
    files.descriptors.close(folder)
    (tmp_path / "folder").rename(tmp_path / "moved")  # by who has it natively
    reply, _ = listing.listed(files.table, handle, 0, 1 << 16, ABOVE)
    assert {name for name, *_ in unpacked(reply)} == {".", "..", "file"}

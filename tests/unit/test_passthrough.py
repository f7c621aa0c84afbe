"""What the kernel can't be made to ask for at will: races with changes beneath, short writes, failing removals."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest
import trio
from beneath import Beneath
from errnos import failing

from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.handles import Changes
from zfsfs.fs.nodes import Node
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import ResultPlace
from zfsfs.names import BuildId

ROOT = Caller(0, 0)


@pytest.fixture
def top(files: Passthrough, tmp_path: Path) -> Iterator[Node]:
    """The root of an area that shows `tmp_path`."""
    area = Area(files.table, ResultPlace(BuildId(b"x")))
    area.attach(Beneath(tmp_path))
    yield area.root
    for number in list(files.handles):
        files.close(number)
    view = area.detach()
    assert view is not None
    view.close()


def found(files: Passthrough, parent: Node, name: bytes) -> Node:
    """A node that the kernel knows."""
    node, _ = files.lookup(parent, name)
    node.lookups += 1
    return node


@pytest.mark.parametrize("kind", ["file", "link", "fifo"])
def test_what_is_there_after_all_is_not_opened_by_who_wanted_to_make_it(files, top, tmp_path, kind):
    (tmp_path / "secret").write_text("secret")
    if kind == "file":
        (tmp_path / "new").write_text("another's")
    elif kind == "link":
        (tmp_path / "new").symlink_to("secret")
    else:
        os.mkfifo(tmp_path / "new")
    with failing(errno.ESTALE):
        files.create(top, b"new", 0o644, os.O_WRONLY | os.O_TRUNC, ROOT)
    with failing(errno.EEXIST):
        files.create(top, b"new", 0o644, os.O_WRONLY | os.O_EXCL, ROOT)
    assert (files.handles, (tmp_path / "secret").read_text()) == ({}, "secret")


def test_an_open_that_fails_late_leaves_no_descriptor(files, top, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o4755)
    node = found(files, top, b"file")
    files.descriptors.of(node)
    before = os.listdir("/proc/self/fd")

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fchmod", broken)
    with failing(errno.EIO):
        files.open(node, os.O_RDWR | os.O_TRUNC, Caller(1234, 1234))
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_a_link_is_neither_opened_nor_changed_through(files, top, tmp_path):
    (tmp_path / "target").write_text("contents")
    (tmp_path / "target").chmod(0o640)
    (tmp_path / "link").symlink_to("target")
    link = found(files, top, b"link")
    for change in (
        lambda: files.open(link, os.O_RDONLY, ROOT),
        lambda: files.truncate(link, 0, None),
        lambda: files.setxattr(link, b"user.x", b"", ROOT),
        lambda: files.chmod(link, 0o777),
    ):
        with pytest.raises(OSError, match=r"symbolic links|permitted|not supported|Invalid"):
            change()
    files.chown(link, -1, -1)
    files.utime(link, 1, 2)
    assert (tmp_path / "link").lstat().st_mtime_ns == 2
    st = (tmp_path / "target").stat()
    assert (st.st_size, stat.S_IMODE(st.st_mode), st.st_mtime_ns == 2) == (8, 0o640, False)


@pytest.mark.parametrize(
    ("size", "names", "by_a_worker"), [(8 << 20, 1, True), (4096, 1, False), (8 << 20, 2, False)]
)
def test_a_large_file_that_loses_its_last_name_is_given_up_by_a_worker(
    files, top, tmp_path, size, names, by_a_worker
):
    (tmp_path / "file").write_bytes(bytes(size))
    if names == 2:
        os.link(tmp_path / "file", tmp_path / "other")
    left: list[int] = []
    files.descriptors.close_heavy = left.append
    node = found(files, top, b"file")
    files.unlink(top, b"file")
    assert left == []  # the kernel may know it yet, and ask
    files.table.forget(node.ino, node.lookups)
    assert bool(left) == by_a_worker
    for fd in left:
        os.close(fd)
    assert files.descriptors.heavy == set()


@pytest.mark.parametrize("by_handle", [False, True])
async def test_a_large_file_is_cut_off_by_a_worker(files, top, tmp_path, monkeypatch, by_handle):
    (tmp_path / "file").write_bytes(b"x" * (8 << 20))
    node = found(files, top, b"file")
    handle = files.open(node, os.O_RDWR, ROOT) if by_handle else None
    writers: list[int] = []
    truncate = os.ftruncate
    monkeypatch.setattr(os, "ftruncate", lambda *a: (writers.append(top.area.writers), truncate(*a)))
    assert files.is_long(node, 10, handle)
    await files.cut(node, 10, handle, ROOT)
    assert (writers, top.area.writers) == ([1 + by_handle], int(by_handle))
    assert (tmp_path / "file").read_bytes() == b"x" * 10
    assert not files.is_long(node, 0, handle)


def test_what_goes_natively_while_it_is_opened_leaves_no_descriptor(files, top, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    node = found(files, top, b"file")
    top.area.frozen = True
    opened = os.open

    def gone_then(path, *arguments, **options):
        fd = opened(path, *arguments, **options)
        (tmp_path / "file").unlink(missing_ok=True)
        return fd

    before = os.listdir("/proc/self/fd")
    monkeypatch.setattr(os, "open", gone_then)
    with failing(errno.ESTALE):
        files.open(node, os.O_RDONLY, ROOT)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("closed", ["meanwhile", "afterwards"])
def test_what_was_open_while_it_was_native_keeps_no_descriptor_that_others_would_not(files, top, tmp_path, closed):
    top.area.frozen = True
    files.descriptors.limit = 2
    nodes, handles = [], []
    for name in (b"a", b"b", b"c", b"d"):
        (tmp_path / name.decode()).touch()
        nodes.append(found(files, top, name))
        handles.append(files.open(nodes[-1], os.O_RDONLY, ROOT))
    if closed == "afterwards":
        top.area.thaw()
    for handle in handles:
        files.close(handle.fd)
    left = {"meanwhile": 2, "afterwards": 0}
    assert (sum(node.fd >= 0 for node in nodes), top.area.pinned) == (left[closed], set())


def test_what_has_lost_its_last_name_keeps_its_own(files, top, tmp_path):
    (tmp_path / "file").touch()
    node = found(files, top, b"file")
    handle = files.open(node, os.O_RDONLY, ROOT)
    files.unlink(top, b"file")
    files.close(handle.fd)
    assert files.stat(node).st_nlink == 0


async def test_nothing_is_cut_off_in_what_is_read_only(files, top, tmp_path):
    (tmp_path / "file").write_bytes(b"x" * (8 << 20))
    node = found(files, top, b"file")
    top.area.read_only = True
    with failing(errno.EROFS):
        await files.cut(node, 0, None, ROOT)
    assert (tmp_path / "file").stat().st_size == 8 << 20


def test_what_an_area_leaves_behind_is_closed_before_it_shows_something_else(files, top, tmp_path):
    (tmp_path / "file").write_bytes(bytes(8 << 20))
    left: list[int] = []
    files.descriptors.close_heavy = left.append
    found(files, top, b"file")
    files.unlink(top, b"file")
    before = top.area.view
    top.area.attach(Beneath(tmp_path))
    before.close()
    assert (left, files.descriptors.heavy) == ([], set())


def test_a_file_that_was_replaced_beneath_is_stale(files, top, tmp_path):
    (tmp_path / "file").write_text("one")
    node = found(files, top, b"file")
    (tmp_path / "other").write_text("two")
    os.rename(tmp_path / "other", tmp_path / "file")
    with failing(errno.ESTALE):
        files.open(node, os.O_RDONLY, ROOT)


async def test_who_waits_for_a_disk_to_sync_keeps_nobody_from_reading(files, top, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("contents")
    handle = files.open(found(files, top, b"file"), os.O_RDWR, ROOT)
    syncing, synced = threading.Event(), threading.Event()
    in_time: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda fd: (syncing.set(), in_time.append(synced.wait(1))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(files.fsync, handle.fd, False)
        await trio.to_thread.run_sync(syncing.wait)
        assert await files.read(handle, 0, 10) == b"contents"
        synced.set()
    assert in_time == [True]


async def test_a_short_write_is_completed(files, top, monkeypatch):
    pieces: list[tuple[int, int]] = []

    def short(fd: int, data: bytes, offset: int) -> int:
        pieces.append((len(data), offset))
        return write(fd, bytes(data[:3]), offset)

    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", short)
    handle, _ = files.create(top, b"file", 0o644, os.O_RDWR, ROOT)
    assert await files.write(handle, 10, b"abcdefgh") == 8
    assert pieces == [(8, 10), (5, 13), (2, 16)]
    assert await files.read(handle, 10, 20) == b"abcdefgh"


async def test_a_file_keeps_the_time_that_the_kernel_knows_unless_it_sends_another(files, top, tmp_path):
    for sent in (None, 9_000_000_009):
        handle, _ = files.create(top, b"file", 0o644, os.O_RDWR, ROOT)
        os.utime(handle.fd, ns=(1, 7_000_000_007))
        await files.write(handle, 0, b"data")
        if sent is not None:
            files.utime(handle.node, 1, sent)
        files.close(handle.fd)
        assert (tmp_path / "file").stat().st_mtime_ns == (sent or 7_000_000_007)
        os.unlink(tmp_path / "file")


def test_removals_that_fail_pin_no_descriptors(files, top, tmp_path):
    files.descriptors.limit = 4
    for number in range(20):
        (tmp_path / f"{number}/in").mkdir(parents=True)
        found(files, top, b"%d" % number)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        with failing(errno.ENOTEMPTY):
            files.rmdir(top, b"%d" % number)
        with failing(errno.ENOTEMPTY):
            files.rename(top, b"%d" % number, top, b"%d" % ((number + 1) % 20), 0, ROOT)
    assert len(os.listdir("/proc/self/fd")) <= before + files.descriptors.limit
    assert not top.area.pinned


def test_files_that_have_lost_one_of_two_names_pin_no_descriptors(files, top):
    files.descriptors.limit = 4
    before = len(os.listdir("/proc/self/fd"))
    for number in range(20):
        for name, lost in ((b"first", b"first"), (b"second%d" % number, b"also")):
            handle, _ = files.create(top, name, 0o644, os.O_RDWR, ROOT)
            handle.node.lookups += 1
            files.close(handle.fd)
            other = b"%d" % number if lost == b"first" else lost
            files.link(handle.node, top, other)
            found(files, top, other)
            files.unlink(top, lost)
            assert handle.node.name is not None
    assert len(os.listdir("/proc/self/fd")) <= before + files.descriptors.limit
    assert not top.area.pinned


def test_few_descriptors_are_open_however_many_nodes_are_known(files, top, tmp_path):
    files.descriptors.limit = 8
    before = len(os.listdir("/proc/self/fd"))
    for number in range(30):
        (tmp_path / f"{number}/a/b").mkdir(parents=True)
        (tmp_path / f"{number}/a/b/file").write_text(str(number))
    nodes = []
    for number in range(30):
        node = top
        for name in (b"%d" % number, b"a", b"b", b"file"):
            node = found(files, node, name)
        nodes.append(node)
    for number, node in enumerate(nodes):
        handle = files.open(node, os.O_RDONLY, ROOT)
        assert os.read(handle.fd, 10) == str(number).encode()
        files.close(handle.fd)
    assert len(os.listdir("/proc/self/fd")) <= before + 8


def nested(files: Passthrough, parent: Node, name: bytes, depth: int) -> list[Node]:
    """Directories, one in the other."""
    nodes = []
    for _ in range(depth):
        files.mkdir(parent, name, 0o755, ROOT)
        parent = found(files, parent, name)
        nodes.append(parent)
    return nodes


def test_no_look_opens_all_directories_above_however_deep_they_are_nested(files, top, monkeypatch):
    files.descriptors.limit = 8
    deep = [nested(files, top, name, 300)[-1] for name in (b"a", b"b")]
    opened: list[object] = []
    opens = os.open
    monkeypatch.setattr(os, "open", lambda *a, **named: opened.append(a) or opens(*a, **named))
    for node in deep * 2:
        opened.clear()
        assert os.fstat(files.descriptors.of(node)).st_ino == node.st_ino
        assert len(opened) < 100


@pytest.mark.parametrize("what", ["link", "file", "nothing", "another"])
def test_who_is_replaced_far_above_is_neither_followed_nor_taken_for_another(files, top, tmp_path, what):
    files.descriptors.limit = 8
    nodes = nested(files, top, b"a", 100)
    (tmp_path / "a").rename(tmp_path / "b")
    if what == "link":
        (tmp_path / "a").symlink_to("b")
    elif what == "file":
        (tmp_path / "a").touch()
    elif what == "another":
        nested(files, top, b"a", 100)
    with failing(errno.ESTALE):
        files.descriptors.of(nodes[80])


async def test_only_what_can_have_been_mapped_is_written_out(files, top, monkeypatch):
    written = []
    monkeypatch.setattr("zfsfs.syscalls.syncfs", written.append)
    handle, _ = files.create(top, b"file", 0o600, os.O_WRONLY, ROOT)
    files.open(handle.node, os.O_RDONLY, ROOT)
    await top.area.write_out()
    assert written == []
    files.open(handle.node, os.O_RDWR, ROOT)
    await top.area.write_out()
    assert written == [top.area.fd]


async def test_a_file_that_is_made_can_be_mapped_too(files, top, monkeypatch):
    written = []
    monkeypatch.setattr("zfsfs.syscalls.syncfs", written.append)
    files.create(top, b"file", 0o600, os.O_RDWR, ROOT)
    await top.area.write_out()
    assert written == [top.area.fd]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sets these bits on what is another's")
@pytest.mark.parametrize(("mode", "left"), [(0o6767, 0o767), (0o4666, 0o4666), (0o2666, 0o2666), (0o2676, 0o676)])
def test_as_on_zfs_a_write_takes_set_id_bits_from_what_somebody_may_execute(files, top, tmp_path, mode, left):
    files.set_id_goes_if_executable = True
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(mode)
    writer = Caller(1234, 0)  # in the file's group, or the kernel would not keep its bit anywhere
    handle = files.open(found(files, top, b"file"), os.O_WRONLY, writer)
    files.chown_to_nobody_new(handle.node, writer)
    assert f"{stat.S_IMODE((tmp_path / 'file').stat().st_mode):o}" == f"{left:o}"


class Unsearched(dict[int, object]):
    def values(self) -> NoReturn:
        raise AssertionError("one user may have a hundred thousand files open")


@pytest.mark.parametrize("other", [os.O_RDONLY, os.O_WRONLY])
def test_who_writes_into_a_set_id_file_is_known_without_a_look_at_all_that_is_open(files, top, tmp_path, other):
    (tmp_path / "file").touch()
    (tmp_path / "file").chmod(0o4755)
    node, stranger = found(files, top, b"file"), Caller(os.geteuid() + 1, os.getegid() + 1)
    files.handles = Unsearched()
    first, second = files.open(node, os.O_RDWR, ROOT), files.open(node, other, ROOT)
    files.chown_to_nobody_new(node, stranger)
    (tmp_path / "file").chmod(0o4755)
    files.close(first.fd)
    if other == os.O_WRONLY:
        files.chown_to_nobody_new(node, stranger)
        (tmp_path / "file").chmod(0o4755)
    files.close(second.fd)
    with failing(errno.EPERM):
        files.chown_to_nobody_new(node, stranger)


def test_the_attributes_of_an_open_file_are_changed_whatever_has_its_name(files, top, tmp_path):
    handle, _ = files.create(top, b"file", 0o644, os.O_RDWR, ROOT)
    (tmp_path / "new").write_text("another")
    (tmp_path / "new").chmod(0o640)
    os.rename(tmp_path / "new", tmp_path / "file")
    files.change(handle.node, Changes(mode=0o600, atime=1, mtime=2), None)
    files.chown(handle.node, -1, -1)
    there, opened = (tmp_path / "file").stat(), files.stat(handle.node)
    assert (stat.S_IMODE(there.st_mode), there.st_mtime_ns == 2) == (0o640, False)
    assert (stat.S_IMODE(opened.st_mode), opened.st_atime_ns, opened.st_mtime_ns) == (0o600, 1, 2)
    files.close(handle.fd)
    with failing(errno.ESTALE):
        files.chmod(handle.node, 0o644)
    with failing(errno.ESTALE):
        files.utime(handle.node, 3, 4)
    assert (tmp_path / "file").stat().st_mtime_ns == there.st_mtime_ns


def test_of_two_who_have_a_file_open_the_last_to_have_opened_it_may_close_it_first(files, top, tmp_path):
    first, _ = files.create(top, b"file", 0o644, os.O_RDWR, ROOT)
    last = files.open(first.node, os.O_RDONLY, ROOT)
    for handle, mode in ((last, 0o600), (first, 0o640)):
        files.close(handle.fd)
        files.chmod(first.node, mode)
        assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_one_time_alone_is_set_and_the_other_kept(files, top, tmp_path):
    (tmp_path / "file").touch()
    os.utime(tmp_path / "file", ns=(5, 6))
    node = found(files, top, b"file")
    for new, times in ((Changes(atime=7), (7, 6)), (Changes(mtime=8), (7, 8))):
        files.change(node, new, None)
        st = (tmp_path / "file").stat()
        assert (st.st_atime_ns, st.st_mtime_ns) == times

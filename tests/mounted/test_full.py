"""A pool that is full: a clear errno, nothing lost, and all is well once there is room again."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import datasets
import pytest
from errnos import errno_of
from mounted_tree import Mounted, until, zfsfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="limits a filesystem's size")


POOL = os.environ.get("ZFSFS_TEST_POOL", "")


def on(kind: str) -> pytest.MarkDecorator:
    """On ZFS, what is full: a quota, or the pool."""
    return pytest.mark.parametrize("store", [kind if POOL else "tmpfs"], indirect=True)


@pytest.fixture
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A store of some 48 MiB: a quota or a small pool on ZFS, a small tmpfs otherwise."""
    if request.param == "quota":
        name = f"{POOL}/full"
        subprocess.run(["zfs", "create", "-o", "mountpoint=none", "-o", "quota=48M", name], check=True)
        yield name
        datasets.destroy(name)
        return
    if request.param == "pool":
        (tmp_path / "disk").touch()
        os.truncate(tmp_path / "disk", 112 << 20)  # ZFS keeps half of so little to itself
        options = ("-o", "cachefile=none", "-O", "mountpoint=none")
        subprocess.run(["zpool", "create", *options, "zfsfs-full", tmp_path / "disk"], check=True)
        yield "zfsfs-full"
        subprocess.run(["zpool", "destroy", "zfsfs-full"], check=True)
        return
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48M", "tmpfs", small], check=True)
    yield str(small / "store")
    subprocess.run(["umount", small], check=True)


def fill(path: Path) -> int:
    """Write what can't be compressed until there is no room, not even for little; returns the errno."""
    number = 0
    with suppress(OSError), open(path, "wb", buffering=0) as file:  # what is gathered may fail as late as at the end
        for size in (1 << 20, 1 << 16, 1 << 12):
            try:
                for _ in range(100):
                    file.write(os.urandom(size))
                    os.fsync(file.fileno())
            except OSError as failure:
                number = failure.errno or 0
    return number


NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def is_told(tree: Mounted) -> bool:
    """Whether the events say what is wrong, and what to do."""
    return any("remove results or caches" in text for text in tree.events("warning"))


def more_room(tree: Mounted) -> None:
    """What a person does about it."""
    if tree.store == "zfsfs-full":
        disk = tree.log.parent / "more"
        disk.touch()
        os.truncate(disk, 1 << 30)
        subprocess.run(["zpool", "add", tree.store, disk], check=True)
    elif POOL:
        subprocess.run(["zfs", "set", "quota=none", tree.store], check=True)
    else:
        os.truncate(tree / "builds/big/file", 0)  # at once, whoever still has it open


def build(tree: Mounted, name: str, text: str) -> Path:
    folder = tree / "builds" / name
    folder.mkdir()
    (folder / "file").write_text(text)
    return folder


@on("pool")
def test_a_full_pool_is_an_error_and_loses_nothing(tree: Mounted) -> None:
    (tree / "builds/kept").mkdir()
    (tree / "builds/kept/file").write_text("kept")
    os.rename(tree / "builds/kept", tree / "results/kept")
    (tree / "builds/big").mkdir()
    assert fill(tree / "builds/big/file") in NO_ROOM
    assert is_told(tree)
    assert (tree / "results/kept/file").read_text() == "kept"
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)
    tree.closed()
    (tree / "builds/next@kept").mkdir()
    os.rename(tree / "builds/next@kept", tree / "results/next")
    assert (tree / "results/next/file").read_text() == "kept"
    assert "next" in os.listdir(tree / "results")
    zfsfs("status", tree.path)


@on("quota")
def test_who_writes_through_the_daemon_is_told_of_too(unmounted: Mounted, tmp_path: Path) -> None:
    tree = unmounted
    tree.mount_changed("gathered", tmp_path)
    build(tree, "big", "")
    assert fill(tree / "builds/big/file") in NO_ROOM
    assert is_told(tree)
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)
    tree.closed()


@on("pool")
def test_publishing_in_a_full_store_succeeds_or_leaves_the_build(tree: Mounted) -> None:
    one = build(tree, "one", "contents")
    build(tree, "big", "")
    assert fill(tree / "builds/big/file") in NO_ROOM
    number = errno_of(lambda: os.rename(one, tree / "results/one"))
    if number:
        assert number in NO_ROOM
        assert (one / "file").read_text() == "contents"
        more_room(tree)
        os.rename(one, tree / "results/one")
    else:
        more_room(tree)
    assert (tree / "results/one/file").read_text() == "contents"
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)
    build(tree, "two@one", "more").rename(tree / "results/two")


@on("pool")
def test_a_build_that_there_is_no_room_for_leaves_nothing(tree: Mounted) -> None:
    base = build(tree, "base", "contents")
    (base / "much").write_bytes(os.urandom(1 << 20))
    base.rename(tree / "results/base")
    build(tree, "big", "")
    assert fill(tree / "builds/big/file") in NO_ROOM
    for name in ("next@base", "fresh"):
        number = errno_of((tree / "builds" / name).mkdir)
        if number:
            assert number in NO_ROOM
            assert os.listdir(tree / "builds") == ["big"]
        else:
            (tree / "builds" / name).rmdir()
    more_room(tree)
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)
    tree.closed()
    build(tree, "next@base", "more").rename(tree / "results/next")
    assert (tree / "results/next/much").stat().st_size == 1 << 20


@on("pool")
def test_a_release_in_a_full_store_is_published_now_or_later(tree: Mounted) -> None:
    cache = tree / "caches/c"
    cache.mkdir()
    (cache / "file").write_text("first")
    assert tree.outcome("c") == "published"
    build(tree, "big", "")
    fd = os.open(cache, os.O_RDONLY | os.O_DIRECTORY)
    (cache / "file").write_text("second")
    os.fsync(fd)
    assert fill(tree / "builds/big/file") in NO_ROOM
    os.close(fd)
    until(lambda: not tree.status()["sessions"] or tree.events("warning"))
    assert (cache / "file").read_text() == "second"
    more_room(tree)
    assert tree.outcome("c") in ("published", "unchanged")
    assert (cache / "file").read_text() == "second"
    tree.closed()
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)


@on("quota")
def test_a_full_store_can_be_emptied(tree: Mounted) -> None:
    """Nothing but rmdir, as whoever runs out of room will try."""
    for name in ("one", "two"):
        folder = build(tree, name, name)
        (folder / "much").write_bytes(os.urandom(4 << 20))
        folder.rename(tree / "results" / name)
    big = build(tree, "big", "")
    assert fill(big / "file") in NO_ROOM
    try:
        os.rename(big, tree / "results/big")
    except OSError:
        os.rmdir(big)
    for name in os.listdir(tree / "results"):
        os.rmdir(tree / "results" / name)
    tree.closed()
    folder = build(tree, "next", "")
    (folder / "much").write_bytes(os.urandom(4 << 20))
    folder.rename(tree / "results/next")


@on("quota")
def test_a_full_store_can_be_mounted_again_to_be_emptied(tree: Mounted) -> None:
    one = build(tree, "one", "contents")
    one.rename(tree / "results/one")
    big = build(tree, "big", "")
    assert fill(big / "file") in NO_ROOM
    os.kill(tree.pid, signal.SIGKILL)  # what it leaves of the build stays
    tree.mount()
    assert (tree / "results/one/file").read_text() == "contents"
    (tree / "results/one").rmdir()
    tree.closed()

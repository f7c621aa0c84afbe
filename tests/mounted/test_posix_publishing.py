"""What publishing keeps, what a result allows, and what does not cross the borders of an area."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from comparing import ACCESS, ANNA, acl, acting, look, opened, write
from errnos import failing
from mapping import mapped
from mounted_tree import Mounted

from zfsfs.syscalls import RENAME_EXCHANGE, renameat2

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users")


@pytest.fixture
def build(tree: Mounted) -> Iterator[Path]:
    folder = tree / "builds/x"
    folder.mkdir()
    yield folder
    for name in os.listdir(tree / "builds"):
        os.rmdir(tree / "builds" / name)


def publish(tree: Mounted) -> Path:
    os.rename(tree / "builds/x", tree / "results/x")
    return tree / "results/x"


def remount(tree: Mounted) -> None:
    """Nothing that the kernel has remembered is left after this."""
    tree.umount()
    tree.mount()


def furnished(folder: Path) -> None:
    """One of everything that a directory can hold."""
    (folder / "d/e").mkdir(parents=True)
    (folder / "file").write_bytes(os.urandom(70_000))
    (folder / "file").chmod(0o6751)
    os.link(folder / "file", folder / "d/same")
    (folder / "link").symlink_to("d/e")
    os.mkfifo(folder / "fifo", 0o640)
    os.mknod(folder / "socket", stat.S_IFSOCK | 0o600)
    with open(folder / "sparse", "wb") as file:
        file.seek(10 << 20)
        file.write(b"end")
    (folder / "d/e").chmod(0o3775)
    os.setxattr(folder / "file", "user.x", b"\0value")
    os.setxattr(folder / "d", "user.d", b"")
    if os.geteuid() == 0:
        os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.chown(folder / "file", 1234, 2345)
        (folder / "file").chmod(0o6751)
        os.lchown(folder / "link", 5, 6)
        os.setxattr(folder / "file", "trusted.x", b"root")
        os.setxattr(folder / "d", ACCESS, acl((1, 7), (2, 6, 1234), (4, 5), (16, 7), (32, 4)))
    for path in sorted(folder.rglob("*")):
        os.utime(path, ns=(1_000_000_000_000_000_001, 1_100_000_000_123_456_789), follow_symlinks=False)


def described(folder: Path) -> list[tuple[Any, ...]]:
    """All that there is to say of a tree."""
    found = []
    first: dict[int, str] = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        st = path.lstat()
        name = str(path.relative_to(folder))
        attributes = {
            key: os.getxattr(path, key, follow_symlinks=False)
            for key in os.listxattr(path, follow_symlinks=False)
            if not key.startswith("user.zfsfs.")
        }
        contents = path.read_bytes() if stat.S_ISREG(st.st_mode) else None
        target = os.readlink(path) if path.is_symlink() else None
        same = first.setdefault(st.st_ino, name)
        found.append((name, look(str(path)), st.st_mtime_ns, attributes, contents, target, same))
    return found


def test_a_result_is_what_was_built_and_so_is_what_is_built_on_it(tree, build):
    furnished(build)
    before = described(build)
    result = publish(tree)
    assert described(result) == before
    remount(tree)
    assert described(result) == before
    assert (result / "sparse").stat().st_blocks < 1000
    os.mkdir(tree / "builds/y@x")
    assert described(tree / "builds/y@x") == before
    assert (tree / "builds/y@x/sparse").stat().st_blocks < 1000


def test_a_session_is_what_was_published(tree):
    (tree / "caches/c").mkdir()
    with opened(str(tree / "caches/c"), os.O_RDONLY):
        furnished(tree / "caches/c")
        before = described(tree / "caches/c")
    tree.closed()
    assert described(tree / "caches/c") == before
    with opened(str(tree / "caches/c@other"), os.O_RDONLY):
        assert described(tree / "caches/c@other") == before
        (tree / "caches/c@other/d/new").touch()
        assert described(tree / "caches/c") == before
    tree.closed()
    assert (tree / "caches/c/d/new").exists()


def test_every_way_of_writing_is_in_the_result(tree, build):
    """Nothing is synced here, and everything is dirty when the build is published."""
    wanted = {}
    for name in ("written", "mapped", "mapped late", "cut", "grown", "appended", "unlinked"):
        wanted[name] = bytearray(os.urandom(100_000))
        (build / name).write_bytes(wanted[name])
    for name in ("mapped", "mapped late"):
        with open(build / name, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), 0)
        mapped[50_000:50_005] = wanted[name][50_000:50_005] = b"dirty"  # by the mapping alone: the file is closed
        mapped.close()
    with open(build / "appended", "ab") as file:
        file.write(b"more")
    wanted["appended"] += b"more"
    os.truncate(build / "cut", 1234)
    del wanted["cut"][1234:]
    os.truncate(build / "grown", 200_001)
    wanted["grown"] += bytes(100_001)
    os.unlink(build / "unlinked")
    del wanted["unlinked"]
    times = {name: (build / name).stat().st_mtime_ns for name in wanted}
    result = publish(tree)
    assert {name: (result / name).read_bytes() for name in os.listdir(result)} == wanted
    remount(tree)
    assert {name: (result / name).read_bytes() for name in os.listdir(result)} == wanted
    assert {name: (result / name).stat().st_mtime_ns for name in wanted} == times


def test_a_writable_mapping_is_an_open_file(tree, build):
    write(str(build / "f"), bytes(8192))
    with open(build / "f", "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 8192)
    mapped[4096:4100] = b"here"
    with failing(errno.EBUSY):
        publish(tree)
    mapped[0:4] = b"more"
    mapped.close()
    result = publish(tree)
    remount(tree)
    assert (result / "f").read_bytes() == b"more" + bytes(4092) + b"here" + bytes(4092)


def test_and_so_it_is_when_its_file_was_closed(tree, build):
    write(str(build / "f"), bytes(8192))
    with mapped(build / "f", 8192) as memory:
        memory[4096:4100] = b"here"
        with failing(errno.EBUSY):
            publish(tree)
        memory[0:4] = b"more"
    result = publish(tree)
    remount(tree)
    assert (result / "f").read_bytes() == b"more" + bytes(4092) + b"here" + bytes(4092)


@as_root
def test_and_where_the_daemon_can_take_no_leases(unmounted):
    words = ["mount", unmounted.store, unmounted.path, "--linger", "0.1", "--log", unmounted.log]
    less = ["setpriv", "--bounding-set=-lease", "--inh-caps=-lease"]  # as root of a container
    subprocess.run([*less, sys.executable, "-m", "zfsfs", *words], check=True)
    (unmounted / "builds/x").mkdir()
    write(str(unmounted / "builds/x/f"), bytes(4096))
    os.chown(unmounted / "builds/x/f", 1, 1)
    with mapped(unmounted / "builds/x/f"), failing(errno.EBUSY):
        publish(unmounted)
    publish(unmounted)


def test_what_is_written_through_a_mapping_moves_the_time_of_a_file_that_was_closed(tree, build):
    write(str(build / "f"), bytes(4096))
    with mapped(build / "f") as memory:
        os.utime(build / "f", ns=(1, 1))
        assert (build / "f").stat().st_mtime_ns == 1
        memory[0] = 1
        os.sync()  # ZFS dates it then
        assert (build / "f").stat().st_mtime_ns > 1


def test_who_reads_reads_on_while_a_build_is_published(tree, build):
    write(str(build / "f"), b"contents" * 1000)
    (build / "d").mkdir()
    with open(build / "f", "rb") as file, opened(str(build / "d"), os.O_RDONLY) as folder:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        result = publish(tree)
        assert (file.read(8), mapped[7992:], os.listdir(folder)) == (b"contents", b"contents", [])
        assert os.path.samestat(os.fstat(file.fileno()), os.stat(result / "f"))
        with failing(errno.EROFS):
            os.fchmod(file.fileno(), 0o600)
        with failing(errno.EROFS):
            os.mkdir("x", dir_fd=folder)
        mapped.close()


CHANGES: dict[str, Callable[[], object]] = {
    "create": lambda: os.open("new", os.O_CREAT | os.O_WRONLY),
    "create to read": lambda: os.open("new", os.O_CREAT | os.O_RDONLY),
    "open to write": lambda: os.open("f", os.O_WRONLY),
    "open to read and write": lambda: os.open("f", os.O_RDWR),
    "open to empty": lambda: os.open("f", os.O_RDONLY | os.O_TRUNC),
    "truncate": lambda: os.truncate("f", 1),
    "mkdir": lambda: os.mkdir("new"),
    "mkfifo": lambda: os.mkfifo("new"),
    "mknod": lambda: os.mknod("new"),
    "symlink": lambda: os.symlink("x", "new"),
    "link": lambda: os.link("f", "new"),
    "unlink": lambda: os.unlink("f"),
    "rmdir": lambda: os.rmdir("d"),
    "rename": lambda: os.rename("f", "new"),
    "rename over": lambda: os.rename("f", "g"),
    "rename of a directory": lambda: os.rename("d", "new"),
    "exchange": lambda: renameat2(-100, b"f", -100, b"d", RENAME_EXCHANGE),
    "chmod": lambda: os.chmod("f", 0o777),
    "chmod of the root": lambda: os.chmod(".", 0o777),
    "chown": lambda: os.chown("f", 1, 1),
    "utime": lambda: os.utime("f"),
    "utime of a link": lambda: os.utime("l", (1, 1), follow_symlinks=False),
    "setxattr": lambda: os.setxattr("f", "user.new", b"x"),
    "setxattr of the root": lambda: os.setxattr(".", "user.new", b"x"),
    "removexattr": lambda: os.removexattr("f", "user.x"),
    "setfacl": lambda: os.setxattr("f", ACCESS, acl((1, 7), (4, 7), (32, 7))),
}  # fmt: skip


@as_root
def test_no_call_changes_a_result(tree, build, monkeypatch):
    for name in "fg":
        write(str(build / name), b"contents", 0o666)
    os.setxattr(build / "f", "user.x", b"1")
    (build / "d").mkdir()
    (build / "l").symlink_to("f")
    result = publish(tree)
    before = described(result)
    monkeypatch.chdir(result)
    for name, change in CHANGES.items():
        with failing(errno.EROFS):
            print(name, change())
    assert described(result) == before


@as_root
def test_not_even_the_owner_changes_a_result(tree, monkeypatch):
    with acting(ANNA):
        os.mkdir(tree / "builds/x")
        for name in "fg":
            write(str(tree / "builds/x" / name), b"contents", 0o666)
        os.setxattr(tree / "builds/x/f", "user.x", b"1")
        (tree / "builds/x/d").mkdir()
        (tree / "builds/x/l").symlink_to("f")
        monkeypatch.chdir(publish(tree))
        for name, change in CHANGES.items():
            with pytest.raises(OSError) as failure:  # noqa: PT011 - the number is looked at below
                print(name, change())
            assert failure.value.errno in (errno.EROFS, *((errno.EPERM,) if name == "chown" else ()))
        assert look("f") == ("-rw-r--r--", 1, ANNA.uid, ANNA.gid, 8, 0)


@as_root
def test_who_may_not_truncate_a_result_takes_no_set_id_bits_from_it(tree, build):
    (build / "tool").write_text("x")
    os.chown(build / "tool", ANNA.uid, ANNA.gid)
    (build / "tool").chmod(0o6755)
    tool = publish(tree) / "tool"
    with acting(ANNA), failing(errno.EROFS):
        os.truncate(tool, 0)
    remount(tree)
    assert f"{stat.S_IMODE(tool.stat().st_mode):o}" == "6755"


@as_root
def test_reading_leaves_no_trace_in_a_result(tree, build):
    write(str(build / "f"), b"contents")
    (build / "d").mkdir()
    for name in "fd":
        os.utime(build / name, ns=(1, 2))
    result = publish(tree)
    remount(tree)
    assert ((result / "f").read_bytes(), os.listdir(result / "d")) == (b"contents", [])
    remount(tree)
    assert [(result / name).stat().st_atime_ns for name in "fd"] == [1, 1]


def test_nothing_crosses_the_borders_of_an_area(tree, build):
    (tree / "builds/y").mkdir()
    (tree / "caches/c").mkdir()
    write(str(build / "f"))
    (build / "d").mkdir()
    for place in ("builds/y/new", "caches/c/new", "builds/new", "results/new", "new"):
        expected = errno.EXDEV if place.count("/") == 2 else (errno.EXDEV, errno.EPERM)
        for name in "fd":
            with pytest.raises(OSError) as failure:  # noqa: PT011 - the number is looked at below
                os.rename(build / name, tree / place)
            assert failure.value.errno in (expected if isinstance(expected, tuple) else (expected,))
        with pytest.raises(OSError) as failure:  # noqa: PT011
            os.link(build / "f", tree / place)
        assert failure.value.errno in (expected if isinstance(expected, tuple) else (expected,))
    write(str(tree / "builds/y/g"))
    with failing(errno.EXDEV):
        renameat2(-100, os.fsencode(build / "f"), -100, os.fsencode(tree / "builds/y/g"), RENAME_EXCHANGE)
    assert sorted(os.listdir(build)) == ["d", "f"]

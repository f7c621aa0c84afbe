"""What may befall a pool: it is suspended, exported under us, its disk returns errors. Only on real ZFS.

The pool lies on a file in a filesystem with little room: what is written beyond that is an error of the disk.
"""

from __future__ import annotations

import errno
import os
import secrets
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from errnos import errno_of, failing
from mounted_tree import PATIENCE, Mounted, until, zfsfs

pytestmark = pytest.mark.skipif("ZFSFS_TEST_POOL" not in os.environ, reason="makes pools of its own")


def run(*command: object) -> str:
    return subprocess.run([*map(str, command)], check=True, capture_output=True, text=True).stdout.strip()


@dataclass
class Disk:
    """A pool's one disk, a file."""

    pool: str
    folder: Path

    @property
    def file(self) -> Path:
        return self.folder / "disk"

    def create(self, failmode: str) -> None:
        self.file.touch()
        os.truncate(self.file, 512 << 20)
        options = ("-o", f"failmode={failmode}", "-o", "cachefile=none", "-O", "mountpoint=none")
        run("zpool", "create", *options, self.pool, self.file)

    def find(self, contents: bytes) -> int:
        """Where it lies on the disk. Holes are not read: that would be much."""
        with open(self.file, "rb") as file:
            start = end = 0
            while True:  # until ENXIO: there is no more data
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
                end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                found = os.pread(file.fileno(), end - start, start).find(contents)
                if found >= 0:
                    return start + found

    def state(self) -> str:
        return Path(f"/proc/spl/kstat/zfs/{self.pool}/state").read_text().strip()

    def mend(self) -> None:
        """There is room for all that is to be written."""
        run("mount", "-o", "remount,size=1G", self.folder)
        run("zpool", "clear", self.pool)

    def import_again(self) -> None:
        """So that nothing of what is on it is remembered."""
        run("zpool", "export", self.pool)
        run("zpool", "import", "-d", self.folder, "-o", "cachefile=none", self.pool)


@pytest.fixture
def failmode() -> str:
    return "wait"


@pytest.fixture
def disk(tmp_path: Path, failmode: str) -> Iterator[Disk]:
    made = Disk(f"zfsfs-{secrets.token_hex(4)}", tmp_path / "disk")
    made.folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=80M", "tmpfs", made.folder)
    made.create(failmode)
    yield made
    run("zpool", "destroy", made.pool)
    run("umount", made.folder)


@pytest.fixture
def store(disk: Disk) -> str:
    run("zfs", "create", f"{disk.pool}/ci")
    return f"{disk.pool}/ci"


def publish(tree: Mounted, name: str, contents: bytes) -> None:
    (tree / "builds" / name).mkdir()
    (tree / "builds" / name / "file").write_bytes(contents)
    os.rename(tree / "builds" / name, tree / "results" / name)


WRITER = """
import os, sys
with open(sys.argv[1], "wb", buffering=0) as file:
    for _ in range(160):
        file.write(os.urandom(1 << 20))
    os.fsync(file.fileno())
"""


@pytest.mark.parametrize("failmode", ["wait", "continue"])
def test_a_suspended_pool_is_told_of_and_nobody_hangs(tree: Mounted, disk: Disk, failmode: str) -> None:
    publish(tree, "done", b"done")
    (tree / "caches/c").mkdir()
    session = os.open(tree / "caches/c", os.O_RDONLY)
    (tree / "caches/c/file").write_text("of the session")
    os.fsync(session)
    (tree / "builds/big").mkdir()
    (tree / "builds/small").mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, tree / "builds/big/file"], stderr=subprocess.DEVNULL
    ) as writer:
        until(lambda: disk.state() == "SUSPENDED")
        until(lambda: tree.status()["trouble"])
        assert "zpool clear" in zfsfs("status", tree.path).stdout
        assert any("zpool clear" in text for text in tree.events("warning"))
        asked: list[Callable[[], object]] = [
            (tree / "builds/small/file").touch,
            (tree / "builds/small").rmdir,
            (tree / "builds/another").mkdir,
            (tree / "caches/another").mkdir,
            lambda: os.listdir(tree / "caches/c@other"),
            lambda: os.rename(tree / "builds/small", tree / "results/small"),
            (tree / "results/done").rmdir,
        ]
        assert [errno_of(each) for each in asked] == [errno.EIO] * len(asked)
        assert "zpool clear" in zfsfs("umount", tree.path, expect=3).stderr
        os.close(session)
        assert [each["name"] for each in tree.status()["sessions"]] == ["c"]
        disk.mend()
        until(lambda: not tree.status()["trouble"])
        writer.wait()
    # Not always the last one: what failed while the pool stood still may be answered, and told of, only now.
    until(lambda: "the storage works again" in tree.events("warning"))
    assert tree.outcome("c") == "published"
    assert (tree / "caches/c/file").read_text() == "of the session"
    assert (tree / "results/done/file").read_bytes() == b"done"
    (tree / "builds/small/file").write_text("small")
    os.rename(tree / "builds/small", tree / "results/small")
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)
    tree.closed()


def test_who_ends_waits_for_a_suspended_pool_rather_than_lose_a_session(tree: Mounted, disk: Disk) -> None:
    (tree / "caches/c").mkdir()
    (tree / "builds/big").mkdir()
    session = os.open(tree / "caches/c", os.O_RDONLY)
    (tree / "caches/c/file").write_text("of the session")
    os.fsync(session)
    command = [sys.executable, "-c", WRITER, tree / "builds/big/file"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL):
        until(lambda: tree.status()["trouble"])
        daemon = os.pidfd_open(tree.pid)
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        until(lambda: "can't be closed" in tree.log.read_text())
        os.close(session)
        disk.mend()
        assert select.select([daemon], [], [], PATIENCE)[0], "the daemon does not end"
    os.close(daemon)
    tree.mount()
    assert (tree / "caches/c/file").read_text() == "of the session"


def test_a_pool_that_is_served_can_not_be_exported(tree: Mounted, disk: Disk) -> None:
    publish(tree, "done", b"done")
    for force in ((), ("-f",)):
        done = subprocess.run(["zpool", "export", *force, disk.pool], capture_output=True, text=True, check=False)
        assert done.returncode
        assert "busy" in done.stderr
        assert (tree / "results/done/file").read_bytes() == b"done"
        publish(tree, f"next{len(force)}", b"next")
    assert not tree.status()["trouble"]
    tree.umount()
    disk.import_again()
    tree.mount()
    assert set(os.listdir(tree / "results")) == {"done", "next0", "next1"}


def test_what_a_disk_gives_back_wrong_is_an_error_and_nothing_else_is(tree: Mounted, disk: Disk) -> None:
    contents = os.urandom(1 << 17)
    publish(tree, "spoilt", contents)
    publish(tree, "sound", b"sound")
    tree.umount()
    disk.import_again()
    at = disk.find(contents[:4096])
    with open(disk.file, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(bytes(4096))
    tree.mount()
    with failing(errno.EIO):
        (tree / "results/spoilt/file").read_bytes()
    assert any("zpool status" in text for text in tree.events("warning"))
    assert (tree / "results/sound/file").read_bytes() == b"sound"
    publish(tree, "another", b"another")
    with open(disk.file, "r+b", buffering=0) as file:
        file.seek(at)
        file.write(contents[:4096])
    run("zpool", "clear", disk.pool)
    assert (tree / "results/spoilt/file").read_bytes() == contents


def test_a_quota_of_a_part_of_the_store_is_edquot_where_it_is_reached(tree: Mounted) -> None:
    publish(tree, "done", b"done")
    (tree / "caches/c").mkdir()
    for name, limit in (("result/small", "refquota=2M"), ("result", "quota=4M")):
        (tree / "builds/small").mkdir()
        run("zfs", "set", limit, f"{tree.store}/{name}")
        with failing(errno.EDQUOT), open(tree / "builds/small/file", "wb", buffering=0) as file:
            for _ in range(80):
                file.write(os.urandom(1 << 17))
                os.fsync(file.fileno())
        # What lies elsewhere has its room, and what is reached can be emptied.
        (tree / "caches/c/file").write_bytes(os.urandom(1 << 20))
        run("zfs", "set", f"{limit.partition('=')[0]}=none", f"{tree.store}/{name}")
        os.rename(tree / "builds/small", tree / "results/small")
        os.rmdir(tree / "results/small")
    assert any("quota" in text or "full" in text for text in tree.events("warning"))
    assert tree.outcome("c") == "published"
    assert (tree / "results/done/file").read_bytes() == b"done"

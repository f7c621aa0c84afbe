"""fsync(2), fdatasync(2), O_SYNC and msync(2) reach the storage.

The disk beneath is told to flush, or ZFS commits its intent log, before the call returns; nothing else does so then.
"""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pytest
from mounted_tree import Mounted

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="makes a disk")


@pytest.fixture
def store(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """A store on a disk of its own; on ZFS as always."""
    pool = os.environ.get("ZFSFS_TEST_POOL")
    if pool:
        datasets.create(f"{pool}/syncing")
        yield f"{pool}/syncing"
        datasets.destroy(f"{pool}/syncing")
        return
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with open(image, "wb") as file:
        file.truncate(256 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    # Its own commits would be taken for ours.
    subprocess.run(["mount", "-o", "loop,commit=3000", image, disk], check=True)
    yield str(disk / "store")
    subprocess.run(["umount", disk], check=True)


def flushes(store: str) -> int:
    """How often the disk was told to flush, or ZFS has committed."""
    if not store.startswith("/"):
        lines = Path("/proc/spl/kstat/zfs/zil").read_text().splitlines()
        return next(int(line.split()[2]) for line in lines if line.startswith("zil_commit_count"))
    device = os.stat(Path(store).parent).st_dev
    fields = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}/stat").read_text().split()
    return int(fields[15])  # Documentation/block/stat.rst: flush I/Os


def fsync(path: Path) -> Callable[[], None]:
    file = open(path, "wb", buffering=0)  # noqa: SIM115
    file.write(b"x" * 5000)
    return lambda: (os.fsync(file.fileno()), file.close())[1]


def fdatasync(path: Path) -> Callable[[], None]:
    file = open(path, "wb", buffering=0)  # noqa: SIM115
    file.write(b"x" * 5000)
    return lambda: (os.fdatasync(file.fileno()), file.close())[1]


def with_flag(flag: int) -> Callable[[Path], Callable[[], None]]:
    def prepare(path: Path) -> Callable[[], None]:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | flag)
        return lambda: (os.write(fd, b"x" * 5000), os.close(fd))[1]

    return prepare


def beside_another(path: Path) -> Callable[[], None]:
    """The file is open already, by who does not want that."""
    other = os.open(path, os.O_RDWR | os.O_CREAT)
    fd = os.open(path, os.O_WRONLY | os.O_SYNC)
    return lambda: (os.write(fd, b"x" * 5000), os.close(fd), os.close(other))[2]


def msync(path: Path) -> Callable[[], None]:
    with open(path, "w+b", buffering=0) as file:
        file.write(b"x" * 5000)
        mapping = mmap.mmap(file.fileno(), 0)
    mapping[:5] = b"dirty"
    return lambda: (mapping.flush(), mapping.close())[1]


def directory(path: Path) -> Callable[[], None]:
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    (path / "file").touch()
    return lambda: (os.fsync(fd), os.close(fd))[1]


WAYS = {
    "fsync": fsync, "fdatasync": fdatasync, "O_SYNC": with_flag(os.O_SYNC), "O_DSYNC": with_flag(os.O_DSYNC),
    "O_SYNC beside another": beside_another, "msync": msync, "fsync of a directory": directory,
}  # fmt: skip


def test_what_is_synced_is_on_the_disk(tree: Mounted, store: str) -> None:
    build = tree / "builds/b"
    build.mkdir()
    os.sync()
    quiet = flushes(store)
    (build / "not synced").write_bytes(b"x" * 5000)
    assert flushes(store) == quiet
    for way, prepare in WAYS.items():
        sync = prepare(build / way)
        before = flushes(store)
        sync()
        assert flushes(store) > before, way
    subprocess.run(["rm", "-r", build], check=True)

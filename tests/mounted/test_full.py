"""A pool that is full: a clear errno, nothing lost, and all is well once there is room again."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted_tree import Mounted, zfsfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="limits a filesystem's size")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    """A store of 48 MiB: a quota on ZFS, a small tmpfs otherwise."""
    pool = os.environ.get("ZFSFS_TEST_POOL")
    if pool:
        name = f"{pool}/full"
        subprocess.run(["zfs", "create", "-o", "mountpoint=none", "-o", "quota=48M", name], check=True)
        yield name
        subprocess.run(["zfs", "destroy", "-R", name], check=True)
        return
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48M", "tmpfs", small], check=True)
    yield str(small / "store")
    subprocess.run(["umount", small], check=True)


def fill(path: Path) -> int:
    """Write what can't be compressed until there is no room; returns the errno."""
    with open(path, "wb", buffering=0) as file:
        try:
            for _ in range(100):
                file.write(os.urandom(1 << 20))
                os.fsync(file.fileno())
        except OSError as failure:
            return failure.errno or 0
    return 0


def test_a_full_pool_is_an_error_and_loses_nothing(tree: Mounted) -> None:
    (tree / "builds/kept").mkdir()
    (tree / "builds/kept/file").write_text("kept")
    os.rename(tree / "builds/kept", tree / "results/kept")
    (tree / "builds/big").mkdir()
    assert fill(tree / "builds/big/file") in (errno.ENOSPC, errno.EDQUOT)
    assert (tree / "results/kept/file").read_text() == "kept"
    subprocess.run(["rm", "-rf", tree / "builds/big"], check=True)
    tree.closed()
    if os.environ.get("ZFSFS_TEST_POOL"):
        subprocess.run(["zfs", "set", "quota=none", tree.store], check=True)
    (tree / "builds/next@kept").mkdir()
    os.rename(tree / "builds/next@kept", tree / "results/next")
    assert (tree / "results/next/file").read_text() == "kept"
    assert "next" in os.listdir(tree / "results")
    zfsfs("status", tree.path)

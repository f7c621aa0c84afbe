"""A mounted tree for tests: on a directory store, or on real ZFS where ZFSFS_TEST_POOL names a pool.

After each test the tree is unmounted as a person would do it; then nothing may be left: no dataset of a session, no
mount, no process, no broken invariant, and no error in the daemon's log.
"""

from __future__ import annotations

import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted_tree import Mounted

from zfsfs.daemon import choose_driver
from zfsfs.mountpoint import FSTYPE, mounted_type
from zfsfs.store import check


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    pool = os.environ.get("ZFSFS_TEST_POOL")
    if not pool:
        yield str(tmp_path / "store")
        return
    name = f"{pool}/m-{secrets.token_hex(6)}"
    subprocess.run(["zfs", "create", "-o", "mountpoint=none", name], check=True)
    yield name
    subprocess.run(["zfs", "destroy", "-R", name], check=True)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="zfsfs-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def unmounted(store: str, folder: Path) -> Iterator[Mounted]:
    """A store and a mountpoint; the test mounts by itself."""
    tree = Mounted(store, folder)
    yield tree
    if mounted_type(str(tree.path)) == FSTYPE:
        tree.umount()
    assert mounted_type(str(tree.path)) is None
    log = tree.log.read_text() if tree.log.exists() else ""
    assert " ERROR " not in log, log
    assert "Traceback" not in log, log
    driver = choose_driver(store)
    try:
        assert check(driver.list()) == []
    finally:
        driver.close()


@pytest.fixture
def tree(unmounted: Mounted) -> Mounted:
    """A mounted store with a short linger time."""
    unmounted.mount()
    return unmounted

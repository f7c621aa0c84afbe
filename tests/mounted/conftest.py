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
from contextlib import ExitStack, contextmanager
from pathlib import Path

import datasets
import pytest
from comparing import Places
from mounted_tree import Mounted, checked


@pytest.fixture
def store(tmp_path: Path) -> Iterator[str]:
    pool = os.environ.get("ZFSFS_TEST_POOL")
    if not pool:
        yield str(tmp_path / "store")
        return
    name = f"{pool}/m-{secrets.token_hex(6)}"
    datasets.create(name)
    yield name
    datasets.destroy(name)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that other users can reach, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="zfsfs-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


@pytest.fixture
def unmounted(store: str, folder: Path) -> Iterator[Mounted]:
    """A store and a mountpoint; the test mounts by itself."""
    with checked(store, folder) as tree:
        yield tree


@pytest.fixture
def tree(unmounted: Mounted) -> Mounted:
    """A mounted store with a short linger time."""
    unmounted.mount()
    return unmounted


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    """A build, a cache, and a directory of the filesystem beneath, for all cases of a module."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="zfsfs-")))
        folder.chmod(0o755)
        store, native = stack.enter_context(beneath(folder))
        tree = stack.enter_context(checked(store, folder))
        tree.mount(0.5)
        (tree / "builds/b").mkdir()
        (tree / "caches/c").mkdir()
        yield Places({"build": tree / "builds/b", "cache": tree / "caches/c", "native": native})
        subprocess.run(["rm", "-rf", tree / "builds/b"], check=True)


@contextmanager
def beneath(folder: Path) -> Iterator[tuple[str, Path]]:
    """An empty store, and a directory on the same kind of filesystem."""
    native = folder / "native"
    native.mkdir()
    pool = os.environ.get("ZFSFS_TEST_POOL")
    if not pool:
        yield str(folder / "store"), native
        return
    name = f"{pool}/m-{secrets.token_hex(6)}"
    properties = ("-o", "acltype=posix", "-o", "xattr=sa")
    subprocess.run(["zfs", "create", *properties, "-o", "mountpoint=none", name], check=True)
    subprocess.run(["zfs", "create", *properties, "-o", f"mountpoint={native}", f"{name}-native"], check=True)
    yield name, native
    datasets.destroy(name)
    subprocess.run(["zfs", "destroy", f"{name}-native"], check=True)  # which is mounted


@pytest.fixture
def cache(tree: Mounted) -> Path:
    """A cache with a file, published."""
    (tree / "caches/c").mkdir()
    (tree / "caches/c/file").write_text("first")
    assert tree.outcome("c") == "published"
    return tree / "caches/c"

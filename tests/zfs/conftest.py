"""Real ZFS for tests: a dataset of its own for each, in the pool that ZFSFS_TEST_POOL names."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator

import datasets
import pytest

from zfsfs.driver import Driver


@pytest.fixture
def pool() -> Iterator[str]:
    """The name of an empty dataset; it and all in it are destroyed after the test, which must have let go of it."""
    parent = os.environ.get("ZFSFS_TEST_POOL")
    if not parent:
        pytest.skip("ZFSFS_TEST_POOL names no pool to test on")
    pytest.importorskip("libzfs_core", reason="libzfs_core (python3-pyzfs) is not installed")
    name = f"{parent}/t-{secrets.token_hex(6)}"
    datasets.create(name)
    yield name
    datasets.destroy(name)


@pytest.fixture
def unlocked(pool: str) -> Iterator[Driver]:
    """A driver whose store anybody may start: some tests start one on it themselves."""
    from zfsfs.zfs.driver import ZfsDriver

    driver = ZfsDriver(pool)
    driver.prepare()
    yield driver
    driver.close()

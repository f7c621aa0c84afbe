"""Real ZFS for tests: a dataset of its own for each, in the pool that ZFSFS_TEST_POOL names."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator

import pytest

from zfsfs.driver import Driver
from zfsfs.names import MAX_FULL_NAME
from zfsfs.zfs import programs

# Everything in one transaction group, where zfs(8) takes one for each dataset. Clones stand in the way of snapshots,
# and snapshots and children of datasets, so what can go goes, until there is nothing left.
_DESTROY = b"""
local root, longest = (...)["argv"][1], tonumber((...)["argv"][2])
local function gone(name)
    if #name > longest then return false end -- see zfsfs.zfs.programs
    local free, below, snapshots = true, {}, {}
    for child in zfs.list.children(name) do below[#below + 1] = child end
    for _, child in ipairs(below) do free = gone(child) and free end
    for snapshot in zfs.list.snapshots(name) do snapshots[#snapshots + 1] = snapshot end
    for _, snapshot in ipairs(snapshots) do free = zfs.sync.destroy(snapshot) == 0 and free end
    return free and zfs.sync.destroy(name) == 0
end
for turn = 1, 20 do
    if gone(root) then return 0 end
end
return 1
"""


@pytest.fixture
def pool() -> Iterator[str]:
    """The name of an empty dataset; it and all in it are destroyed after the test, which must have let go of it."""
    parent = os.environ.get("ZFSFS_TEST_POOL")
    if not parent:
        pytest.skip("ZFSFS_TEST_POOL names no pool to test on")
    core = pytest.importorskip("libzfs_core", reason="libzfs_core (python3-pyzfs) is not installed")
    name = f"{parent}/t-{secrets.token_hex(6)}"
    core.lzc_create(name.encode(), "zfs", {b"mountpoint": b"none"})
    yield name
    whole, argv = parent.partition("/")[0].encode(), [name.encode(), b"%d" % MAX_FULL_NAME]
    if core.lzc_channel_program(whole, _DESTROY, programs.INSTRUCTIONS, programs.SMALL, argv):
        # It takes away what else can be, and says what is in the way.
        subprocess.run(["zfs", "destroy", "-R", name], check=True)


@pytest.fixture
def unlocked(pool: str) -> Iterator[Driver]:
    """A driver whose store anybody may start: some tests start one on it themselves."""
    from zfsfs.zfs.driver import ZfsDriver

    driver = ZfsDriver(pool)
    driver.prepare()
    yield driver
    driver.close()

"""A test's own dataset on real ZFS: made, and destroyed with all that is in it."""

from __future__ import annotations

import importlib
import subprocess

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


def create(name: str) -> None:
    """An empty dataset that is mounted nowhere."""
    importlib.import_module("libzfs_core").lzc_create(name.encode(), "zfs", {b"mountpoint": b"none"})


def destroy(name: str) -> None:
    """Destroy a dataset and all in it, which everybody must have let go of."""
    core = importlib.import_module("libzfs_core")
    pool, argv = name.partition("/")[0].encode(), [name.encode(), b"%d" % MAX_FULL_NAME]
    if core.lzc_channel_program(pool, _DESTROY, programs.INSTRUCTIONS, programs.SMALL, argv):
        # It takes away what else can be, and says what is in the way.
        subprocess.run(["zfs", "destroy", "-R", name], check=True)

"""Whether a pool works, as far as the kernel tells without asking the pool: that may wait for ever.

Source: /proc/spl/kstat/zfs/POOL/state (OpenZFS's spa_stats.c), which is there as long as the pool is imported.
"""

from __future__ import annotations

import os

_STATE = "/proc/spl/kstat/zfs/{}/state"


def is_told(name: str) -> bool:
    """Whether the kernel tells at all of the pool of the dataset `name`: older ones and some containers don't."""
    return os.access(_STATE.format(name.partition("/")[0]), os.R_OK)


def trouble(name: str) -> str:
    """What is wrong with the pool of the dataset `name` that a person has to mend, and how; '' when nothing is.
    Raises OSError when that can't be looked at now, as without a descriptor."""
    pool = name.partition("/")[0]
    try:
        with open(_STATE.format(pool)) as file:
            state = file.read().strip()
    except FileNotFoundError:
        return f"pool {pool} is not imported any more: unmount, `zpool import {pool}`, and mount again"
    if state == "SUSPENDED":
        return (
            f"pool {pool} is suspended, for it can't reach its disks: what needs it waits. See `zpool status {pool}`,"
            f" then `zpool clear {pool}`"
        )
    return ""

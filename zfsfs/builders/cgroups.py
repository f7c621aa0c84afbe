"""Control groups (version 2) for builders, where the daemon may make them: what is in one ends with one write.

Sources: cgroups(7), the kernel's admin-guide/cgroup-v2 (cgroup.kill, cgroup.events, cgroup.procs).
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

#: Seconds that the kernel may take to end what it was told to kill.
_PATIENCE = 10.0


def parent() -> str | None:
    """The directory of our own group; None where there is no version 2 or it can't be changed."""
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            mounts = [line.split(" ")[4] for line in lines if " - cgroup2 " in line]
        with open("/proc/self/cgroup", encoding="utf-8", errors="surrogateescape") as lines:
            mine = next((line.strip()[3:] for line in lines if line.startswith("0::")), None)
    except OSError:
        return None
    if not mounts or mine is None:
        return None
    path = os.path.normpath(mounts[-1] + mine)
    # cgroup.kill came with Linux 5.14; every group but the root has it, so a new one will tell.
    return path if os.access(path, os.W_OK) else None


def make(name: str) -> str | None:
    """A new group within ours; None where that can't be."""
    above = parent()
    if above is None:
        return None
    path = os.path.join(above, name)
    try:
        os.mkdir(path)
    except OSError:
        return None
    if not os.path.exists(os.path.join(path, "cgroup.kill")):
        remove(path)
        return None
    return path


def enter(path: str) -> None:
    """Move this process into a group. Raises OSError."""
    with open(os.path.join(path, "cgroup.procs"), "w", encoding="ascii") as file:
        file.write("0")


def kill(path: str) -> bool:
    """Kill whatever is in a group, new processes too, and wait for its end. Whether it is empty then."""
    with suppress(OSError), open(os.path.join(path, "cgroup.kill"), "w", encoding="ascii") as file:
        file.write("1")
    end = time.monotonic() + _PATIENCE
    while populated(path):
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def populated(path: str) -> bool:
    """Whether there is a process in a group."""
    try:
        with open(os.path.join(path, "cgroup.events"), encoding="ascii") as file:
            return "populated 1" in file.read()
    except OSError:
        return False


def remove(path: str) -> None:
    """Remove an empty group."""
    with suppress(OSError):
        os.rmdir(path)

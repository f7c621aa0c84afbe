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


def make(name: str, processes: int | None = None) -> str | None:
    """A new group within ours, of at most so many processes where the kernel can limit them; None where that can't
    be."""
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
    if processes is not None:
        with suppress(OSError):
            # A threaded controller: it may be enabled above processes.
            _write(above, "cgroup.subtree_control", "+pids")
        with suppress(OSError):
            _write(path, "pids.max", str(processes))
    return path


def is_limited(path: str) -> bool:
    """Whether the processes of a group are limited."""
    try:
        with open(os.path.join(path, "pids.max"), encoding="ascii") as file:
            return file.read().strip() != "max"
    except OSError:
        return False


def _write(group: str, file: str, text: str) -> None:
    with open(os.path.join(group, file), "w", encoding="ascii") as target:
        target.write(text)


def enter(path: str) -> None:
    """Move this process into a group. Raises OSError."""
    _write(path, "cgroup.procs", "0")


def kill(path: str) -> bool:
    """Kill whatever is in a group, new processes too, and wait for its end. Whether it is empty then."""
    with suppress(OSError):
        _write(path, "cgroup.kill", "1")
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

"""Who holds a directory without an open file: processes with their working directory or root in it, and bind
mounts of it in any mount namespace.

Paths read differently in another namespace, so what is compared are device and inode numbers (proc(5):
/proc/PID/cwd, /proc/PID/root) and the device and root of each line of /proc/PID/mountinfo.

These calls ask our own filesystem: never make them from the event loop.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something: an inode number for 'cwd' and 'root', a path below our root for 'mount'."""

    pid: int
    command: str
    what: str
    ino: int = 0
    path: bytes = b""

    def __str__(self) -> str:
        return f"{self.what} of {self.command} (pid {self.pid})"


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""  # the process is gone, or not ours to look at


def _command(pid: int) -> str:
    return _read(f"/proc/{pid}/comm").decode("utf-8", "replace").strip() or "?"


def _unescaped(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def bind_mounts(mountinfo: bytes, device: int) -> Iterator[bytes]:
    """The paths below the root of filesystem `device` that a mountinfo shows as mounts of their own."""
    wanted = b"%d:%d" % (os.major(device), os.minor(device))
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        if len(fields) > 4 and fields[2] == wanted and fields[3] != b"/":
            path = _unescaped(fields[3])
            yield path.removesuffix(b"//deleted").lstrip(b"/")


def holders(device: int, pids: Iterable[int] | None = None) -> list[Holder]:
    """All holders of anything on filesystem `device` (its st_dev), but ourselves."""
    found: list[Holder] = []
    namespaces: set[str] = set()
    everyone = pids if pids is not None else [int(name) for name in os.listdir("/proc") if name.isdigit()]
    for pid in everyone:
        if pid == os.getpid():
            continue
        for what in ("cwd", "root"):
            try:
                st = os.stat(f"/proc/{pid}/{what}")
            except OSError:
                continue
            if st.st_dev == device:
                found.append(Holder(pid, _command(pid), what, ino=st.st_ino))
        try:
            namespace = os.readlink(f"/proc/{pid}/ns/mnt")
        except OSError:
            continue
        if namespace not in namespaces:
            namespaces.add(namespace)
            found += [
                Holder(pid, _command(pid), "mount", path=path)
                for path in bind_mounts(_read(f"/proc/{pid}/mountinfo"), device)
            ]
    return found

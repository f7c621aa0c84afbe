"""User namespaces that exist to map users by (mount_setattr(2), MOUNT_ATTR_IDMAP)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress

from zfsfs import syscalls
from zfsfs.errors import MountError, UsageError

Range = tuple[int, int, int]


def parse_map(text: str) -> Range:
    """INSIDE:OUTSIDE:COUNT. Raises UsageError."""
    match = re.fullmatch(r"(\d{1,10}):(\d{1,10}):(\d{1,10})", text)
    if not match:
        raise UsageError(f"--map-users {text}: not INSIDE:OUTSIDE:COUNT, as in 0:100000:65536")
    inside, outside, count = map(int, match.groups())
    if not count or inside + count > 1 << 32 or outside + count > 1 << 32:
        raise UsageError(f"--map-users {text}: user numbers go from 0 to 4294967294")
    return inside, outside, count


def namespace_of(ranges: Sequence[Range]) -> int:
    """A descriptor of a new user namespace in which users and groups are mapped so. Raises MountError."""
    ready, go = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            syscalls.unshare(syscalls.CLONE_NEWUSER)
            os.write(ready[1], b"x")
            os.close(go[1])
            os.read(go[0], 1)
        finally:
            os._exit(0)
    os.close(ready[1])
    os.close(go[0])
    try:
        if os.read(ready[0], 1) != b"x":
            raise MountError("there is no user namespace for you")
        text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in ranges)
        try:
            for name in ("uid_map", "gid_map"):
                with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
                    file.write(text)
            return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as failure:
            raise MountError(f"users can't be mapped so: {failure.strerror}") from None
    finally:
        os.close(ready[0])
        os.close(go[1])
        with suppress(ChildProcessError):  # where who has started us ignores the end of children
            os.waitpid(pid, 0)

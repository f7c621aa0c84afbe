"""Who asks, and the small things that acting for others takes."""

from __future__ import annotations

import os
from dataclasses import dataclass

#: The pid of a caller that is a builder, before it has a process.
NOBODY = -1


@dataclass(slots=True)
class Caller:
    """Who asks."""

    uid: int
    gid: int
    pid: int = 0

    def belongs_to(self, group: int) -> bool:
        """Whether a group is the caller's own or one of the supplementary ones."""
        return group == self.gid or group in self.groups()

    def groups(self) -> set[int]:
        """The caller's own group and the supplementary ones (proc(5): /proc/PID/status)."""
        found = {self.gid}
        try:
            with open(f"/proc/{self.pid}/status") as lines:
                for line in lines:
                    if line.startswith("Groups:"):
                        found.update(map(int, line.split()[1:]))
        except OSError:
            pass  # it is gone
        return found


def error(number: int) -> OSError:
    """An OSError with its usual text."""
    return OSError(number, os.strerror(number))


def magic(fd: int) -> str:
    """A path to what an O_PATH descriptor stands for, for calls that take no descriptor (proc(5))."""
    return f"/proc/self/fd/{fd}"

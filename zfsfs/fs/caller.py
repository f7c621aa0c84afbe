"""Who asks, and the small things that acting for others takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import trio

#: The pid of a caller that is a builder, before it has a process.
NOBODY = -1


class Interruption:
    """Of one request: `come` says that the thread that waits for its answer has got a signal."""

    def __init__(self) -> None:
        self._has_come = False
        self._scope: trio.CancelScope | None = None

    def come(self) -> None:
        """End what can be ended. Once it has come it has come for whatever is waited for later, too."""
        self._has_come = True
        if self._scope is not None:
            self._scope.cancel()

    @contextmanager
    def ending(self) -> Iterator[None]:
        """What waits in here is cancelled by it, which raises EINTR."""
        with trio.CancelScope() as scope:
            self._scope = scope
            if self._has_come:
                scope.cancel()
            try:
                yield
            finally:
                self._scope = None
        if scope.cancelled_caught:
            raise error(errno.EINTR)


@dataclass(slots=True)
class Caller:
    """Who asks. Who has no `interruption` can't be interrupted: a builder, and all where pyfuse3 serves alone, which
    does not tell."""

    uid: int
    gid: int
    pid: int = 0
    interruption: Interruption | None = field(default=None, kw_only=True, repr=False, compare=False)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Wait in here for what may never come. Raises EINTR."""
        if self.interruption is None:
            yield
        else:
            with self.interruption.ending():
                yield

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

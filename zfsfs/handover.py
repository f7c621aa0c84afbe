"""What is handed over to be mounted. A module of its own, and no dataclass: `zfsfs exec` starts before every command
that it runs, and what a driver needs takes several times as long to import."""

from __future__ import annotations

from typing import NamedTuple


class Native(NamedTuple):
    """A dataset to be mounted, natively. `fd`, owned by who has asked for it, is a detached mount with all its
    attributes (`detached`), or, where the daemon may not make one, a directory to be bound by who can see it."""

    fd: int
    detached: bool
    read_only: bool

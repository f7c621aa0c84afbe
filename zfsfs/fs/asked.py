"""Who asks, and what the fast lane says in the words of pyfuse3: `Operations` hears and says both."""

from __future__ import annotations

from dataclasses import dataclass

from zfsfs.fs.caller import Caller
from zfsfs.fs.cold import Look
from zfsfs.fs.handles import FileHandle
from zfsfs.fs.nodes import Node

#: What has to be looked at first: a name in a directory, or without one a node.
Cold = tuple[Node, bytes | None]
#: Which file, at what size, and by which handle.
Cut = tuple[Node, int, FileHandle | None]


@dataclass(slots=True)
class Context(Caller):
    """Who asks, as pyfuse3 would say it. What the lane left the request for: something in memory (`cold`), or that a
    large file be cut off (`cut`); `look`: who looks at that already; `looked`: what was seen to."""

    umask: int = 0
    cold: Cold | None = None
    look: Look | None = None
    looked: tuple[Cold, ...] = ()
    cut: Cut | None = None


@dataclass(slots=True)
class Opened:
    """The reply to an open, as pyfuse3 would say it."""

    fh: int
    direct_io: bool = False
    keep_cache: bool = True

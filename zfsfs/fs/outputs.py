"""The output of builds that a person runs, kept as builders' is: `zfsfs build` sends it here while it comes.

Guarantees: what is kept has a bounded size and the form of a log, whatever the sender does, and nothing is kept once
the build has ended; who may have it kept is who made the build, and root. A log that can't be written is given up
with a warning: the build goes on.
"""

from __future__ import annotations

import os
import socket

import trio

from zfsfs.builders.log import Writer
from zfsfs.config import LOG_SIZE
from zfsfs.errors import Busy, Missing, Refused, ZfsfsError
from zfsfs.fs.logs import Logs
from zfsfs.fs.places import BuildPlace
from zfsfs.fs.tree import Tree
from zfsfs.names import BuildId
from zfsfs.native.wire import Peer
from zfsfs.store import Event
from zfsfs.threads import in_thread

_CHUNK = 1 << 16


class Outputs:
    """See the module. What it starts runs in `nursery`."""

    def __init__(self, tree: Tree, logs: Logs) -> None:
        self._tree = tree
        self._logs = logs
        self._kept: dict[BuildId, trio.CancelScope] = {}
        self.nursery: trio.Nursery
        tree.store.events.subscribers.append(self._happened)

    def _happened(self, event: Event) -> None:
        if event.kind in ("published", "discarded", "failed"):
            scope = self._kept.get(BuildId(event.subject.encode("ascii")))
            if scope is not None:
                scope.cancel()

    async def keep(self, identity: tuple[int, int], peer: Peer) -> socket.socket:
        """Where the output of a running build is to be sent, which belongs to the caller; once the end of it has been
        read, and all of it is in the log, our end is closed. `identity` is the build's directory's device and inode
        number. Raises Refused, Busy, Missing, OSError."""
        device, ino = identity
        node = self._tree.table.by_ino.get(ino) if device == self._tree.device else None
        place = node.area.place if node is not None and node.parent is None else None
        if node is None or not isinstance(place, BuildPlace) or place.run is not None or place.discarded:
            raise Refused("that is no build that somebody runs")
        ident = place.name.id
        st = os.fstat(node.area.fd)
        if peer.uid not in (0, st.st_uid):
            raise Refused(f"build {ident} is not yours")
        if ident in self._kept:
            raise Busy(f"the output of build {ident} is being kept already")
        scope = self._kept[ident] = trio.CancelScope()
        try:
            guid = await self._tree.store.builds.guid(ident)
            if scope.cancel_called:
                raise Missing(f"{ident} is not being built")
            ours, theirs = socket.socketpair()
            try:
                fd = self._logs.create(ident, guid, (st.st_uid, st.st_gid))
            except BaseException:
                ours.close()
                theirs.close()
                raise
        except BaseException:
            del self._kept[ident]
            raise
        self.nursery.start_soon(self._write, ident, fd, ours, scope)
        return theirs

    async def _write(self, ident: BuildId, fd: int, sender: socket.socket, scope: trio.CancelScope) -> None:
        try:
            with scope, trio.socket.from_stdlib_socket(sender) as source:
                writer = Writer(fd, LOG_SIZE)
                while data := await source.recv(_CHUNK):
                    await in_thread(writer.write, data)
        except (OSError, ZfsfsError) as failure:
            text = f"the output of build {ident} is kept no longer: {failure}"
            self._tree.store.events.append("warning", str(ident), text)
        finally:
            del self._kept[ident]
            os.close(fd)

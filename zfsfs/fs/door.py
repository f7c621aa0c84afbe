"""The daemon's local socket: who wants something natively asks here. See zfsfs.native.wire for what is said.

Guarantees: who asks is known from the kernel, and what it may from what it has opened. Whatever a peer sends, or
fails to send, costs it its own connection only, in bounded time and memory.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import trio

from zfsfs import syscalls
from zfsfs.errors import Busy, Refused, UsageError, ZfsfsError
from zfsfs.fs.natives import Held, Natives, trusted
from zfsfs.fs.outputs import Outputs
from zfsfs.handover import Native
from zfsfs.native import wire
from zfsfs.native.wire import Message, Peer
from zfsfs.threads import at_last, in_thread

log = logging.getLogger(__name__)

#: Seconds that a peer may take for its next request, and for reading its answer.
PATIENCE = 30.0
#: Connections that one user may have at once, and processes whose end is waited for, but for root (as whom all
#: builders ask) and who has mounted the tree.
MOST = 64


class Door:
    """See the module. Open it with `opened`."""

    def __init__(self, natives: Natives, outputs: Outputs, sock: socket.socket) -> None:
        self._natives = natives
        self._outputs = outputs
        self._socket = trio.socket.from_stdlib_socket(sock)
        self._connected: Counter[int] = Counter()
        self._followed: Counter[int] = Counter()
        self.nursery: trio.Nursery

    async def serve(self) -> None:
        """Answer, until cancelled."""
        async with trio.open_nursery() as self.nursery:
            self._outputs.nursery = self.nursery
            while True:
                try:
                    connection, _ = await self._socket.accept()
                except OSError as failure:
                    if failure.errno not in (errno.EMFILE, errno.ENFILE, errno.ECONNABORTED, errno.ENOMEM):
                        raise
                    await trio.sleep(0.1)  # until somebody hangs up
                    continue
                self.nursery.start_soon(self._welcome, connection)

    async def _welcome(self, connection: trio.socket.SocketType) -> None:
        peer = None
        try:
            with connection:
                peer = wire.peer(connection)
                self._connected[peer.uid] += 1
                if self._connected[peer.uid] > MOST and not trusted(peer.uid):
                    await _send(connection, _failed(Busy("too many requests of yours are under way")))
                    return
                await _Talk(self._natives, self._outputs, connection, peer, self._follow).run()
        except OSError:
            pass  # it has hung up
        except Exception:
            log.exception("a request failed in a way that nobody expected")
        finally:
            if peer is not None:
                self._connected[peer.uid] -= 1
                if not self._connected[peer.uid]:
                    del self._connected[peer.uid]
                if peer.pidfd >= 0:
                    os.close(peer.pidfd)

    def _follow(self, peer: Peer, held: list[Held]) -> None:
        # Of more processes than that we only see what they have mounted.
        if peer.pidfd >= 0 and (self._followed[peer.uid] < MOST or trusted(peer.uid)):
            self._followed[peer.uid] += 1
            self.nursery.start_soon(self._to_its_end, peer.uid, os.dup(peer.pidfd), held)

    async def _to_its_end(self, uid: int, pidfd: int, held: list[Held]) -> None:
        try:
            await self._natives.follow(pidfd, held)
        finally:
            self._followed -= Counter((uid,))


class _Talk:
    """One connection."""

    def __init__(
        self,
        natives: Natives,
        outputs: Outputs,
        connection: trio.socket.SocketType,
        peer: Peer,
        follow: Callable[[Peer, list[Held]], None],
    ) -> None:
        self._natives = natives
        self._outputs = outputs
        self._connection = connection
        self._peer = peer
        self._follow = follow
        self._granted: list[Held] = []

    async def run(self) -> None:
        """Answer its requests, one after another."""
        try:
            while await self._one():
                pass
        finally:
            for held in self._granted:
                self._natives.gone(held)

    async def _one(self) -> bool:
        descriptors: list[int] = []
        given: list[int] = []
        try:
            try:
                request = None
                with trio.move_on_after(PATIENCE):
                    request = await self._receive(descriptors)
                if request is None:
                    return False
                # However long it takes: that is not up to the peer.
                answer = await self._answer(request, descriptors, given)
            except (ZfsfsError, OSError) as failure:
                answer, given[:] = _failed(failure), _closed(given)
            with trio.move_on_after(PATIENCE) as patience:
                await _send(self._connection, answer, given)
            return not patience.cancelled_caught
        finally:
            _closed(given)
            await _close_elsewhere(descriptors)

    async def _receive(self, descriptors: list[int]) -> Message | None:
        data, ancillary, flags, _ = await self._connection.recvmsg(wire.PACKET, wire.ROOM, socket.MSG_CMSG_CLOEXEC)
        descriptors += wire.received(ancillary)
        if not data:
            return None
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise UsageError("the request is too long")
        try:
            request = json.loads(data)
        except (ValueError, RecursionError):
            raise UsageError("the request is no JSON") from None
        if not isinstance(request, dict):
            raise UsageError("the request is no JSON object")
        return request

    async def _answer(self, request: Message, descriptors: list[int], given: list[int]) -> Message:
        verb = request.get("verb")
        if verb == "hold":
            return await self._hold(request, descriptors, given)
        if verb == "attached":
            self._attached()
            return {}
        if verb == "keep":
            if len(descriptors) != 1:
                raise UsageError("keep needs a directory")
            stream = await self._outputs.keep(await _identity(descriptors[0]), self._peer)
            given.append(stream.detach())
            return {}
        if verb == "whose":
            identity = request.get("identity")
            return {"ours": isinstance(identity, list) and self._natives.owns(tuple(identity))}
        if verb == "look":
            self._natives.wake()
            return {}
        raise UsageError("there is no such verb")

    async def _hold(self, request: Message, descriptors: Sequence[int], given: list[int]) -> Message:
        mapped = bool(request.get("mapped"))
        if mapped and self._peer.uid != 0:
            raise Refused("only root may map users: the files of one would become those of another")
        folders = descriptors[:-1] if mapped else descriptors
        if not folders:
            raise UsageError("hold needs directories")
        if len(self._granted) + len(folders) > wire.DESCRIPTORS:
            raise UsageError("what is held has to be mounted first")
        mounts = []
        for folder in folders:
            if fcntl.fcntl(folder, fcntl.F_GETFL) & os.O_PATH:
                raise Refused("a directory has to be opened for reading")
            grant = await self._natives.hold(
                await _identity(folder), self._peer, read_only=bool(request.get("read_only"))
            )
            if grant is None:
                mounts.append({"already": True})
                continue
            self._granted.append(grant.held)
            given.append(grant.native.fd)
            if mapped:
                await _map_users(grant.native, descriptors[-1])
            mounts.append({"detached": grant.native.detached, "read_only": grant.native.read_only})
        return {"mounts": mounts}

    def _attached(self) -> None:
        granted, self._granted = self._granted, []
        for held in granted:
            self._natives.attached(held, self._peer.pid)
        if granted:
            self._follow(self._peer, granted)


async def _identity(descriptor: int) -> tuple[int, int]:
    path = f"/proc/self/fd/{descriptor}"
    return await in_thread(syscalls.identity, path, abandon_on_cancel=True)


async def _map_users(native: Native, namespace: int) -> None:
    if not native.detached:
        raise Refused("mapping users needs a daemon that is root")
    try:
        await in_thread(syscalls.set_mount_attributes, native.fd, 0, namespace)
    except OSError as failure:
        why = "the filesystem can't do it, or that is no user namespace" if failure.errno == errno.EINVAL else failure
        raise Refused(f"users can't be mapped: {why}", failure.errno or errno.EINVAL) from None


def _failed(failure: Exception) -> Message:
    number = getattr(failure, "errno", None) or errno.EIO
    text = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
    return {"error": text, "errno": number, "code": getattr(failure, "exit_code", 1)}


async def _send(connection: trio.socket.SocketType, answer: Message, descriptors: Sequence[int] = ()) -> None:
    text, rights = wire.packed(answer, descriptors)
    await connection.sendmsg([text], rights)


def _closed(descriptors: list[int]) -> list[int]:
    while descriptors:
        with suppress(OSError):  # their filesystem may say anything: they are closed all the same (close(2))
            os.close(descriptors.pop())
    return descriptors


async def _close_elsewhere(descriptors: list[int]) -> None:
    """They may belong to a filesystem that never answers. Then only who has sent them waits for ever."""
    if descriptors:
        await at_last(_closed, descriptors)


@dataclass(frozen=True, slots=True)
class Listening:
    """A socket that listens, and its path."""

    socket: socket.socket
    path: str


@contextmanager
def opened() -> Iterator[Listening]:
    """A socket that listens; its path is gone at the end. What daemons that died have left is swept."""
    folder = wire.folder()
    for name in os.listdir(folder):
        if name.endswith(".sock") and not _answers(os.path.join(folder, name)):
            with suppress(OSError):
                os.unlink(os.path.join(folder, name))
    early = os.path.join(folder, secrets.token_hex(8))
    path = f"{early}.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(early)
        try:
            os.chmod(early, 0o666 if os.geteuid() == 0 else 0o600)
            sock.listen(64)
            # Only now: another daemon that starts would take it for one whose daemon has died.
            os.rename(early, path)
            yield Listening(sock, path)
        finally:
            for each in (early, path):
                with suppress(OSError):
                    os.unlink(each)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.setblocking(False)
        error: Any = sock.connect_ex(path)
        return error in (0, errno.EAGAIN, errno.EINPROGRESS)

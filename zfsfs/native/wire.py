"""What is said between the command line and the daemon: packets of JSON on a local socket, with descriptors.

A request is an object with a `verb`; an answer is an object, with `error`, `errno` and `code` (an exit code) when it
failed. Requests of one connection:

    hold      with descriptors of directories, opened for reading: mount them natively. `read_only`; `mapped`: the
              last descriptor is a user namespace to map users by. Answer: `mounts`, one for each directory: `already`
              (it is native where it is), or `detached` and `read_only`, with a descriptor
    attached  what was held is mounted now
    keep      with a descriptor of a running build's directory: keep what it prints. Answer: with a descriptor, a
              stream to send it to, which is closed once its end was read and all is in the log
    whose     `identity`: is the directory with this device and inode number a native mount of this daemon's? Answer:
              `ours`
    look      something may have been unmounted

Sources: unix(7) for SO_PEERCRED, SO_PEERGROUPS, SO_PEERPIDFD and SCM_RIGHTS.
"""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import struct
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from zfsfs.errors import MountError, Refused

if TYPE_CHECKING:  # a client has no use for it, and it takes long to import
    import trio

#: The most that a packet and its descriptors may be.
PACKET, DESCRIPTORS = 65536, 64
_SO_PEERGROUPS, _SO_PEERPIDFD = 59, 77

Message = dict[str, Any]


class Peer(NamedTuple):
    """Who is at the other end, as the kernel has it. `pidfd` is -1 where there is none."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int]
    pidfd: int


def peer(sock: socket.socket | trio.socket.SocketType) -> Peer:
    """Who is at the other end of a socket."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    groups: Sequence[int] = ()
    with suppress(OSError):
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 4 * 1024)
        groups = struct.unpack(f"{len(raw) // 4}I", raw)
    pidfd = -1
    try:
        pidfd = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    except OSError:
        with suppress(OSError):  # an older kernel
            pidfd = os.pidfd_open(pid)
    return Peer(pid, uid, gid, frozenset((gid, *groups)), pidfd)


def packed(message: Message, descriptors: Sequence[int]) -> tuple[bytes, list[tuple[int, int, bytes]]]:
    """A message, and the ancillary data that carries descriptors."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())] if descriptors else []
    return json.dumps(message).encode(), rights


def received(ancillary: Sequence[tuple[int, int, bytes]]) -> list[int]:
    """The descriptors that came along; whoever asks owns them."""
    found = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            found.frombytes(data[: len(data) - len(data) % found.itemsize])
    return list(found)


ROOM = socket.CMSG_SPACE(DESCRIPTORS * 4)


def folder() -> str:
    """Where a daemon of this user has its socket; made when it is missing. Raises MountError where others could put
    theirs."""
    uid = os.geteuid()
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    own = os.path.join(runtime, "zfsfs") if os.access(runtime, os.W_OK) else f"/tmp/zfsfs-{uid}"  # or another user's
    path = "/run/zfsfs" if uid == 0 else own
    mode = 0o755 if uid == 0 else 0o700
    with suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, mode)
    st = os.lstat(path)
    if not stat.S_ISDIR(st.st_mode) or st.st_uid != uid or st.st_mode & 0o022:
        raise MountError(f"{path} is not a directory that only {'root' if uid == 0 else 'you'} may write")
    return path


class Connection:
    """A client's end. Raises MountError when there is no daemon that can be trusted at `path`. With `patience`, in
    seconds, an answer that takes longer is a MountError, too."""

    def __init__(self, path: str, patience: float | None = None) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(patience)
        try:
            self._socket.connect(path)
        except OSError as failure:
            self.close()
            raise MountError(f"the daemon can't be asked at {path}: {failure.strerror or failure}") from None
        _, uid, _ = struct.unpack("iII", self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid not in (0, os.geteuid()):
            self.close()
            raise Refused(f"{path} is served by user {uid}, whose mounts are not to be trusted")

    def ask(self, message: Message, descriptors: Sequence[int] = ()) -> tuple[Message, list[int]]:
        """Send a request and wait for its answer. Raises the error that it tells."""
        text, rights = packed(message, descriptors)
        try:
            self._socket.sendmsg([text], rights)
            data, ancillary, flags, _ = self._socket.recvmsg(PACKET, ROOM, socket.MSG_CMSG_CLOEXEC)
        except OSError as failure:
            raise MountError(f"the daemon does not answer: {failure.strerror or failure}") from None
        if flags & socket.MSG_CTRUNC:
            for fd in received(ancillary):
                os.close(fd)
            raise MountError("there are no descriptors left for what the daemon has sent (see ulimit -n)")
        if not data:
            raise MountError("the daemon has ended")
        answer: Message = json.loads(data)
        if "error" in answer:
            raise Answered(answer)
        return answer, received(ancillary)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()


class Answered(Refused):
    """An error that the daemon has told."""

    def __init__(self, answer: Message) -> None:
        super().__init__(str(answer["error"]), int(answer.get("errno", 1)))
        self.exit_code = int(answer.get("code", 1))

"""Asking the daemon for datasets, and mounting them where they shall be.

Guarantees: the directory that is mounted over is the one that was opened and shown to the daemon. Until the
namespace or mount is complete the daemon takes the datasets to be held; if this process dies meanwhile, it sees to it
that nothing stays held that is mounted nowhere.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType

from zfsfs import syscalls
from zfsfs.errors import Busy, MountError
from zfsfs.handover import Native
from zfsfs.mountpoint import tree_above
from zfsfs.native import wire
from zfsfs.native.mounts import Layer, Spot, attach, enter

#: Seconds that a daemon of which we ask whether a mount is its own may take.
_PATIENCE = 5.0
#: The most that the name of a socket may be, its end included; see unix(7).
_NAME = 108
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def socket_of(path: str) -> str:
    """The socket of the daemon whose tree a path lies in. Raises MountError.

    Only the tree's own root is looked at: in a build anybody could have made what looks the same.
    """
    root = tree_above(os.path.realpath(path))
    if root is None:
        raise MountError(f"{path} is in no zfsfs")
    return _named_in(root)


def _named_in(root: str) -> str:
    """The socket that a tree names in its root. What the file says shows in no error, whatever it is."""
    place = os.path.join(root, ".zfsfs", "socket")
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            text = os.read(fd, _NAME) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        finally:
            os.close(fd)
    except OSError as failure:
        raise MountError(f"{place} can't be read: {os.strerror(failure.errno or 0)}") from None
    name = os.fsdecode(text.removesuffix(b"\n"))
    if not text.endswith(b"\n") or not os.path.isabs(name) or not name.isprintable():
        raise MountError(f"{place} names no socket")
    return name


class Natives:
    """Datasets to be mounted, from their paths in trees. A context manager: at its end the daemon is told that what
    had to be mounted is. `socket` is the daemon's, from who knows it; else it is looked for. Raises what the daemon
    refuses, OSError for a path that can't be opened."""

    def __init__(
        self, paths: Sequence[str], *, read_only: bool = False, users: int = -1, socket: str | None = None
    ) -> None:
        self._stack = ExitStack()
        self._asked: dict[str, tuple[wire.Connection, list[int]]] = {}
        self._read_only = read_only
        self._users = users
        self._place = socket
        self.layers: list[Layer] = []
        with self._stack:
            self._open(paths)
            for connection, folders in self._asked.values():
                self._hold(connection, folders)
            self._stack = self._stack.pop_all()

    def _open(self, paths: Sequence[str]) -> None:
        seen = set()
        for path in paths:
            # Opened, and not only looked up: that opens a cache's session, and shows that we may.
            fd = os.open(path, _DIRECTORY)
            self._stack.callback(os.close, fd)
            spot = Spot.of(fd)
            if spot.identity in seen:
                continue
            seen.add(spot.identity)
            place = self._place or socket_of(path)
            if place not in self._asked:
                connection = wire.Connection(place)
                self._stack.callback(connection.close)
                self._asked[place] = (connection, [])
            self._asked[place][1].append(fd)

    def _hold(self, connection: wire.Connection, folders: Sequence[int]) -> None:
        mapped = self._users >= 0
        request = {"verb": "hold", "read_only": self._read_only, "mapped": mapped}
        answer, given = connection.ask(request, [*folders, self._users] if mapped else folders)
        for fd in given:
            self._stack.callback(os.close, fd)
        mounts = iter(given)
        for folder, mount in zip(folders, answer["mounts"], strict=True):
            if not mount.get("already"):
                native = Native(next(mounts), bool(mount["detached"]), bool(mount["read_only"]))
                self.layers.append(Layer(native, Spot.of(folder)))

    def enter(self) -> None:
        """Move this process into a mount namespace of its own, where all lie over their paths. Raises MountError."""
        enter(self.layers)

    def bind(self, target: int) -> None:
        """Mount the one path at the directory that a descriptor stands for. Raises MountError."""
        if not self.layers:
            raise MountError("it is native where it is; bind it from there, with mount --bind")
        native = self.layers[0].native
        source = None if native.detached else Spot.of(native.fd)
        attach(native, Spot.of(target), source)

    def __enter__(self) -> Natives:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                for connection, _ in self._asked.values():
                    connection.ask({"verb": "attached"})


def output_of(build: str) -> socket.socket:
    """Where the output of a running build is to be sent to be kept. Raises what the daemon refuses, and OSError."""
    with ExitStack() as stack:
        fd = os.open(build, _DIRECTORY)
        stack.callback(os.close, fd)
        connection = wire.Connection(socket_of(build))
        stack.callback(connection.close)
        _, given = connection.ask({"verb": "keep"}, [fd])
        return socket.socket(fileno=given[0])


def look(path: str) -> None:
    """Let the daemon of a tree see what was unmounted. Raises MountError."""
    connection = wire.Connection(socket_of(path))
    try:
        connection.ask({"verb": "look"})
    finally:
        connection.close()


def unbind(target: str) -> bool:
    """Unmount a native mount; False when it is none of any daemon of this user's. Raises Busy, MountError."""
    st = os.stat(target)
    # Not by a descriptor: with a daemon that is stopped it would stay, and keep the mount busy.
    connection = _owner((st.st_dev, st.st_ino))
    if connection is None:
        return False
    try:
        syscalls.umount(os.fsencode(target), syscalls.UMOUNT_NOFOLLOW)
    except OSError as failure:
        kind = Busy if failure.errno == errno.EBUSY else MountError
        raise kind(f"{target} can't be unmounted: {os.strerror(failure.errno or 0)}") from None
    finally:
        with suppress(MountError):
            connection.ask({"verb": "look"})
        connection.close()
    return True


def _owner(identity: tuple[int, int]) -> wire.Connection | None:
    for folder in dict.fromkeys((wire.folder(), "/run/zfsfs")):
        names = os.listdir(folder) if os.path.isdir(folder) else []
        for name in names:
            # Passed over is what a daemon that died has left, and a daemon that is stopped.
            with suppress(MountError), ExitStack() as stack:
                connection = wire.Connection(os.path.join(folder, name), _PATIENCE)
                stack.callback(connection.close)
                answer, _ = connection.ask({"verb": "whose", "identity": identity})
                if answer["ours"]:
                    stack.pop_all()
                    return connection
    return None

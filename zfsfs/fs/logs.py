"""`.zfsfs/log/ID`: what builders, and the commands of `zfsfs build`, have printed.

Guarantees: a log lies in the store's state, named by the guid of the build's dataset, and shows until another build
of that id begins: no other ever has it. It goes with its result, or with the failed build that is kept; that of one
that is not is kept while it is among the last `RECENT`, and until the daemon ends. `start` removes what belongs to
nothing.

Who began a build owns its log, and reads it; so does root, and nobody else. The kernel sees to that by the attributes
it was told, which may be those of an earlier build's log; so whoever opens one is looked at again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import suppress

import trio

from zfsfs.builders.log import Reading, View, tail
from zfsfs.errors import InvalidName
from zfsfs.fs.caller import error
from zfsfs.fs.control import Asker, Facts, File, Folder, Reader
from zfsfs.names import BuildId
from zfsfs.store import Event, FailedInfo, ResultInfo, Store
from zfsfs.threads import in_thread

#: Failed builds whose logs are still there.
RECENT = 100
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC
_ENDS = ("build-started", "deleted", "discarded", "failed", "reopened", "failed-deleted")


class Logs:
    """All logs, in a directory of the store (a descriptor that this owns)."""

    def __init__(self, store: Store, fd: int) -> None:
        self._store = store
        self._fd = fd
        self._guids: dict[BuildId, int] = {}  # what shows
        self._failed: dict[BuildId, int] = {}  # failed builds that are kept
        self._recent: OrderedDict[BuildId, int] = OrderedDict()
        store.events.subscribers.append(self._happened)

    def start(self, failed: Mapping[BuildId, FailedInfo]) -> None:
        """Find the logs of results and of failed builds that are kept, and remove those of nothing."""
        self._failed = {ident: info.guid for ident, info in failed.items()}
        shown = {guid: ident for ident, guid in self._failed.items()}
        for ident in self._store.builds.results():
            if info := self._result(ident):
                shown.pop(self._failed.get(ident, -1), None)
                shown[info.guid] = ident
        for name in os.listdir(self._fd):
            guid = int(name) if name.isascii() and name.isdigit() else -1
            if guid in shown:
                self._guids[shown[guid]] = guid
            elif guid not in self._failed.values():
                self._unlink(name)

    def _result(self, ident: BuildId) -> ResultInfo | None:
        return self._store.builds.result(ident)

    def create(self, ident: BuildId, guid: int, owner: tuple[int, int]) -> int:
        """A new log, as a descriptor that belongs to the caller. Raises OSError."""
        self._drop(ident)
        name = str(guid)
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o400, dir_fd=self._fd)
        if os.geteuid() == 0:
            os.fchown(fd, *owner)
        self._guids[ident] = guid
        return fd

    def open(self, ident: BuildId) -> int | None:
        """The log of a build or result as a descriptor, None when there is none."""
        guid = self._guids.get(ident)
        return None if guid is None else self._open(guid)

    def _open(self, guid: int) -> int | None:
        with suppress(FileNotFoundError):
            return os.open(str(guid), os.O_RDONLY | _OPEN, dir_fd=self._fd)
        return None

    def may_read(self, guid: int, uid: int) -> bool:
        """Whether a user may read the log of that number, if there is one."""
        with suppress(FileNotFoundError):
            return may_read(os.stat(str(guid), dir_fd=self._fd, follow_symlinks=False), uid)
        return True

    def tail(self, guid: int, uid: int, size: int = 1000) -> bytes:
        """The end of the log of that number, for a user. Raises EACCES."""
        fd = self._open(guid)
        if fd is None:
            return b""
        try:
            if not may_read(os.fstat(fd), uid):
                raise error(errno.EACCES)
            return tail(View(fd), size)
        except ValueError:
            return b""
        finally:
            os.close(fd)

    def names(self) -> list[BuildId]:
        """What has a log."""
        return list(self._guids)

    def __contains__(self, ident: BuildId) -> bool:
        return ident in self._guids

    def _happened(self, event: Event) -> None:
        if event.kind not in _ENDS:
            return
        ident = BuildId(event.subject.encode("ascii"))
        if event.kind in ("build-started", "deleted"):
            self._drop(ident)
        elif event.kind == "discarded":
            self._discarded(ident)
        elif event.kind == "failed":
            guid = event.fields.get("guid")
            assert isinstance(guid, int)
            self._forget_failed(ident)
            self._failed[ident] = guid
        elif event.kind == "reopened":
            self._reopened(ident)
        else:
            self._forget_failed(ident)

    def _discarded(self, ident: BuildId) -> None:
        if ident in self._guids:
            self._recent[ident] = self._guids[ident]
        while len(self._recent) > RECENT:
            self._drop(next(iter(self._recent)))

    def _reopened(self, ident: BuildId) -> None:
        """It runs again, and what it has printed shows again, whatever has shown meanwhile."""
        guid = self._failed.pop(ident, None)
        if guid != self._guids.get(ident):
            self._drop(ident)
            if guid is not None:
                self._guids[ident] = guid

    def _forget_failed(self, ident: BuildId) -> None:
        guid = self._failed.pop(ident, None)
        if guid is None:
            return
        if self._guids.get(ident) == guid:
            self._drop(ident)
        else:
            self._unlink(str(guid))

    def _drop(self, ident: BuildId) -> None:
        """It shows no longer. A failed build that is kept keeps its log."""
        self._recent.pop(ident, None)
        guid = self._guids.pop(ident, None)
        if guid is not None and guid != self._failed.get(ident):
            self._unlink(str(guid))

    def _unlink(self, name: str) -> None:
        with suppress(OSError):  # it takes space, and the next start tries again
            os.unlink(name, dir_fd=self._fd)

    def close(self) -> None:
        """The end."""
        os.close(self._fd)


def may_read(st: os.stat_result, uid: int) -> bool:
    """Whether a log with these attributes is a user's to read."""
    return uid in (0, st.st_uid)


class LogFolder(Folder):
    """`.zfsfs/log`."""

    def __init__(self, logs: Logs) -> None:
        super().__init__()
        self._logs = logs

    def names(self) -> Iterable[bytes]:
        """See `Folder`."""
        return [ident.name for ident in self._logs.names()]

    def find(self, name: bytes) -> Folder | File | None:
        """See `Folder`."""
        try:
            ident = BuildId(name)
        except InvalidName:
            return None
        return _Log(self._logs, ident) if ident in self._logs else None


class _Log:
    on_disk = True

    def __init__(self, logs: Logs, ident: BuildId) -> None:
        self._logs = logs
        self._ident = ident

    def facts(self) -> Facts:
        fd = self._open()
        try:
            st = os.fstat(fd)
            size = View(fd).total
        except ValueError:
            size = 0  # its supervisor has not begun yet
        finally:
            os.close(fd)
        return Facts(stat.S_IFREG | 0o400, size, (st.st_uid, st.st_gid), st.st_mtime)

    def _open(self) -> int:
        fd = self._logs.open(self._ident)
        if fd is None:
            raise FileNotFoundError(2, "there is no such log")
        return fd

    async def open(self, asker: Asker) -> Reader:
        fd = self._open()
        if not may_read(os.fstat(fd), asker.uid):
            os.close(fd)
            raise error(errno.EACCES)
        return _OpenLog(fd)


class _OpenLog:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading: Reading | None = None
        self._lock = trio.Lock()  # what is cut out for one read decides where others are

    async def read(self, offset: int, size: int) -> bytes:
        async with self._lock:
            return await in_thread(self._read, offset, size)

    def _read(self, offset: int, size: int) -> bytes:
        if self._reading is None:
            try:
                self._reading = Reading(View(self._fd))
            except ValueError:
                return b""
        return self._reading.read(offset, size)

    def ready(self, notify: object) -> bool:
        return True

    def close(self) -> None:
        os.close(self._fd)

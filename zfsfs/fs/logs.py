"""`.zfsfs/log/ID`: what builders, and the commands of `zfsfs build`, have printed.

Guarantees: a log lies in the store's state, named by the guid of the build's dataset, and goes when another build of
that id begins: no other ever has it. It goes with its result; that of a build that failed is kept while it is among
the last `RECENT`, and until the daemon ends. `start` removes what belongs to nothing.

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

from zfsfs.builders.log import Reading, View, tail
from zfsfs.errors import InvalidName
from zfsfs.fs.caller import error
from zfsfs.fs.control import Asker, Facts, File, Folder, Reader
from zfsfs.names import BuildId
from zfsfs.store import Event, FailedInfo, ResultInfo, Store

#: Failed builds whose logs are still there.
RECENT = 100
_OPEN = os.O_NOFOLLOW | os.O_CLOEXEC


class Logs:
    """All logs, in a directory of the store (a descriptor that this owns)."""

    def __init__(self, store: Store, fd: int) -> None:
        self._store = store
        self._fd = fd
        self._guids: dict[BuildId, int] = {}
        self._recent: OrderedDict[BuildId, int] = OrderedDict()
        store.events.subscribers.append(self._happened)

    def start(self, failed: Mapping[BuildId, FailedInfo]) -> None:
        """Find the logs of results and of failed builds that are kept, and remove those of nothing."""
        results = {info.guid: ident for ident in self._store.builds.results() if (info := self._result(ident))}
        results |= {info.guid: ident for ident, info in failed.items()}
        for name in os.listdir(self._fd):
            guid = int(name) if name.isascii() and name.isdigit() else -1
            if guid in results:
                self._guids[results[guid]] = guid
            else:
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
        with suppress(FileNotFoundError):
            return None if guid is None else os.open(str(guid), os.O_RDONLY | _OPEN, dir_fd=self._fd)
        return None

    def tail(self, ident: BuildId, size: int = 2048) -> bytes:
        """The end of a log."""
        fd = self.open(ident)
        if fd is None:
            return b""
        try:
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
        if event.kind not in ("build-started", "deleted", "discarded", "failed-deleted"):
            return
        ident = BuildId(event.subject.encode("ascii"))
        guid = self._guids.get(ident)
        if guid is None:
            return
        if event.kind == "failed-deleted" and event.fields.get("guid") != guid:
            return  # another build of that id has a log now
        if event.kind != "discarded":
            self._drop(ident)
            return
        self._recent[ident] = guid
        while len(self._recent) > RECENT:
            self._drop(next(iter(self._recent)))

    def _drop(self, ident: BuildId) -> None:
        self._recent.pop(ident, None)
        guid = self._guids.pop(ident, None)
        if guid is not None:
            self._unlink(str(guid))

    def _unlink(self, name: str) -> None:
        with suppress(OSError):  # it takes space, and the next start tries again
            os.unlink(name, dir_fd=self._fd)

    def close(self) -> None:
        """The end."""
        os.close(self._fd)


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
        if asker.uid not in (0, os.fstat(fd).st_uid):
            os.close(fd)
            raise error(errno.EACCES)
        return _OpenLog(fd)


class _OpenLog:
    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._reading: Reading | None = None

    async def read(self, offset: int, size: int) -> bytes:
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

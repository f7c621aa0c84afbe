"""Reading `.zfsfs/wait/ID` waits until the build has ended, and says in a line of JSON how.

Guarantees: who is told that a build has ended finds its result, or finds it gone. A reader that is interrupted or
killed is let go at once (see `Caller.interruptible`), and leaves nothing behind.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import trio

from zfsfs.errors import InvalidName
from zfsfs.fs.caller import error
from zfsfs.fs.control import Asker, Bytes, Facts, File, Folder, Reader
from zfsfs.fs.users import WAIT, Users
from zfsfs.names import BuildId
from zfsfs.store import Event, Store

_REMEMBERED = 1000

Line = dict[str, Any]


class Ends:
    """How builds ended, and who waits for it. `details` is what is known of an end before it comes."""

    def __init__(self, store: Store, users: Users) -> None:
        self._store = store
        self.users = users
        self._ended: OrderedDict[BuildId, Line] = OrderedDict()
        self._waiting: dict[BuildId, set[Callable[[], None]]] = {}
        self.details: dict[BuildId, Line] = {}
        store.events.subscribers.append(self._happened)

    def _happened(self, event: Event) -> None:
        if event.kind not in ("published", "discarded", "failed"):
            return
        ident = BuildId(event.subject.encode("ascii"))
        line: Line = {"id": event.subject, "outcome": event.kind, "time": event.time}
        self._ended[ident] = {**line, **self.details.pop(ident, {})}
        self._ended.move_to_end(ident)
        while len(self._ended) > _REMEMBERED:
            self._ended.popitem(last=False)
        for tell in self._waiting.pop(ident, ()):
            tell()

    def running(self, ident: BuildId) -> bool:
        """Whether it is being built."""
        return ident in self._store.builds.running()

    def known(self) -> list[BuildId]:
        """What can be waited for without waiting for ever."""
        return list({**self._store.builds.running(), **self._ended, **dict.fromkeys(self._store.builds.results())})

    def line(self, ident: BuildId) -> Line | None:
        """How a build has ended; None while it runs, and when nothing is known of it."""
        if self.running(ident):
            return None
        result = self._store.builds.result(ident)
        ended = self._ended.get(ident)
        if result is not None and (ended is None or ended["outcome"] != "published"):
            return {"id": str(ident), "outcome": "published", "time": result.created}
        return ended if result is not None or ended is None or ended["outcome"] != "published" else None

    def watch(self, ident: BuildId, tell: Callable[[], None]) -> Callable[[], None]:
        """Have `tell` called once when the build ends; returns what takes that back."""
        watchers = self._waiting.setdefault(ident, set())
        watchers.add(tell)

        def forget() -> None:
            watchers.discard(tell)
            if not watchers and self._waiting.get(ident) is watchers:
                del self._waiting[ident]

        return forget


class WaitFolder(Folder):
    """`.zfsfs/wait`."""

    def __init__(self, ends: Ends) -> None:
        super().__init__()
        self._ends = ends

    def names(self) -> Iterable[bytes]:
        """See `Folder`."""
        return [ident.name for ident in self._ends.known()]

    def find(self, name: bytes) -> Folder | File | None:
        """See `Folder`."""
        try:
            ident = BuildId(name)
        except InvalidName:
            return None
        if not self._ends.running(ident) and self._ends.line(ident) is None:
            return None
        return _Wait(self._ends, ident)


class _Wait:
    on_disk = False

    def __init__(self, ends: Ends, ident: BuildId) -> None:
        self._ends = ends
        self._ident = ident

    def facts(self) -> Facts:
        return Facts(stat.S_IFREG | 0o444)

    async def open(self, asker: Asker) -> Reader:
        line = self._ends.line(self._ident)
        if line is not None:
            return Bytes(_packed(line))
        return _Waiting(self._ends, self._ident, asker)


def _packed(line: Line | None) -> bytes:
    return json.dumps(line or {"outcome": "unknown"}).encode() + b"\n"


class _Waiting:
    """An open file of a build that had not ended when it was opened: it stays that of this build."""

    def __init__(self, ends: Ends, ident: BuildId, asker: Asker) -> None:
        self._ends = ends
        self._ident = ident
        self._asker = asker
        self._text: bytes | None = None
        self._event = trio.Event()
        self._notify: Callable[[], None] | None = None  # of all that poll: the kernel wakes them together
        self._forget = ends.watch(ident, self._ended)

    def _ended(self) -> None:
        self._text = _packed(self._ends.line(self._ident))
        self._event.set()
        notify, self._notify = self._notify, None
        if notify is not None:
            notify()

    async def read(self, offset: int, size: int) -> bytes:
        if self._text is None:
            if self._asker.flags & os.O_NONBLOCK:
                raise error(errno.EAGAIN)
            with self._ends.users.taking(WAIT, self._asker.uid):
                await self._event.wait()
        assert self._text is not None
        return self._text[offset : offset + size]

    def ready(self, notify: Callable[[], None] | None) -> bool:
        if self._text is None and notify is not None:
            self._notify = notify
        return self._text is not None

    def close(self) -> None:
        self._forget()
        self._notify = None

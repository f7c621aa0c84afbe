"""Our ways: the store's own calls, and a mounted tree by path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from zfsfs.driver import View
from zfsfs.names import BuildId, BuildName, CacheName
from zfsfs.store import Outcome, Session, Store
from zfsfs.zfs.driver import ZfsDriver

OWNER = (0, 0)
#: Seconds after which nothing more is made that nobody has asked for: it begins after two.
STILL = 4.0


def create(pool: str) -> None:
    subprocess.run(["zfs", "create", "-o", "mountpoint=none", pool], check=True)


async def destroy(pool: str) -> None:
    await trio.to_thread.run_sync(lambda: subprocess.run(["zfs", "destroy", "-R", pool], check=True))


async def unchanging(look: Callable[[], Awaitable[object]]) -> None:
    """Wait until what is looked at has not changed for a while."""
    known, since = await look(), trio.current_time()
    while trio.current_time() < since + STILL:
        await trio.sleep(0.2)
        now = await look()
        if now != known:
            known, since = now, trio.current_time()


async def begun_and_opened(peer: Calls | Paths, caches: list[str]) -> None:
    """As if all this had been in use for a while."""
    for cache in caches:
        await peer.start(f"warm-{cache}", None)
        await peer.publish(f"warm-{cache}", None)
        await peer.start(f"next-{cache}", f"warm-{caches[0]}")
        await peer.publish(f"next-{cache}", f"warm-{caches[0]}")
        await peer.open(cache, "warm")
        await peer.release(cache, "warm")
    await peer.settled()
    await peer.rest()


class Calls:
    """A peer, see `cycle`: zfsfs.store in this process. Starting and opening end when the dataset can be looked
    into, as OBuilder's are mounted then."""

    name = "store"

    def __init__(self, pool: str, nursery: trio.Nursery) -> None:
        self.pool, self.nursery = pool, nursery
        self.views: dict[object, View] = {}
        self.done: list[View] = []  # what the tree goes on showing, of what is published
        self.sessions: dict[tuple[str, str], Session] = {}
        self.changed: set[tuple[str, str]] = set()

    async def prepare(self) -> None:
        create(self.pool)
        self.store = Store(ZfsDriver(self.pool))
        await self.store.start()
        await self.nursery.start(self.store.run)

    async def finish(self) -> None:
        await self.store.close()
        await destroy(self.pool)

    async def settled(self) -> None:
        async with trio.open_nursery() as nursery:
            while self.done:
                nursery.start_soon(trio.to_thread.run_sync, self.done.pop().close)
        for ident in self.store.builds.running():
            await self.store.builds.named(ident)
        await self.store.caches.settle()
        await self.store.reaper.try_all()

    async def rest(self) -> None:
        """Wait until what is kept ready for others is made."""

        async def ready() -> object:
            return self.store.ready()

        await unchanging(ready)

    async def warm(self, caches: list[str]) -> None:
        """What others have done before."""
        await begun_and_opened(self, caches)

    async def start(self, ident: str, base: str | None) -> None:
        name = BuildName(BuildId(ident.encode()), BuildId(base.encode()) if base else None)
        _, self.views[ident] = await self.store.builds.begin(name, OWNER, 0o755)

    async def publish(self, ident: str, base: str | None) -> None:
        await self.store.builds.publish(BuildId(ident.encode()))
        self.done.append(self.views.pop(ident))

    async def make(self, cache: str) -> None:
        await self.store.caches.create(CacheName(cache.encode()), OWNER, 0o755)

    async def open(self, cache: str, label: str) -> None:
        session = await self.store.caches.open(CacheName(cache.encode()), label.encode())
        view = session.take_view()
        if view is None:
            view = await trio.to_thread.run_sync(lambda: self.store.driver.view(session.dataset, writable=True))
        self.sessions[cache, label], self.views[cache, label] = session, view

    def write(self, cache: str, label: str) -> None:
        fd = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=self.views[cache, label].fd)
        os.write(fd, label.encode())
        os.close(fd)
        self.changed.add((cache, label))

    async def release(self, cache: str, label: str) -> None:
        changed = (cache, label) in self.changed
        self.changed.discard((cache, label))
        session, view = self.sessions.pop((cache, label)), self.views.pop((cache, label))
        info = self.store.caches.get(session.cache)
        wins = changed and info is not None and info.generation == session.generation
        if wins:
            self.done.append(view)
        outcome = await self.store.caches.release(
            session, changed=changed, view=None if wins else view, untouched=not changed
        )
        assert (outcome is Outcome.PUBLISHED) is wins
        assert (outcome is Outcome.UNCHANGED) is not changed


class Paths:
    """A peer, see `cycle`: a mounted tree, used by path. A release ends when the event log says so."""

    name = "path"

    def __init__(self, pool: str, folder: Path) -> None:
        self.pool, self.folder = pool, folder
        self.fds: dict[tuple[str, str], int] = {}

    async def prepare(self) -> None:
        create(self.pool)
        self.tree = self.folder / "tree"
        self.tree.mkdir()
        self._zfsfs("mount", self.pool, self.tree, "--linger", "0", "--log", self.folder / "log")

    async def finish(self) -> None:
        self._zfsfs("umount", self.tree)
        await destroy(self.pool)

    @staticmethod
    def _zfsfs(*arguments: object) -> None:
        subprocess.run([sys.executable, "-m", "zfsfs", *map(str, arguments)], check=True)

    def _status(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = json.loads((self.tree / ".zfsfs/status.json").read_text())
        return found

    async def settled(self) -> None:
        def busy() -> bool:
            now = self._status()
            for build in now["builds"]:
                os.getxattr(self.tree / build["path"], "user.zfsfs.used")  # waits until its dataset has its name
            return len(now["sessions"]) > len(self.fds) or bool(now["waiting"])

        while await trio.to_thread.run_sync(busy):  # noqa: ASYNC110 - it is another process
            await trio.sleep(0.02)

    async def rest(self) -> None:
        """Wait until what is kept ready for others is made."""

        async def ready() -> object:
            return (await trio.to_thread.run_sync(self._status))["ready"]

        await unchanging(ready)

    async def warm(self, caches: list[str]) -> None:
        """What others have done before."""
        await begun_and_opened(self, caches)

    async def start(self, ident: str, base: str | None) -> None:
        await trio.to_thread.run_sync(os.mkdir, self.tree / "builds" / (f"{ident}@{base}" if base else ident))

    async def publish(self, ident: str, base: str | None) -> None:
        old = self.tree / "builds" / (f"{ident}@{base}" if base else ident)
        await trio.to_thread.run_sync(os.rename, old, self.tree / "results" / ident)

    async def make(self, cache: str) -> None:
        await trio.to_thread.run_sync(os.mkdir, self.tree / "caches" / cache)

    async def open(self, cache: str, label: str) -> None:
        path = self.tree / "caches" / f"{cache}@{label}"
        self.fds[cache, label] = await trio.to_thread.run_sync(os.open, path, os.O_RDONLY | os.O_DIRECTORY)

    def write(self, cache: str, label: str) -> None:
        (self.tree / "caches" / f"{cache}@{label}" / "file").write_text(label)

    async def release(self, cache: str, label: str) -> None:
        await trio.to_thread.run_sync(os.close, self.fds.pop((cache, label)))

    async def ended(self, sessions: list[tuple[str, str]]) -> float:
        """When the last of these sessions was released, as the event log has it."""
        wanted = {f"{cache}@{label}" for cache, label in sessions}
        while True:
            text = await trio.to_thread.run_sync((self.tree / ".zfsfs/events").read_text)
            events = [json.loads(line) for line in text.splitlines()]
            times = [each["time"] for each in events if each["kind"] == "released" and each["subject"] in wanted]
            if len(times) == len(wanted):
                return float(max(times))
            await trio.sleep(0.1)  # asking costs the daemon time, too

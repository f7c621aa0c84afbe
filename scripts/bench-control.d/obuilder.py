"""OBuilder's own way: its command sequences (obuilder 0.4, zfs_store.ml), each command a child process.

Without its sudo, as we are root here anyway. Datasets are mounted beneath the group's mountpoint, as it has them; a
cache's lock is held over its sequence, and what it looks up by path is looked up by path.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from dataclasses import dataclass

import trio


async def run(*command: str) -> None:
    await trio.to_thread.run_sync(lambda: subprocess.run(command, check=True, stdin=subprocess.DEVNULL))


@dataclass
class Open:
    """A session: its dataset and the generation that it was cloned from."""

    dataset: str
    generation: int


class OBuilder:
    """A peer, see `cycle`."""

    name = "OBuilder"

    def __init__(self, pool: str, mountpoint: str) -> None:
        self.pool, self.mountpoint = pool, mountpoint
        self.next = itertools.count()
        self.generations: dict[str, int] = {}
        self.locks: dict[str, trio.Lock] = {}
        self.sessions: dict[tuple[str, str], Open] = {}

    async def prepare(self) -> None:
        await run("zfs", "create", "-o", f"mountpoint={self.mountpoint}", self.pool)
        for group in ("state", "result", "cache", "cache-tmp"):
            await run("zfs", "create", "--", f"{self.pool}/{group}")

    async def finish(self) -> None:
        await run("zfs", "destroy", "-R", self.pool)

    def path(self, dataset: str) -> str:
        return f"{self.mountpoint}/{dataset}"

    async def settled(self) -> None:
        """Nothing of it goes on in the background."""

    async def rest(self) -> None:
        """Nothing is made for what may come."""

    async def warm(self, caches: list[str]) -> None:
        """A base; nothing is the quicker for it."""
        await self.start(f"warm-{caches[0]}", None)
        await self.publish(f"warm-{caches[0]}", None)

    async def start(self, ident: str, base: str | None) -> None:
        dataset = f"result/{ident}"
        if os.path.exists(self.path(dataset)):  # noqa: ASYNC240 - a lookup
            await run("zfs", "destroy", "--", f"{self.pool}/{dataset}")
        if base is None:
            await run("zfs", "create", "--", f"{self.pool}/{dataset}")
            await run("chown", "0:0", self.path(dataset))
        else:
            await run("zfs", "clone", "--", f"{self.pool}/result/{base}@snap", f"{self.pool}/{dataset}")

    async def publish(self, ident: str, base: str | None) -> None:
        await run("zfs", "snapshot", "--", f"{self.pool}/result/{ident}@snap")

    async def make(self, cache: str) -> None:
        await run("zfs", "create", "--", f"{self.pool}/cache/{cache}")
        await run("chown", "0:0", self.path(f"cache/{cache}"))
        await run("zfs", "snapshot", "--", f"{self.pool}/cache/{cache}@snap")
        self.generations[cache], self.locks[cache] = 0, trio.Lock()

    async def open(self, cache: str, label: str) -> None:
        async with self.locks[cache]:
            assert os.path.exists(self.path(f"cache/{cache}/.zfs/snapshot/snap"))  # noqa: ASYNC240
            dataset = f"{self.pool}/cache-tmp/{next(self.next)}-{cache}"
            await run("zfs", "clone", "--", f"{self.pool}/cache/{cache}@snap", dataset)
            self.sessions[cache, label] = Open(dataset, self.generations[cache])

    def write(self, cache: str, label: str) -> None:
        folder = self.path(self.sessions[cache, label].dataset.removeprefix(f"{self.pool}/"))
        with open(f"{folder}/file", "w") as file:
            file.write(label)

    async def release(self, cache: str, label: str) -> None:
        async with self.locks[cache]:
            session = self.sessions.pop((cache, label))
            generation, clone, main = self.generations[cache], session.dataset, f"{self.pool}/cache/{cache}"
            if session.generation != generation:
                await run("zfs", "destroy", "--", clone)
                return
            self.generations[cache] += 1
            old = f"{self.pool}/cache-tmp/{next(self.next)}-{cache}"
            await run("zfs", "rename", "--", main, old)
            await run("zfs", "promote", clone)
            await run("zfs", "destroy", "--", old)
            await run("zfs", "rename", "--", f"{clone}@snap", f"{clone}@old-{generation}")
            await run("zfs", "destroy", "-d", "--", f"{clone}@old-{generation}")
            await run("zfs", "snapshot", "--", f"{clone}@snap")
            await run("zfs", "rename", "--", clone, main)

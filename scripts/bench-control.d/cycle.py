"""One cycle of everything that is timed, the same for each peer, and the rounds."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path

import libzfs_core
import trio
from obuilder import OBuilder
from ours import Calls, Paths

from zfsfs.driver import viewing
from zfsfs.names import Dataset
from zfsfs.zfs.driver import ZfsDriver

Peer = OBuilder | Calls | Paths
Key = tuple[str, str]
#: Of a count, a row and a peer: seconds.
Figures = dict[str, dict[str, dict[str, list[float]]]]
Say = Callable[[int, Figures, list[float]], None]


async def at_once(work: Callable[..., Awaitable[None]], items: Iterable[tuple[str, str | None]]) -> float:
    start = time.time()
    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(work, *item)
    return time.time() - start


async def releasing(peer: Peer, sessions: list[Key]) -> float:
    start = time.time()
    elapsed = await at_once(peer.release, sessions)
    return await peer.ended(sessions) - start if isinstance(peer, Paths) else elapsed


class Cycle:
    """What one peer does in a round, `count` at once. `tag` makes its names new; the caches are there."""

    def __init__(self, peer: Peer, count: int, tag: str, figures: dict[str, dict[str, list[float]]]) -> None:
        self.peer, self.count, self.tag, self.figures = peer, count, tag, figures
        self.caches = [f"c-{number}" for number in range(count)]

    def note(self, row: str, seconds: float) -> None:
        self.figures.setdefault(row, {}).setdefault(self.peer.name, []).append(seconds)

    def sessions(self, label: str) -> list[Key]:
        return [(cache, f"{label}-{self.tag}") for cache in self.caches]

    async def run(self) -> None:
        started = time.monotonic()
        await self.builds("start", None)
        await self.builds("start on base", f"start-{self.tag}-0")
        await self.builds("start on used", "warm-c-0")
        await self.peer.rest()
        await self.whole_builds()
        await self.winning()
        await self.losing()
        await self.unchanged()
        await self.of_one_cache()
        await self.peer.rest()
        elapsed = time.monotonic() - started
        print(f"{self.count} at once, {self.peer.name}: {elapsed:.1f} s", file=sys.stderr, flush=True)

    async def builds(self, row: str, base: str | None) -> None:
        builds = [(f"{row.replace(' ', '-')}-{self.tag}-{number}", base) for number in range(self.count)]
        self.note(row, await at_once(self.peer.start, builds))
        await self.peer.settled()  # who builds takes longer
        self.note("publish", await at_once(self.peer.publish, builds))
        await self.peer.settled()

    async def whole_builds(self) -> None:
        """Started and published at once, so that nothing can be put off."""

        async def whole(ident: str, base: str | None) -> None:
            await self.peer.start(ident, base)
            await self.peer.publish(ident, base)

        builds = [(f"whole-{self.tag}-{number}", None) for number in range(self.count)]
        self.note("whole", await at_once(whole, builds))
        await self.peer.settled()

    async def winning(self) -> None:
        sessions = self.sessions("win")
        self.note("open", await at_once(self.peer.open, sessions))
        for session in sessions:
            self.peer.write(*session)
        start = time.time()
        self.note("win", await releasing(self.peer, sessions))
        await self.peer.settled()
        self.note("win tidied", time.time() - start)

    async def losing(self) -> None:
        first, late = self.sessions("first"), self.sessions("late")
        await at_once(self.peer.open, first + late)
        for session in first + late:
            self.peer.write(*session)
        await releasing(self.peer, first)
        await self.peer.settled()
        self.note("lose", await releasing(self.peer, late))
        await self.peer.settled()

    async def unchanged(self) -> None:
        sessions = self.sessions("idle")
        await at_once(self.peer.open, sessions)
        self.note("unchanged", await releasing(self.peer, sessions))
        await self.peer.settled()

    async def of_one_cache(self) -> None:
        sessions = [("c-0", f"{number}-{self.tag}") for number in range(self.count)]
        self.note("open one", await at_once(self.peer.open, sessions))
        await releasing(self.peer, sessions)
        await self.peer.settled()


def transaction_group(driver: ZfsDriver, pool: str) -> float:
    """The floor: seconds until one byte is on the disk, by a channel program that does nothing. lzc_sync would wait
    for more than one transaction group (txg_wait_synced of 0, in txg.c)."""
    with viewing(driver, Dataset("state"), writable=True) as root:
        fd = os.open("byte", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600, dir_fd=root)
        os.write(fd, b"x")
        os.close(fd)
        start = time.perf_counter()
        libzfs_core.lzc_channel_program(pool.partition("/")[0].encode(), b"return 0", 10**6, 1 << 20, [b""])
        return time.perf_counter() - start


async def _measure(pool: str, rounds: int, many: int, folder: Path, after: Say) -> tuple[Figures, list[float]]:
    counts = sorted({1, many})
    figures: Figures = {str(count): {} for count in counts}
    floors: list[float] = []
    async with trio.open_nursery() as nursery:
        calls = Calls(f"{pool}/bench-store", nursery)
        peers: list[Peer] = [
            OBuilder(f"{pool}/bench-obuilder", str(folder / "obuilder")),
            calls,
            Paths(f"{pool}/bench-path", folder),
        ]
        for peer in peers:
            await peer.prepare()
            for number in range(many):
                await peer.make(f"c-{number}")
            await peer.warm([f"c-{number}" for number in range(many)])
        for number in range(rounds):
            for count in counts:
                peers = peers[1:] + peers[:1]
                for peer in peers:
                    await Cycle(peer, count, f"{number}-{count}", figures[str(count)]).run()
                    floors += [transaction_group(calls.store.driver, pool) for _ in range(3)]  # type: ignore[arg-type]
            after(number + 1, figures, floors)
        for peer in peers:
            await peer.finish()
        nursery.cancel_scope.cancel()
    return figures, floors


def measure(pool: str, rounds: int, many: int, after: Say) -> tuple[Figures, list[float]]:
    """All figures, and the floors between them; `after` is told of those that there are after each round."""
    with tempfile.TemporaryDirectory(prefix="zfsfs-bench-control.") as name:
        return trio.run(_measure, pool, rounds, many, Path(name), after)

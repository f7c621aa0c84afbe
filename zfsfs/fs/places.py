"""What an area of the tree is: a build, a result or a session of a cache."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from zfsfs.driver import View
from zfsfs.errors import ZfsfsError
from zfsfs.names import BuildId, BuildName, CacheName, Dataset, SessionName, cache, result
from zfsfs.store import Session

if TYPE_CHECKING:
    from zfsfs.fs.area import Area
    from zfsfs.fs.building import Run
    from zfsfs.native.processes import Process


#: The most sessions of a cache whose end is remembered.
MOST_OUTCOMES = 1000


@dataclass(eq=False, slots=True)
class BuildPlace:
    """A running build. `discarded`: its directory is gone, the dataset goes with the last handle. `cancelled`: its
    directory is gone, and the rest waits for its builder's end."""

    name: BuildName
    created: float
    uid: int = 0  # who started it
    discarded: bool = False
    run: Run | None = None
    cancelled: bool = False
    grave: Dataset | None = None  # what its dataset is called since it was discarded

    kind = "build"

    @property
    def dataset(self) -> Dataset:
        """What is behind it."""
        return self.grave or result(self.name.id)

    def path(self) -> bytes:
        """Where it is, below the mountpoint."""
        return b"builds/" + bytes(self.name)


@dataclass(eq=False, slots=True)
class ResultPlace:
    """A published result. `deleted`: its directory is gone, the dataset goes with the last handle."""

    id: BuildId
    deleted: bool = False
    grave: Dataset | None = None  # what its dataset is called since then

    kind = "result"

    @property
    def dataset(self) -> Dataset:
        """What is behind it."""
        return self.grave or result(self.id)

    def path(self) -> bytes:
        """Where it is, below the mountpoint."""
        return b"results/" + self.id.name


@dataclass(eq=False, slots=True)
class FailedPlace:
    """A failed build that is kept. `deleted`: its directory is gone, or it is another now."""

    id: BuildId
    dataset: Dataset
    deleted: bool = False

    kind = "failed"

    def path(self) -> bytes:
        """Where it is, below the mountpoint."""
        return b"builds/.failed/" + self.id.name


@dataclass(eq=False, slots=True)
class CachePlace:
    """A cache by one of its paths. `session` is there while it is open; `discarded`: its directory was removed
    and what is still open in it goes nowhere. `opening`, `closing`: its session is being opened, released. `stuck`:
    it is decided that it will be published, and why it could not be yet. `telling`: how often the
    kernel is being told to forget what the area showed. `outcome` is how its last session ended."""

    name: SessionName
    cache: SharedCache
    session: Session | None = None
    uid: int = 0  # who opened it
    guests: dict[int, bool] = field(default_factory=dict)  # whether a user may only read here, as far as known
    discarded: bool = False
    opening: bool = False
    closing: bool = False
    stuck: ZfsfsError | None = None
    telling: int = 0
    outcome: str = ""
    success: bool | None = None  # of what its session is for, when somebody has said so
    publisher: bool | None = None  # whether its session is of one who may publish, once that is decided
    locked: bool = False  # one session of the cache at a time
    uses: int = 0  # builders that have its session
    refused: bool = False  # its rmdir has failed, and its session goes nowhere all the same
    openers: set[Process] = field(default_factory=set)  # whose turn it is, of a locked cache, as far as known
    holders: list[str] = field(default_factory=list)

    kind = "cache"

    @property
    def usable(self) -> bool:
        """Whether its session is open, and nobody ends it."""
        return self.session is not None and not self.closing and self.stuck is None

    @property
    def dataset(self) -> Dataset:
        """What is behind it: the session's clone, or the published version."""
        return self.session.dataset if self.session is not None else cache(self.name.cache)

    def path(self) -> bytes:
        """Where it is, below the mountpoint."""
        return b"caches/" + bytes(self.name)


@dataclass(eq=False, slots=True)
class SharedCache:
    """What the areas of one cache share: a view of the published version, taken when first needed, and the lock
    under which sessions begin to open, and close, and views are switched."""

    name: CacheName
    view: View | None = None
    lock: trio.Lock = field(default_factory=trio.Lock)
    opening: int = 0  # sessions that are being opened, side by side
    opened: trio.Event = field(default_factory=trio.Event)
    areas: dict[bytes, Area] = field(default_factory=dict)  # by the name under caches/
    outcomes: dict[bytes, str] = field(default_factory=dict)  # how the last sessions ended, by the same names
    waiters: int = 0  # who waits for their turn, and what tells them to look again
    ended: trio.Event = field(default_factory=trio.Event)
    last: os.stat_result | None = None  # of its root, while it is being deleted and not looked into any more

    @property
    def at_rest(self) -> bool:
        """Whether no session is open or being opened, and the cache is not being deleted."""
        open_ones = any(cache_place(area).session is not None for area in self.areas.values())
        return not (self.opening or self.last or open_ones)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Hold the lock while no session is being opened."""
        async with self.lock:
            while self.opening:
                await self.opened.wait()
            yield

    def look_again(self) -> None:
        """A session has closed, or the rules are others: who waits for their turn looks again."""
        self.ended.set()
        self.ended = trio.Event()

    def remember(self, name: bytes, outcome: str) -> None:
        """A session has ended. The kernel forgets its directory sooner than people do."""
        self.outcomes.pop(name, None)
        self.outcomes[name] = outcome
        if len(self.outcomes) > MOST_OUTCOMES:
            del self.outcomes[next(iter(self.outcomes))]


Place = BuildPlace | ResultPlace | FailedPlace | CachePlace


def cache_place(area: Area) -> CachePlace:
    """What an area of a cache is."""
    assert isinstance(area.place, CachePlace)
    return area.place

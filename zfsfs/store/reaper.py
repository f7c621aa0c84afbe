"""Destroys, which never block a caller: they queue, are tried, and say why they wait.

Guarantees: only rubbish and what lies in cache-tmp is destroyed, and never with its clones; a foreign snapshot only
where the entry says so. What is queued survives a restart, because recovery finds the same datasets.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from zfsfs.driver import DatasetInfo, Destroy, DestroySnapshot, Driver, View
from zfsfs.errors import Busy, DriverError, Missing, NoSpace, StoreError, ZfsfsError
from zfsfs.names import Dataset, cache_of
from zfsfs.store.events import EventLog
from zfsfs.store.layout import foreign, is_junk, junk
from zfsfs.store.views import close_view
from zfsfs.threads import in_thread

FIRST_DELAY = 0.2
LONGEST_DELAY = 300.0
#: How many are destroyed with one transaction group.
TOGETHER = 64
FRESH = "it was not tried yet"

Explain = Callable[[Dataset], Awaitable[str]]


async def nobody(dataset: Dataset) -> str:
    """An `Explain` that knows nothing."""
    return ""


def obstacle(info: DatasetInfo, *, with_foreign: bool) -> str:
    """Why a dataset can't be destroyed, as far as a listing tells; '' when nothing is in the way."""
    others = foreign(info)
    if others and not with_foreign:
        return f"{info.dataset} has snapshots of somebody else ({', '.join(others)}); it goes when they are gone"
    for each in info.snapshots:
        if each.holds:
            return f"{each.snapshot} is held"
        if each.clones:
            return f"{each.snapshot} is needed by {each.clones} clone{'s' if each.clones > 1 else ''}"
    return ""


def bury(driver: Driver, dataset: Dataset, number: int, text: str) -> Dataset:
    """Make rubbish of a dataset, by one rename; returns what it is called now. Raises what `rename` raises.

    On ZFS what moves to another group needs room there, even where that is the room that it takes up itself: once a
    quota is exceeded, be it by a block, nothing moves. Within a group nobody asks (dsl_dir_rename_check). Nor does
    what is encrypted move to where another key is used.
    """
    grave = junk(number, text)
    try:
        driver.rename(dataset, grave)
    except (NoSpace, DriverError):
        grave = junk(number, text, dataset.group)
        driver.rename(dataset, grave)
    return grave


def destroy_whole(driver: Driver, dataset: Dataset, *, with_foreign: bool) -> str:
    """Destroy rubbish or what is in cache-tmp, its snapshots too, never its clones. Returns '' when it is gone, else
    why it is not; it may have lost snapshots then, so it must be one that nobody will want again."""
    try:
        return _destroy(driver, dataset, with_foreign=with_foreign)
    except Busy as error:
        return str(error)


def _destroy(driver: Driver, dataset: Dataset, *, with_foreign: bool) -> str:
    """See `destroy_whole`. Raises Busy when it is in use or held: then it is worth looking by whom."""
    if not is_junk(dataset) and (dataset.group != "cache-tmp" or not dataset.leaf):
        return f"{dataset} is no rubbish"
    try:
        info = driver.info(dataset)
        if info is None:
            return ""
        reason = obstacle(info, with_foreign=with_foreign)
        if reason and any(each.holds for each in info.snapshots):
            raise Busy(reason)
        if reason:
            return reason
        # (a) A crash in this batch leaves the dataset with fewer snapshots: still rubbish or a left-over clone.
        steps = [DestroySnapshot(each.snapshot) for each in info.snapshots if not each.deferred]
        if steps:
            driver.batch([*steps, Destroy(dataset)])
        else:
            driver.destroy(dataset)
    except Missing:
        return "" if driver.info(dataset) is None else f"{dataset} changed meanwhile"
    except Busy:
        raise
    except StoreError as error:
        return str(error) or type(error).__name__
    return ""


@dataclass(slots=True)
class Waiting:
    """A dataset that is to be destroyed: why it still waits, how often it was tried, when it is due (trio's time).
    `views` of it are closed before."""

    dataset: Dataset
    with_foreign: bool
    reason: str
    tries: int = 0
    due: float = 0.0
    views: list[View] = field(default_factory=list)


class Reaper:
    """The queue. Entries are tried when they come and then ever more rarely, up to every five minutes. `explain`
    tells who holds a dataset that is in use, '' when nobody is found."""

    def __init__(self, driver: Driver, events: EventLog, explain: Explain) -> None:
        self._driver = driver
        self._events = events
        self._explain = explain
        self._wake = trio.Event()
        self._trying = trio.Lock()
        self.queue: dict[Dataset, Waiting] = {}

    def add(self, dataset: Dataset, *, with_foreign: bool, reason: str = FRESH, view: View | None = None) -> None:
        """Queue a dataset; it is due at once. `view` is closed before: on ZFS that takes a transaction group."""
        known = self.queue.setdefault(dataset, Waiting(dataset, with_foreign, reason))
        known.with_foreign |= with_foreign
        known.due = 0.0
        if view is not None:
            known.views.append(view)
        self.hurry()

    def forgive(self, name: object) -> None:
        """The cache was deleted by its user: foreign snapshots on what it left behind go with it."""
        for each in self.queue.values():
            if cache_of(each.dataset) == name:
                each.with_foreign = True
                each.due = 0.0

    def hurry(self) -> None:
        """Wake the reaper: something may have become free."""
        self._wake.set()

    async def _try(self, entry: Waiting) -> bool:
        try:
            reason = await in_thread(lambda: _destroy(self._driver, entry.dataset, with_foreign=entry.with_foreign))
        except StoreError as error:
            reason = str(error)
            if isinstance(error, Busy):
                who = ""
                with suppress(ZfsfsError, OSError):
                    who = await self._explain(entry.dataset)
                reason = f"{error}: {who}" if who else reason
        subject = str(entry.dataset)
        if not reason:
            self.destroyed(entry.dataset)
            return True
        entry.tries += 1
        entry.due = trio.current_time() + min(FIRST_DELAY * 2 ** min(entry.tries - 1, 30), LONGEST_DELAY)
        if reason != entry.reason:
            entry.reason = reason
            self._events.append(
                "postponed", subject, f"{subject} waits to be destroyed: {reason}", outcome="postponed"
            )
        return False

    def destroyed(self, dataset: Dataset) -> None:
        """A dataset is gone: what waits for that is tried again."""
        self.queue.pop(dataset, None)
        self._events.append("destroyed", str(dataset), f"{dataset} is destroyed")
        for other in self.queue.values():
            other.due = 0.0 if "clone" in other.reason else other.due
        self.hurry()

    async def _try_together(self, due: list[Waiting]) -> bool:
        """Destroy what came last without a look and in one batch: most of it is heads without a snapshot. Whether
        that was so; if not, one or the other may be destroyed all the same."""
        fresh = [each for each in due if not each.tries][:TOGETHER]
        if not fresh:
            return False
        steps = [Destroy(each.dataset) for each in fresh]
        try:
            # A crash in this batch leaves some of the rubbish.
            await in_thread(self._driver.batch, steps)
        except StoreError:
            return False
        for each in fresh:
            self.destroyed(each.dataset)
        return True

    async def let_go(self) -> None:
        """Close the views of what is queued."""
        await self._close_views(list(self.queue.values()))

    async def _close_views(self, due: list[Waiting]) -> None:
        """All at once: they then wait for one transaction group."""
        async with trio.open_nursery() as nursery:
            for each in due:
                views, each.views = each.views, []
                for view in views:
                    nursery.start_soon(close_view, view)

    async def try_all(self, *, due_only: bool = False) -> None:
        """Try what is queued, again and again as long as something goes: clones free what they were cloned from."""
        async with self._trying:
            progress = True
            while progress:
                now = trio.current_time() if due_only else math.inf
                due = [each for each in self.queue.values() if each.due <= now]
                await self._close_views(due)
                progress = await self._try_together(due)
                if not progress:
                    for entry in due:
                        if self.queue.get(entry.dataset) is entry and await self._try(entry):
                            progress = True

    async def run(self) -> None:
        """Try entries when they are due, until cancelled."""
        while True:
            self._wake = trio.Event()
            await self.try_all(due_only=True)
            due = min((each.due for each in self.queue.values()), default=math.inf)
            with trio.move_on_at(due):
                await self._wake.wait()

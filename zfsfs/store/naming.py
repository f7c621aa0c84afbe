"""Names that datasets get a little later: a build that got one kept ready begins with it as it is.

Guarantees
- Whoever needs a dataset by its name waits for it (`settle`); only what is open already is used before.
- On the disk it is rubbish until then, as what a build has written is without its @snap: a crash loses nothing more.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from zfsfs.errors import StoreError
from zfsfs.names import Dataset

log = logging.getLogger(__name__)

#: Seconds for which no other build has begun when names are given that nobody waits for: renaming what is mounted
#: costs ZFS much work. And after which they are given in any case.
PAUSE = 0.1
LONGEST = 1.0

Rename = Callable[[Dataset, Dataset], Awaitable[None]]


@dataclass(eq=False, slots=True)
class _Name:
    now: Dataset
    lock: trio.Lock = field(default_factory=trio.Lock)


class Naming:
    """See the module. `rename` gives a dataset another name."""

    def __init__(self, rename: Rename) -> None:
        self._rename = rename
        self._names: dict[Dataset, _Name] = {}
        self._nursery: trio.Nursery | None = None
        self._last = 0.0

    def unnamed(self) -> list[Dataset]:
        """What the datasets are called that wait for their name."""
        return [each.now for each in self._names.values()]

    async def give(self, dataset: Dataset, name: Dataset) -> None:
        """Give a dataset a name: soon, while `run` runs, and before this returns where it doesn't. Then it raises
        what renaming raises, and the dataset stays what it was."""
        self._names[name] = _Name(dataset)
        if self._nursery is not None:
            self._last = trio.current_time()
            self._nursery.start_soon(self._soon, name)
            return
        try:
            await self.settle(name)
        except BaseException:
            del self._names[name]
            raise

    async def settle(self, name: Dataset) -> None:
        """Wait until a dataset has its name, if it was to get one. Raises what renaming raises; it can be asked for
        again."""
        found = self._names.get(name)
        if found is None:
            return
        with trio.CancelScope(shield=True):
            async with found.lock:
                if self._names.get(name) is found:
                    await self._rename(found.now, name)
                    del self._names[name]

    async def current(self, name: Dataset) -> Dataset:
        """What a dataset is called that may still be to get a name: that name, if it can be given."""
        with suppress(StoreError):
            await self.settle(name)
        found = self._names.get(name)
        return name if found is None else found.now

    def forget(self, name: Dataset) -> None:
        """It needs no name any more."""
        self._names.pop(name, None)

    async def _soon(self, name: Dataset) -> None:
        end = trio.current_time() + LONGEST
        try:
            while (due := min(self._last + PAUSE, end)) > trio.current_time():  # noqa: ASYNC110 - others put it off
                await trio.sleep_until(due)
        finally:
            await self._try(name)

    async def _try(self, name: Dataset) -> None:
        try:
            await self.settle(name)
        except StoreError as failure:
            # Whoever needs the name is told, and tries again.
            log.warning("%s has not got its name yet: %s", name, failure)

    async def run(self) -> None:
        """Give names in the background, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

"""What the areas of a cache show that have no session: its published version, by one view that they share.

Whoever calls holds the cache's lock. Returned are the numbers of the inodes that the kernel has to be told of.
"""

from __future__ import annotations

import trio

from zfsfs.driver import View
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import stale
from zfsfs.fs.places import CachePlace, SharedCache
from zfsfs.store import Store
from zfsfs.threads import in_thread


class Showing:
    """See the module."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def published(self, shared: SharedCache) -> View:
        """The view of the published version. Raises ESTALE when the cache is gone."""
        if shared.view is None:
            info = self._store.caches.get(shared.name)
            if info is None:
                raise stale()
            dataset = info.dataset
            shared.view = await in_thread(lambda: self._store.driver.view(dataset, writable=False))
        return shared.view

    async def refresh(self, area: Area, shared: SharedCache) -> tuple[Area, list[int]]:
        """Show it in an area."""
        return area, area.attach_anew(await self.published(shared))

    async def refresh_idle(self, shared: SharedCache, besides: Area | None = None) -> list[tuple[Area, list[int]]]:
        """Show it in every area without a session. Others are answered between any two: the kernel may know all that
        is in each."""
        told = []
        for each in _idle(shared):
            if each is not besides:
                told.append(await self.refresh(each, shared))
                await trio.lowlevel.cancel_shielded_checkpoint()  # for all of them have to show it
        return told

    @staticmethod
    def take_view(shared: SharedCache) -> View | None:
        """Stop looking into the published version: it is about to be replaced. The view goes to the caller."""
        view, shared.view = shared.view, None
        for area in _idle(shared):
            area.detach()
        return view


def _idle(shared: SharedCache) -> list[Area]:
    areas = shared.areas.values()
    return [each for each in areas if isinstance(each.place, CachePlace) and each.place.session is None]

"""What the areas of a cache show that have no session: its published version, by one view that they share.

Whoever calls holds the cache's lock. Returned are the numbers of the inodes that the kernel has to be told of.

Guarantee: no more caches at rest are looked into than `recent.most`, for the view of each takes a descriptor of ours,
and on ZFS a mount. What was looked into the longest ago is let go of first, until somebody wants to look again.
"""

from __future__ import annotations

import os

import trio

from zfsfs.driver import View
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import stale
from zfsfs.fs.places import SharedCache, cache_place
from zfsfs.fs.recent import Recent
from zfsfs.store import Store
from zfsfs.store.views import close_view
from zfsfs.threads import in_thread

#: How many there are where descriptors are plentiful.
MOST = 256


class Showing:
    """See the module."""

    def __init__(self, store: Store) -> None:
        self.recent = Recent[SharedCache](MOST, lambda shared: shared.at_rest)  # those with a view
        self.surplus: list[SharedCache] = []  # those that are to be let go of, because there are too many
        self._store = store

    async def published(self, shared: SharedCache) -> View:
        """The view of the published version. Raises ESTALE when the cache is gone."""
        view = shared.view
        if view is None:
            info = self._store.caches.get(shared.name)
            if info is None:
                raise stale()
            dataset = info.dataset
            view = await in_thread(lambda: self._store.driver.view(dataset, writable=False))
        self.show(shared, view)
        return view

    def show(self, shared: SharedCache, view: View | None) -> None:
        """This is the view of the published version."""
        shared.view = view
        if view is None:
            self.recent.drop(shared)
        else:
            self.surplus += self.recent.add(shared)

    async def let_go(self, shared: SharedCache) -> None:
        """Look into a cache no more, if nobody has done so meanwhile. Takes its lock."""
        async with shared.alone():
            if shared.at_rest and shared not in self.recent:
                view = self.take_view(shared)
                for area in shared.areas.values():
                    area.as_before = True
                await close_view(view)

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

    def take_view(self, shared: SharedCache) -> View | None:
        """Stop looking into the published version: it is about to be replaced. The view goes to the caller."""
        view = shared.view
        self.show(shared, None)
        for area in _idle(shared):
            area.detach()
        return view


def _idle(shared: SharedCache) -> list[Area]:
    return [each for each in shared.areas.values() if cache_place(each).session is None]


def show_last(area: Area, last: os.stat_result) -> None:
    """An area is being removed: its root shows as it was, and is not looked into any more, but by a session."""
    place = cache_place(area)
    place.discarded, area.last = True, last
    if place.session is None:
        area.detach()  # what it has belongs to all areas of its cache
    area.stir()

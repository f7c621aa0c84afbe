"""What becomes of a session's clone when it ends: published, superseded, unchanged, private, dropped or left to the
next start."""

from __future__ import annotations

import logging

from zfsfs.driver import View
from zfsfs.errors import ZfsfsError
from zfsfs.fs import unseen
from zfsfs.fs.area import Area
from zfsfs.fs.places import CachePlace
from zfsfs.fs.rules import CacheRuling
from zfsfs.fs.showing import Showing
from zfsfs.store import Outcome, Session, Store
from zfsfs.store.views import close_view

log = logging.getLogger(__name__)


class Endings:
    """Ends sessions for `Sessions`, which orders that with everything else and holds their cache's lock."""

    def __init__(self, store: Store, showing: Showing, ruling: CacheRuling) -> None:
        self._caches = store.caches
        self._driver = store.driver
        self._showing = showing
        self._ruling = ruling

    async def end(self, area: Area, place: CachePlace) -> Outcome:
        """End the open session of an area. Raises DriverError and OSError: then it is open as before, unless the
        store has decided it (`Caches.is_decided`): then only calling again can complete it."""
        session, shared = place.session, place.cache
        assert session is not None
        if self._caches.is_decided(session) or session.ended is not None:
            return await self._end_decided(area, place, session)
        await area.table.mapped(area)  # whether that has changed it
        if not area.changed and area.was_native and await unseen.was_written(self._driver, area, session.dataset):
            area.changed = True
        wins = area.changed and not place.discarded and self.is_newest(session)
        withheld = self._ruling.withheld(area)
        if not wins or withheld is not None:
            # ZFS destroys nothing that is looked into.
            untouched = not (area.changed or area.was_native or area.opens)
            view = area.detach()
            try:
                if place.discarded:
                    return await self._caches.discard(session, view)
                return await self._caches.release(
                    session, changed=area.changed, withheld=withheld, view=view, untouched=untouched
                )
            except BaseException:
                if view is not None:
                    area.attach(view)
                raise
        await area.write_out()
        keeper = area.table.keeper
        if area.mapped or (area.writers and keeper is not None and keeper.passes(area)):
            await self._part(area, session)
        outcome = await self._publish(session, self._showing.take_view(shared))
        self._showing.show(shared, area.view)  # the clone is the cache now, and what looks into it goes on doing so
        return outcome

    async def _part(self, area: Area, session: Session) -> None:
        """At the daemon's end, whoever has a file open that the kernel writes by itself goes on writing in it. What
        is published must not change by that."""
        try:
            await self._caches.part(session, area.view)
        except (ZfsfsError, OSError) as failure:
            log.warning("session %s: what is written later to files that are open changes it: %s", session, failure)
        else:
            area.detach()

    async def _end_decided(self, area: Area, place: CachePlace, session: Session) -> Outcome:
        """Complete a release that could not be completed before; it is too late to discard it."""
        outcome = await self._publish(session, self._showing.take_view(place.cache))
        if place.discarded:
            await close_view(area.detach())
        else:
            self._showing.show(place.cache, area.view)
        return outcome

    async def _publish(self, session: Session, view: View | None) -> Outcome:
        try:
            return await self._caches.release(session, changed=True, view=view)
        except BaseException:
            await close_view(view)
            raise

    def is_newest(self, session: Session) -> bool:
        """Whether nothing was published since it was opened."""
        info = self._caches.get(session.cache)
        return info is not None and info.generation == session.generation

    async def bequeath(self, area: Area, place: CachePlace) -> None:
        """Leave it to the next start to publish a session that could not be closed, where it would be."""
        unwanted = place.discarded or self._ruling.withheld(area) is not None
        if place.session is None or not area.may_have_changed or unwanted:
            return
        try:
            if not await self._caches.bequeath(place.session):
                log.warning("session %s is superseded", place.name)
        except (ZfsfsError, OSError) as failure:
            log.error("session %s is lost: %s", place.name, failure)

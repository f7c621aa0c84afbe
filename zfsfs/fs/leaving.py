"""Who keeps a session from being published, and what becomes of one that can't be closed at the end."""

from __future__ import annotations

import logging

from zfsfs.errors import ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.permission import WRITE, permits
from zfsfs.fs.places import CachePlace
from zfsfs.fs.rules import CacheRuling
from zfsfs.store.caches import Caches

log = logging.getLogger(__name__)


def is_guest(area: Area, caller: Caller) -> bool:
    """Whether a user may read in a session and write nothing at its top: he keeps it open for himself, but keeps
    nobody from publishing or deleting."""
    assert isinstance(area.place, CachePlace)
    guests = area.place.guests
    known = guests.get(caller.uid)
    if known is None:
        known = guests[caller.uid] = not permits(area.fd, WRITE, caller.uid, caller.groups())
    return known


async def bequeath(caches: Caches, ruling: CacheRuling, area: Area) -> None:
    """Leave it to the next start to publish a session that could not be closed, where it would be."""
    place = area.place
    assert isinstance(place, CachePlace)
    if place.session is None or not area.may_have_changed or place.discarded or ruling.withheld(area) is not None:
        return
    try:
        if not await caches.bequeath(place.session):
            log.warning("session %s is superseded", place.name)
    except (ZfsfsError, OSError) as failure:
        log.error("session %s is lost: %s", place.name, failure)

"""The rules of caches, as the tree keeps them: what counts of configuration and attributes, who may set them, and
what they mean for a session.

What becomes of a session is decided by the rules that count when it closes. Whose it is, where only some may publish,
is decided by who first changes something in it, or opens a file for writing: it is either published or a copy for
those who may not, and who is of the other kind changes nothing in it (EBUSY). So nobody's work is published with
another's name to it, and nobody's lost by another's coming.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Mapping

from zfsfs.config import CacheRules
from zfsfs.errors import Refused
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller, error
from zfsfs.fs.permission import WRITE, permits
from zfsfs.fs.places import CachePlace, cache_place
from zfsfs.names import CacheName
from zfsfs.store import Outcome, Policy, Publishers, Rules, Store
from zfsfs.store.layout import POLICY, PUBLISHERS

_POLICY, _PUBLISHERS, _SUCCESS = b"user.zfsfs.policy", b"user.zfsfs.publishers", b"user.zfsfs.success"
_DEFAULTS = {_POLICY: b"always", _PUBLISHERS: b"*"}


class CacheRuling:
    """See the module. `configured` is what the configuration says."""

    def __init__(self, store: Store, configured: Mapping[CacheName, CacheRules]) -> None:
        self._store = store
        self._configured = configured

    def of(self, name: CacheName) -> Rules:
        """The rules that count for a cache."""
        info = self._store.caches.get(name)
        stored = Rules() if info is None else info.rules
        mine = self._configured.get(name)
        if mine is None:
            return stored
        return Rules(mine.policy or stored.policy, mine.publishers or stored.publishers)

    def apply(self, area: Area) -> None:
        """Have an area of a cache be as its rules want it."""
        place = cache_place(area)
        rules = self.of(place.name.cache)
        area.read_only = rules.policy is Policy.READ_ONLY
        place.locked = rules.policy is Policy.LOCKED
        area.gate = None if rules.publishers.everybody else self._admit

    def _admit(self, area: Area, caller: Caller) -> None:
        self.claim(area, caller.uid, caller.groups())

    def claim(self, area: Area, uid: int, groups: Collection[int]) -> None:
        """A user is about to change something in a session. Raises Refused with EBUSY: it is not of his kind."""
        place = cache_place(area)
        may = self.of(place.name.cache).publishers.include(uid, groups)
        if place.publisher is None:
            place.publisher = may
        # What a builder does natively root does for it.
        elif place.publisher != may and not (place.uses and uid == 0):
            whose = "to be published" if place.publisher else "a copy that is never published"
            raise Refused(f"session {place.name} is {whose}, and user {uid} is not who may change it", errno.EBUSY)

    def withheld(self, area: Area) -> Outcome | None:
        """Why an open session can't be published; None when it can."""
        place = cache_place(area)
        rules = self.of(place.name.cache)
        mine = place.publisher or (place.publisher is None and rules.publishers.everybody)
        if not mine or rules.policy in (Policy.NEVER, Policy.READ_ONLY):
            return Outcome.PRIVATE
        if rules.policy is Policy.ON_SUCCESS and not place.success:
            return Outcome.UNSUCCESSFUL
        return None

    def is_private(self, place: CachePlace) -> bool:
        """Whether a session is a copy that is never published."""
        policy = self.of(place.name.cache).policy
        return place.publisher is False or policy in (Policy.NEVER, Policy.READ_ONLY)

    @staticmethod
    def is_guest(area: Area, caller: Caller) -> bool:
        """Whether a user may read in a session and write nothing at its top: he keeps it open for himself, but keeps
        nobody from publishing or deleting."""
        guests = cache_place(area).guests
        known = guests.get(caller.uid)
        if known is None:
            known = guests[caller.uid] = not permits(area.fd, WRITE, caller.uid, caller.groups())
        return known

    # Attributes.

    def attributes(self, place: CachePlace) -> dict[str, object]:
        """What is shown of them."""
        rules = self.of(place.name.cache)
        said = {None: "", True: "yes", False: "no"}[place.success if place.session is not None else None]
        return {"policy": rules.policy.value, "publishers": rules.publishers.text, "success": said}

    async def set(self, area: Area, name: bytes, value: bytes, caller: Caller) -> None:
        """setxattr(2) of one of our attributes. Raises EPERM (it can't be set, not by this user, not here, or the
        configuration decides) and EINVAL (what it can't be, or no session is open)."""
        place = area.place
        if not isinstance(place, CachePlace):
            raise error(errno.EPERM)
        if name == _SUCCESS:
            self.say(place, value)
            return
        text = value.decode("ascii", "replace").strip()
        mine = self._configured.get(place.name.cache, CacheRules())
        if name not in _DEFAULTS or place.name.label is not None or caller.uid not in (0, os.fstat(area.fd).st_uid):
            raise error(errno.EPERM)
        if (mine.policy if name == _POLICY else mine.publishers) is not None:
            raise Refused(f"the configuration has a rule for cache {place.name.cache}, which counts", errno.EPERM)
        try:
            text = Policy.of(text).value if name == _POLICY else Publishers.of(text).text
        except ValueError as failure:
            raise Refused(f"cache {place.name.cache}: {text!r} must be {failure}", errno.EINVAL) from None
        await self._store.caches.set_rule(place.name.cache, POLICY if name == _POLICY else PUBLISHERS, text)
        for each in place.cache.areas.values():
            self.apply(each)
        place.cache.look_again()

    async def remove(self, area: Area, name: bytes, caller: Caller) -> None:
        """removexattr(2) of one of our attributes: the default counts again. Raises as `set`."""
        if name not in _DEFAULTS:
            raise error(errno.EPERM)
        await self.set(area, name, _DEFAULTS[name], caller)

    @staticmethod
    def say(place: CachePlace, value: bytes) -> None:
        """Whether what a session is for has succeeded. A failure stands: what it left is still there."""
        if place.session is None or value not in (b"yes", b"no"):
            raise error(errno.EINVAL)
        place.success = value == b"yes" and place.success is not False

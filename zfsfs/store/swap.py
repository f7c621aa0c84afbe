"""The release swap: a session's clone becomes the cache.

Guarantee: a crash at any instant leaves the old or the new contents, whole, and `recovery` finds which.

T is the session's clone, C is cache/c-NAME, M a new name in cache-tmp. In pictures (origin <- clone):

    (0)  C[.. snap]             <- T                nothing is decided: recovery destroys T
         foreign snapshots of T that stand in the way of the promotion get other names
    (1)  the same                                   the same
         T's generation is set, and the rules of C, which nobody changes meanwhile
    (2)  the same                                   the same: a generation without @zfsfs-next says nothing
         T@zfsfs-next is taken
    (3)  C[.. snap]             <- T[next]          decided: recovery goes on from here
         T is promoted
    (4)  T[.. snap next]        <- C                the cache is a clone of something in cache-tmp. Recovery goes on
         C is renamed to M
    (5)  T[.. snap next]        <- M                there is no cache: recovery goes on
         T is renamed to C; who releases need not wait longer
    (6)  C[.. snap next]        <- M                the head is new, @snap is old: recovery goes on
         C@snap is renamed to @old-G
    (7)  C[.. old-G next]       <- M                recovery goes on
         C@zfsfs-next is renamed to @snap
    (8)  C[.. old-G snap]       <- M                recovery destroys @old-G as soon as nothing needs it, and M
         C@old-G is destroyed, once nothing needs it
    (9)  C[.. snap]             <- M                recovery destroys M; where it could not be at (6), the reaper does

(0)-(4) are one batch, and (6)-(9) another, which begins with the destruction of M: as at (6)-(9), and no M. A look
at a dataset costs more than half a transaction group. So nothing is looked at first: mostly T has no snapshots, and
the storage itself refuses a promotion that would mix names. Where it can't check ahead, a refused batch leaves (2) or
(3), and the second attempt, which looks, begins there: @zfsfs-next is given up, or, after a crash, completed by
recovery: it was a release, and nobody had been told that it had failed.

Other sessions' clones of @snap and older ones go on as clones of T. Foreign snapshots that C got after @snap stay
with M, which waits in cache-tmp until they are gone.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from zfsfs.driver import (
    DatasetInfo,
    Destroy,
    DestroySnapshot,
    Driver,
    Promote,
    RenameSnapshot,
    SetProperty,
    Step,
    TakeSnapshot,
    View,
)
from zfsfs.errors import DriverError, Exists, Missing, StoreError
from zfsfs.names import Dataset, Snapshot
from zfsfs.store.layout import GENERATION, NEXT, SNAP, generation, is_old, names, old_name, spare_name

_TRIES = 4


def moving(origin: DatasetInfo, snapshot: str) -> list[str]:
    """The snapshots that move when a clone of `snapshot` is promoted: it and all that are older."""
    found = [each.snapshot.name for each in origin.snapshots]
    return found[: found.index(snapshot) + 1] if snapshot in found else found


def make_way(clone: DatasetInfo, origin: DatasetInfo) -> list[Step]:
    """Rename the clone's snapshots that have the name of one which its promotion would move to it."""
    assert clone.origin is not None
    own = names(clone)
    taken = own | names(origin) | {NEXT, SNAP}
    steps: list[Step] = []
    for name in moving(origin, clone.origin.name):
        if name in own:
            spare = spare_name(name, taken)
            taken.add(spare)
            steps.append(RenameSnapshot(Snapshot(clone.dataset, name), spare))
    return steps


def tidying(cache: DatasetInfo) -> list[Step]:
    """The steps from (6), (7) or (8) to (9)."""
    dataset, have = cache.dataset, names(cache)
    steps: list[Step] = []
    going = [each.snapshot.name for each in cache.snapshots if is_old(each.snapshot.name) and not each.deferred]
    if NEXT in have:
        if SNAP in have:
            old = old_name(max(generation(cache) - 1, 0), have)
            steps.append(RenameSnapshot(Snapshot(dataset, SNAP), old))
            going.append(old)
        steps.append(RenameSnapshot(Snapshot(dataset, NEXT), SNAP))
    return steps + [DestroySnapshot(Snapshot(dataset, name)) for name in going]


@dataclass(slots=True)
class Swap:
    """One release under way. The methods block; call them one at a time, in their order, each until it returns."""

    clone: Dataset
    cache: Dataset
    old_head: Dataset
    generation: int
    rules: Mapping[str, str] = field(default_factory=dict)
    old_moved: bool = False
    moved: bool = False
    old_gone: bool = False
    view: View | None = None  # of the old head, to be closed before that is destroyed
    usual: bool = True  # nothing of T was in the way, and nobody has tried to tidy yet

    @property
    def whole(self) -> Dataset:
        """Where the cache's version is, whole, whichever of the renames has failed."""
        return self.clone if self.old_moved and not self.moved else self.cache

    def decide(self, driver: Driver) -> None:
        """(0) to (4). When it raises, the session is as before and may go on, or be released again.

        Raises Busy when somebody has mounted a snapshot that would move.
        """
        for look in range(_TRIES + 1):
            try:
                driver.batch((self._way(driver) if look else []) + self._decision())
                return
            except Exists:
                # Somebody's snapshot is in the way, or came between our look and our batch.
                if look == _TRIES:
                    self._undecide(driver)
                    raise
            except StoreError:
                self._undecide(driver)
                raise

    def bequeath(self, driver: Driver) -> None:
        """(0) to (3) for good: what can't be promoted now, recovery completes at the next start."""
        driver.batch([*self._way(driver), *self._decision()[:-1]])

    def _decision(self) -> list[Step]:
        return [
            SetProperty(self.clone, GENERATION, str(self.generation)),
            *(SetProperty(self.clone, name, value) for name, value in self.rules.items()),
            TakeSnapshot(Snapshot(self.clone, NEXT)),
            Promote(self.clone),
        ]

    def _way(self, driver: Driver) -> list[Step]:
        clone = driver.info(self.clone)
        if clone is None:
            raise Missing(f"{self.clone} is gone")
        if clone.origin is None or clone.origin.dataset != self.cache:
            raise DriverError(f"{self.clone} is no clone of {self.cache}: somebody has promoted it")
        if not clone.snapshots:
            return []
        self.usual = False
        cache = driver.info(self.cache)
        if cache is None:
            raise Missing(f"{self.cache} is gone")
        steps: list[Step] = []
        if clone.snapshot(NEXT) is not None:
            # Of an attempt that failed: what was written since is not in it.
            steps.append(DestroySnapshot(Snapshot(self.clone, NEXT)))
        return steps + make_way(clone, cache)

    def _undecide(self, driver: Driver) -> None:
        # A failed batch may have left (3): after a crash that would be a release that nobody was promised.
        with contextlib.suppress(StoreError):
            clone = driver.info(self.clone)
            if clone is not None and clone.snapshot(NEXT) is not None:
                driver.destroy_snapshot(Snapshot(self.clone, NEXT), defer=True)

    def move(self, driver: Driver) -> None:
        """(4) to (6). When it raises, call it again."""
        if not self.old_moved:
            driver.rename(self.cache, self.old_head)
            self.old_moved = True
        if not self.moved:
            driver.rename(self.clone, self.cache)
            self.moved = True

    def tidy(self, driver: Driver) -> bool:
        """(6) to (9). Returns whether the old head is destroyed: else that is to be done when what needs it is gone.
        When it raises, call it again."""
        view, self.view = self.view, None
        if view is not None:
            view.close()
        if self.usual:
            self.usual = False  # from (8) on the same again would take the new version for the old one
            # Not done: the old name is taken, or something needs the old head.
            with contextlib.suppress(StoreError):
                driver.batch([Destroy(self.old_head), *self._usual_tidying()])
                self.old_gone = True
        # Nobody has looked at T: what it had under names of ours is an old version now.
        cache = driver.info(self.cache)
        if cache is None:
            raise Missing(f"{self.cache} is gone")
        steps = tidying(cache)
        if steps:
            driver.batch(steps)
        return self.old_gone or driver.info(self.old_head) is None

    def _usual_tidying(self) -> list[Step]:
        old = old_name(self.generation - 1, ())
        return [
            RenameSnapshot(Snapshot(self.cache, SNAP), old),
            RenameSnapshot(Snapshot(self.cache, NEXT), SNAP),
            DestroySnapshot(Snapshot(self.cache, old)),
        ]

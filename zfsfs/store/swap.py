"""The release swap, and its continuation from wherever a crash has left it.

The whole sequence, with S the session's clone and C the cache. Each gap is a place where a crash can fall, between
the steps of a batch too; what recovery finds there is said on the line.

    snapshot S@next           1  S@next, S a clone of C@snap: decided, go on
    promote S                 2  C is a clone of S@snap: go on
    rename C to cache-tmp/M   3  no C, S@next: go on
    rename S to C             4  C@next and C@snap: tidy
    set C's generation        5  as 4; it may be counted twice, it only has to grow
    rename C@snap to @old-G   6  C@next, no C@snap: tidy
    rename C@next to @snap    7  C@snap: published and whole; M and @old-G are left-overs
    destroy M                 8  @old-G is a left-over
    destroy @old-G, deferred     done; clones of other sessions may keep it for a while
"""

from __future__ import annotations

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
)
from zfsfs.names import Dataset, Snapshot
from zfsfs.store.layout import GENERATION, NEXT, SNAP, generation


def decide(clone: DatasetInfo, cache: DatasetInfo, number: int) -> list[Step]:
    """The steps that decide a release and promote the clone. A snapshot that somebody else made of both under one
    name would stop the promotion: the clone's gets `number` behind its name."""
    taken = {each.snapshot.name for each in cache.snapshots}
    steps: list[Step] = [
        RenameSnapshot(each.snapshot, f"{each.snapshot.name}-{number}")
        for each in clone.snapshots
        if each.snapshot.name in taken and each.snapshot.name != NEXT
    ]
    if clone.snapshot(NEXT) is None:
        steps.append(TakeSnapshot(Snapshot(clone.dataset, NEXT)))
    return [*steps, Promote(clone.dataset)]


def tidy(cache: DatasetInfo) -> list[Step]:
    """The steps that make `@next` the published version of a cache that has one."""
    dataset = cache.dataset
    count = generation(cache)
    steps: list[Step] = [SetProperty(dataset, GENERATION, str(count + 1))]
    if cache.snapshot(SNAP) is not None:
        old = next(name for number in range(count, count + 10**6) if cache.snapshot(name := f"old-{number}") is None)
        steps.append(RenameSnapshot(Snapshot(dataset, SNAP), old))
        last: list[Step] = [DestroySnapshot(Snapshot(dataset, old))]
    else:
        last = []
    return [*steps, RenameSnapshot(Snapshot(dataset, NEXT), SNAP), *last]


def exchange(driver: Driver, clone: Dataset, cache: Dataset, old: Dataset) -> None:
    """After the promotion: the clone takes the cache's name. (Gaps 2 to 4.)"""
    if driver.info(cache) is not None:
        driver.rename(cache, old)
    driver.rename(clone, cache)


def finish(driver: Driver, cache: Dataset) -> DatasetInfo:
    """Tidy the names of a cache that has `@next`. (Gaps 4 to 8.)"""
    info = driver.info(cache)
    assert info is not None
    driver.batch(tidy(info))
    after = driver.info(cache)
    assert after is not None
    return after


def destruction(info: DatasetInfo) -> list[Step]:
    """The steps that destroy a head with all its snapshots."""
    return [*(DestroySnapshot(each.snapshot) for each in info.snapshots), Destroy(info.dataset)]

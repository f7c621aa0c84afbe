"""From whatever a crash has left to a store in which every cache is whole.

Guarantees: a plan is made from what is there, by itself, and may be stopped anywhere and made again; an empty plan
means that nothing is left to do. What is needed is made safe before anything is swept. Left-overs of OBuilder's own
order of release are completed or undone likewise: where the cache's dataset is missing, the full dataset in
cache-tmp that holds its data is taken for it.

A result without `@snap` is a left-over of a build; it stays until its id is wanted again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from zfsfs.driver import DatasetInfo, DestroySnapshot, Driver, Listing, Promote, Step, TakeSnapshot
from zfsfs.errors import Busy
from zfsfs.names import CacheName, Dataset, Snapshot, cache, cache_of, cache_tmp, tmp_number
from zfsfs.store.layout import NEXT, SNAP, dependents, foreign, free_number, is_ours, is_temporary
from zfsfs.store.swap import decide, destruction, tidy


@dataclass(frozen=True, slots=True)
class Action:
    """Something to do: a sentence, and either steps of a batch or a rename. `optional`: it may be Busy."""

    text: str
    steps: tuple[Step, ...] = ()
    rename: tuple[Dataset, Dataset] | None = None
    optional: bool = False

    def carry_out(self, driver: Driver) -> None:
        """Do it. Raises what the verbs raise."""
        if self.rename is not None:
            driver.rename(*self.rename)
        else:
            driver.batch(self.steps)


def plan(listing: Listing) -> list[Action]:
    """What is to be done next; after it was carried out there may be more. Empty: nothing is left."""
    names = {name for each in listing if each.leaf and (name := cache_of(each)) is not None}
    actions: list[Action] = []
    for name in sorted(names, key=lambda each: each.name):
        actions += _repair(listing, name)
    return actions or list(_sweep(listing))


def carry_out(driver: Driver) -> list[str]:
    """Plan and act until nothing is left; returns the sentences of what was done or had to be left.

    Raises what the verbs raise; what is Busy among the left-overs stays for the reaper.
    """
    done: list[str] = []
    tried: set[Action] = set()
    while actions := [each for each in plan(driver.list()) if each not in tried]:
        for action in actions:
            try:
                action.carry_out(driver)
                done.append(action.text)
            except Busy as error:
                if not action.optional:
                    raise
                tried.add(action)
                done.append(f"{action.text}: not yet, {error}")
    return done


def _repair(listing: Listing, name: CacheName) -> list[Action]:
    """The next step towards a whole cache; none when it is."""
    head = listing.get(cache(name))
    others = [
        each for each in listing.values() if each.dataset.group == "cache-tmp" and cache_of(each.dataset) == name
    ]
    others.sort(key=lambda each: tmp_number(each.dataset), reverse=True)
    decided = [each for each in others if each.snapshot(NEXT)]
    if head is None:
        return _adopt(name, decided, others)
    if head.snapshot(NEXT) is not None:
        return [Action(f"complete the names of cache {name}'s newest version", tuple(tidy(head)))]
    if head.origin is not None and (parent := listing.get(head.origin.dataset)) in others and parent is not None:
        if parent.snapshot(NEXT):  # gap 2
            old = cache_tmp(free_number(listing), name)
            return [Action(f"set the replaced version of cache {name} aside", rename=(head.dataset, old))]
        return [Action(f"make cache {name} independent of {parent.dataset}", (Promote(head.dataset),))]
    for each in decided:
        if each.origin == Snapshot(head.dataset, SNAP):  # gap 1
            return [
                Action(f"complete the release of {each.dataset}", tuple(decide(each, head, tmp_number(each.dataset))))
            ]
    if head.snapshot(SNAP) is None:
        return [Action(f"snapshot cache {name}, which has no @snap", (TakeSnapshot(Snapshot(head.dataset, SNAP)),))]
    stale = [each for each in head.snapshots if is_ours(each.snapshot) and each.snapshot.name != SNAP]
    if any(not each.deferred for each in stale):
        steps = tuple(DestroySnapshot(each.snapshot) for each in stale if not each.deferred)
        return [Action(f"mark older versions of cache {name} for destruction", steps)]
    return []


def _adopt(name: CacheName, decided: list[DatasetInfo], others: list[DatasetInfo]) -> list[Action]:
    """The cache has no dataset: the full one among the temporary ones holds its data."""
    full = [each for each in decided if each.origin is None] or [each for each in others if each.origin is None]
    if not full:
        return []
    best = full[0]
    if best.snapshot(NEXT):  # gap 3
        return [Action(f"give cache {name} its newest version, {best.dataset}", rename=(best.dataset, cache(name)))]
    return [Action(f"take {best.dataset} for the lost cache {name}", (TakeSnapshot(Snapshot(best.dataset, NEXT)),))]


def _sweep(listing: Listing) -> Iterator[Action]:
    """What nothing needs: clones of sessions that were not published, heads that were replaced, discarded builds."""
    for each in listing.values():
        if not is_temporary(each.dataset) or dependents(listing, each.dataset) or foreign(each):
            continue
        if each.origin is None and cache_of(each.dataset) is not None:
            continue  # a full dataset is no session of ours: somebody may want its data
        yield Action(f"destroy the left-over {each.dataset}", tuple(destruction(each)), optional=True)

"""Recovery: from what is there to a store in which every cache is whole and cache-tmp is empty.

Guarantees
- `plan` looks at a listing and nothing else; its actions are what `zfsfs recover --dry-run` prints.
- Interrupted at any call and run again it comes to an end of the same kind; run twice it changes nothing.
- A cache keeps its old or its new contents wherever they still exist. Nothing is destroyed but in cache-tmp and
  without its clones, and there only when its cache needed no repair or the repair is done.
- Foreign snapshots block nothing: what carries them waits, with a reason.

The numbers in brackets are the states of `swap`. OBuilder's own swap leaves: its main dataset in cache-tmp and its
clones there (after its first rename), or the promoted clone there, with or without its old main as a clone, with
@snap, @old-N or no snapshot at all. In each there is no cache, and one dataset in cache-tmp that is no clone: that
one is adopted. Its head is the old or the new contents, so it is a release to be completed.
"""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field

from zfsfs.driver import DatasetInfo, Driver, Listing, Promote, SetProperty, Step, TakeSnapshot, run_step
from zfsfs.errors import DriverError, ZfsfsError
from zfsfs.names import CacheName, Dataset, Snapshot, cache, cache_of, cache_tmp, tmp_number
from zfsfs.store.layout import (
    GENERATION,
    NEXT,
    SNAP,
    failed_id,
    foreign,
    free_number,
    generation,
    is_junk,
    rules,
)
from zfsfs.store.reaper import destroy_whole, obstacle
from zfsfs.store.swap import make_way, tidying

_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Rename:
    """Give a dataset another name."""

    old: Dataset
    new: Dataset


@dataclass(frozen=True, slots=True)
class Sweep:
    """Destroy a dataset of cache-tmp; `with_foreign`: foreign snapshots too."""

    dataset: Dataset
    with_foreign: bool


@dataclass(frozen=True, slots=True)
class Action:
    """One call, and why. `cache` is the one that it repairs; nothing of it is swept when the repair fails."""

    what: Step | Rename | Sweep
    text: str
    cache: CacheName | None = None


@dataclass(slots=True)
class RecoveryReport:
    """What recovery did, what still waits to be destroyed (and whether foreign snapshots go with it, and why it
    waits), which caches it could not repair and why, what a person should look at, and the listing at its end."""

    done: list[Action] = field(default_factory=list)
    postponed: dict[Dataset, tuple[bool, str]] = field(default_factory=dict)
    broken: dict[CacheName, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    listing: Listing = field(default_factory=dict)


def _decided(clones: list[DatasetInfo], current: DatasetInfo | None) -> DatasetInfo | None:
    # A decision that is not newer than the cache was given up: the cache went on without it.
    found = [
        each
        for each in clones
        if each.snapshot(NEXT) is not None and (current is None or generation(each) > generation(current))
    ]
    return max(found, key=lambda each: (generation(each), tmp_number(each.dataset)), default=None)


def _adoptable(clones: list[DatasetInfo]) -> DatasetInfo | None:
    found = [each for each in clones if each.origin is None]
    return max(found, key=lambda each: (each.snapshot(SNAP) is not None, tmp_number(each.dataset)), default=None)


def _promotion(name: CacheName, clone: DatasetInfo, listing: Listing) -> list[Action]:
    assert clone.origin is not None
    origin = listing[clone.origin.dataset]
    way = make_way(clone, origin)
    actions = [Action(step, f"{clone.dataset}: a snapshot of somebody else gets another name", name) for step in way]
    actions.append(
        Action(Promote(clone.dataset), f"{clone.dataset} holds what is to stay: it stops being a clone", name)
    )
    return actions


def _in_store(info: DatasetInfo, listing: Listing, *groups: str) -> bool:
    return info.origin is not None and info.origin.dataset.group in groups and info.origin.dataset in listing


class _Plan:
    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.number = free_number(listing)
        self.actions: list[Action] = []
        self.kept: set[Dataset] = set()
        self.renamed: dict[Dataset, Dataset] = {}

    def repair(self, name: CacheName, tmp: list[DatasetInfo]) -> None:
        current = self.listing.get(cache(name))
        new = _decided(tmp, current)
        if new is not None:
            self._complete(name, new, current)
        elif current is not None:
            self._current(name, current)
        else:
            whole = _adoptable(tmp)
            if whole is not None:
                self._adopt(name, whole, tmp)

    def _complete(self, name: CacheName, new: DatasetInfo, current: DatasetInfo | None) -> None:
        self.kept.add(new.dataset)
        if _in_store(new, self.listing, "cache", "cache-tmp"):
            # (3), or a clone of something in cache-tmp that may be swept only when this is whole.
            self.actions += _promotion(name, new, self.listing)
            if new.origin is not None and new.origin.dataset.group == "cache-tmp":
                return  # what it is a clone of now, the next round will see
        if current is not None:
            # (4)
            old = cache_tmp(self.number, name)
            self.number += 1
            text = f"{current.dataset} is the version before a release that was decided: it makes way"
            self.actions.append(Action(Rename(current.dataset, old), text, name))
            self.renamed[current.dataset] = old
        # (5); the next round sees (6).
        text = f"{new.dataset} is a release that was decided: it becomes {cache(name)}"
        self.actions.append(Action(Rename(new.dataset, cache(name)), text, name))

    def _current(self, name: CacheName, current: DatasetInfo) -> None:
        if _in_store(current, self.listing, "cache-tmp"):
            # Somebody has promoted one of its clones, or an old head.
            self.actions += _promotion(name, current, self.listing)
            self.kept.add(current.dataset)
            return
        if current.snapshot(NEXT) is None and current.snapshot(SNAP) is None:
            text = f"{current.dataset} has no @{SNAP}: it gets one"
            self.actions.append(Action(TakeSnapshot(Snapshot(current.dataset, SNAP)), text, name))
        # (6), (7), (8)
        for step in tidying(current):
            self.actions.append(Action(step, f"{current.dataset}: the end of a release that was cut off", name))

    def _adopt(self, name: CacheName, whole: DatasetInfo, family: list[DatasetInfo]) -> None:
        self.kept.add(whole.dataset)
        text = f"{whole.dataset} is all that there is of cache {name}: it is to become the cache again"
        count = str(generation(whole) + 1)
        # Its rules may have stayed with the head that it was to replace. Each call leads on, however often we are cut
        # off; after the snapshot: (5), counted or not.
        lost: dict[str, str] = {}
        for each in sorted(family, key=lambda each: tmp_number(each.dataset)):
            lost |= rules(each)
        for key in lost.keys() - rules(whole).keys():
            self.actions.append(Action(SetProperty(whole.dataset, key, lost[key]), text, name))
        self.actions.append(Action(TakeSnapshot(Snapshot(whole.dataset, NEXT)), text, name))
        self.actions.append(Action(SetProperty(whole.dataset, GENERATION, count), text, name))
        text = f"{whole.dataset} becomes {cache(name)}"
        self.actions.append(Action(Rename(whole.dataset, cache(name)), text, name))

    def sweep(self) -> None:
        found: list[tuple[int, Action]] = []
        for info in self.listing.values():
            if not _may_sweep(info.dataset) or info.dataset in self.kept:
                continue
            given_up = _given_up(info, self.listing)
            if foreign(info) and not given_up:
                continue
            text = f"{info.dataset} is the rest of something that is over: it is destroyed"
            found.append(
                (_depth(info, self.listing), Action(Sweep(info.dataset, given_up), text, cache_of(info.dataset)))
            )
        # Clones first: they free what they were cloned from.
        self.actions += [action for _, action in sorted(found, key=lambda each: (-each[0], str(each[1].what)))]
        for old in self.renamed:
            info = self.listing[old]
            later = info.snapshots[-1].snapshot.name if info.snapshots else ""
            if later == SNAP or not foreign(info):
                new = self.renamed[old]
                text = f"{new} is a version that was replaced: it is destroyed"
                self.actions.append(Action(Sweep(new, False), text, cache_of(new)))


def _may_sweep(dataset: Dataset) -> bool:
    return is_junk(dataset) or (dataset.group == "cache-tmp" and cache_of(dataset) is not None)


def _given_up(info: DatasetInfo, listing: Listing) -> bool:
    """Whether a dataset is rubbish, or a clone of rubbish: a cache was deleted, and this is what it left behind."""
    seen: set[Dataset] = set()
    each: DatasetInfo | None = info
    while each is not None and each.dataset not in seen:
        if is_junk(each.dataset):
            return True
        seen.add(each.dataset)
        each = listing.get(each.origin.dataset) if each.origin is not None else None
    return False


def _depth(info: DatasetInfo, listing: Listing) -> int:
    depth, each = 0, info
    while each.origin is not None and each.origin.dataset in listing and depth < len(listing):
        depth, each = depth + 1, listing[each.origin.dataset]
    return depth


def _families(listing: Listing, besides: Container[Dataset] = ()) -> dict[CacheName, list[DatasetInfo]]:
    """All caches, and what lies in cache-tmp of each."""
    families: dict[CacheName, list[DatasetInfo]] = {}
    for info in listing.values():
        name = cache_of(info.dataset) if info.dataset.leaf else None
        if name is not None:
            members = families.setdefault(name, [])
            if info.dataset.group == "cache-tmp" and info.dataset not in besides and not _given_up(info, listing):
                members.append(info)
    return families


def _repairs(listing: Listing) -> _Plan:
    made = _Plan(listing)
    families = _families(listing)
    for name in sorted(families, key=lambda each: each.name):
        made.repair(name, families[name])
    return made


def repair(driver: Driver, name: CacheName, besides: Container[Dataset], number: int) -> Listing:
    """Repair one cache while the store is in use; nothing is swept. Blocks. `besides` are its sessions, which are
    left alone; `number` and those above it are free in cache-tmp.

    Returns the store as it is then. Raises StoreError: the cache then is as after a crash in the middle of it.
    """
    for _ in range(_ROUNDS):
        listing = driver.list()
        made = _Plan(listing)
        made.number = max(made.number, number)
        made.repair(name, _families(listing, besides).get(name, []))
        if not made.actions:
            return listing
        for action in made.actions:
            _execute(driver, action)
    raise DriverError(f"the repair of cache {name} does not come to an end")


def plan(listing: Listing) -> list[Action]:
    """What recovery will do with a store that looks like this. Where one thing follows from another, the rest of it
    is in the plan for the listing after it; an empty plan means that nothing is left to do or all the rest waits."""
    made = _repairs(listing)
    made.sweep()
    return made.actions


def _ours(dataset: Dataset) -> bool:
    return cache_of(dataset) is not None or is_junk(dataset) or failed_id(dataset) is not None


def warnings(listing: Listing) -> list[str]:
    """What a person should look at: datasets in our groups that we did not make."""
    return [
        f"{each} is not a name that zfsfs gives: it is left alone"
        for each in sorted(listing)
        if each.leaf
        and each.group in ("cache", "cache-tmp")
        and cache_of(each) is None
        and not is_junk(each)
        and failed_id(each) is None
    ]


def waiting(listing: Listing) -> dict[Dataset, tuple[bool, str]]:
    """What can't be swept yet: whether its foreign snapshots go with it, and why it waits."""
    found = {}
    for info in listing.values():
        if _may_sweep(info.dataset):
            given_up = _given_up(info, listing)
            found[info.dataset] = (given_up, obstacle(info, with_foreign=given_up))
    return found


def _execute(driver: Driver, action: Action) -> str:
    match action.what:
        case Sweep(dataset, with_foreign):
            return destroy_whole(driver, dataset, with_foreign=with_foreign)
        case Rename(old, new):
            driver.rename(old, new)
        case step:
            run_step(driver, step)
    return ""


def carry_out(driver: Driver) -> RecoveryReport:
    """Plan and act until there is nothing more to do. Blocks.

    A cache whose repair fails stays as it is, with a warning; nothing of it is swept. Raises StoreError only when
    the store can't be listed.
    """
    report = RecoveryReport()
    failed: dict[CacheName | None, str] = {}
    stuck: dict[Dataset, str] = {}
    for _ in range(_ROUNDS):
        listing = driver.list()
        actions = [each for each in plan(listing) if not _hopeless(each, failed, stuck)]
        if not actions:
            break
        freed = False
        for action in actions:
            if _hopeless(action, failed, stuck):
                continue
            # A crash here finds a state that `plan` knows, whichever action is next.
            try:
                reason = _execute(driver, action)
            except ZfsfsError as error:
                reason = str(error)
                if action.cache is not None:
                    failed[action.cache] = f"cache {action.cache} could not be repaired: {reason}"
                    report.broken[action.cache] = reason
                    continue
            if not reason:
                report.done.append(action)
                freed = True
            elif isinstance(action.what, Sweep):
                stuck[action.what.dataset] = reason
        if freed:
            stuck.clear()
    else:
        failed[None] = "recovery does not come to an end; 'zfsfs check' shows what is left"
    report.listing = listing
    report.warnings = [*failed.values(), *warnings(listing)]
    for dataset, (with_foreign, reason) in waiting(listing).items():
        if cache_of(dataset) is None or cache_of(dataset) not in failed:
            report.postponed[dataset] = (with_foreign, stuck.get(dataset, reason))
    return report


def _hopeless(action: Action, failed: Container[CacheName | None], stuck: Container[Dataset]) -> bool:
    return action.cache in failed or (isinstance(action.what, Sweep) and action.what.dataset in stuck)

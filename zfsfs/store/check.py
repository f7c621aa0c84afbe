"""What must hold in a store, looked up in one listing."""

from __future__ import annotations

from collections.abc import Collection

from zfsfs.driver import DatasetInfo, Listing
from zfsfs.names import BuildId, Dataset, build_of, cache_of
from zfsfs.store.layout import GENERATION, NEXT, POLICY, SNAP, failed_id, is_junk, is_old
from zfsfs.store.policy import Policy


def check(listing: Listing, *, known: Collection[Dataset] = ()) -> list[str]:
    """Every invariant that is broken, a sentence each. `known` are the datasets that are open sessions or
    wait to be destroyed. Left-overs of builds are no problem: see `leftovers`."""
    problems = [f"the group {group} is missing" for group in Dataset.GROUPS if Dataset(group) not in listing]
    for info in sorted(listing.values(), key=lambda each: each.dataset):
        if not info.dataset.leaf:
            continue
        if is_junk(info.dataset):
            problems += [] if info.dataset in known else [f"{info.dataset} is rubbish"]
            continue
        match info.dataset.group:
            case "cache":
                problems += _cache(info)
            case "cache-tmp":
                problems += _temporary(info, listing, known)
            case "result":
                problems += _result(info, listing)
        if info.origin is not None:
            origin = listing.get(info.origin.dataset)
            if origin is None or origin.snapshot(info.origin.name) is None:
                problems.append(f"{info.dataset} is a clone of {info.origin}, which is not there")
    return problems


def _cache(info: DatasetInfo) -> list[str]:
    name = info.dataset
    if cache_of(name) is None:
        return [f"{name} is not the name of a cache"]
    problems = []
    snap = info.snapshot(SNAP)
    if snap is None:
        problems.append(f"{name} has no @{SNAP}")
    elif snap.deferred:
        problems.append(f"{name}@{SNAP} is about to be destroyed")
    if info.snapshot(NEXT) is not None:
        problems.append(f"{name} has a release that is not tidied")
    if info.origin is not None and info.origin.dataset.group == "cache-tmp":
        problems.append(f"{name} is a clone of {info.origin}, which is temporary")
    text = info.properties.get(GENERATION, "0")
    if not (text.isascii() and text.isdigit()):
        problems.append(f"{name} has the generation {text!r}")
    policy = info.properties.get(POLICY, Policy.ALWAYS.value)
    if policy not in {each.value for each in Policy}:
        problems.append(f"{name} has the policy {policy!r}")
    for each in info.snapshots:
        if is_old(each.snapshot.name) and not each.deferred:
            problems.append(f"{each.snapshot} is an old version that nobody destroys")
    return problems


def _temporary(info: DatasetInfo, listing: Listing, known: Collection[Dataset]) -> list[str]:
    if info.dataset not in known and failed_id(info.dataset) is None:
        return [f"{info.dataset} is neither a session nor waiting to be destroyed"]
    return []


def _result(info: DatasetInfo, listing: Listing) -> list[str]:
    name = info.dataset
    snap = info.snapshot(SNAP)
    if snap is None:
        return []
    problems = []
    if snap.deferred:
        problems.append(f"{name}@{SNAP} is about to be destroyed")
    if base_of(info) is None and info.origin is not None:
        problems.append(f"{name} is a result based on {info.origin}, which is no result")
    elif info.origin is not None:
        base = listing.get(info.origin.dataset)
        if base is not None and base.snapshot(SNAP) is None:
            problems.append(f"{name} is a result and its base {base.dataset} is none")
    return problems


def base_of(info: DatasetInfo) -> BuildId | None:
    """The result that a build is based on."""
    return None if info.origin is None else build_of(info.origin.dataset)


def leftovers(listing: Listing) -> list[Dataset]:
    """Builds that a crash cut off: no results and not running; the next start of the same id clears them."""
    return sorted(
        info.dataset
        for info in listing.values()
        if build_of(info.dataset) is not None and info.snapshot(SNAP) is None
    )

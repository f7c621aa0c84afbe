"""The invariants of a store at rest (no session open, nothing queued), read-only."""

from __future__ import annotations

from zfsfs.driver import Listing
from zfsfs.names import Dataset, cache_of
from zfsfs.store.layout import NEXT, SNAP, foreign, is_temporary


def check(listing: Listing, sessions: frozenset[Dataset] = frozenset()) -> list[str]:
    """What is wrong, a sentence each; empty when all is well. `sessions` are the datasets of open ones."""
    problems = [f"group {group} is missing" for group in Dataset.GROUPS if Dataset(group) not in listing]
    for dataset, info in listing.items():
        if dataset.group == "cache" and dataset.leaf and cache_of(dataset) is not None:
            if info.snapshot(SNAP) is None:
                problems.append(f"{dataset} has no @snap: no session can open it; zfsfs mount repairs that")
            if info.snapshot(NEXT) is not None:
                problems.append(f"{dataset} has @next: a release was not completed; zfsfs mount completes it")
            if info.origin is not None and info.origin.dataset.group == "cache-tmp":
                problems.append(f"{dataset} is a clone of {info.origin}: a release was not completed")
        elif dataset.group == "cache-tmp" and dataset.leaf and dataset not in sessions:
            why = "somebody's snapshot keeps it" if foreign(info) else "no session has it"
            problems.append(f"{dataset} is left over: {why}" if is_temporary(dataset) else f"{dataset} is not ours")
        elif dataset.group == "result" and info.snapshot(SNAP) is not None and info.origin is not None:
            base = info.origin
            if base.dataset.group != "result" or base.name != SNAP:
                problems.append(f"{dataset} is based on {base}, which is no result")
    return problems


def left_overs(listing: Listing, running: frozenset[Dataset] = frozenset()) -> list[Dataset]:
    """Builds that a crash has left: no result, not running; the next mkdir of their id clears them."""
    return [
        each
        for each, info in listing.items()
        if each.group == "result" and each.leaf and info.snapshot(SNAP) is None and each not in running
    ]

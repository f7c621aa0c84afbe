"""What is stored, and what its presence means.

    POOL/result/ID               a build; with @snap a result, without (and not running) a left-over of a crash
    POOL/cache/c-NAME            a cache; its head and @snap have the same contents, the published version
      @next                      a release is decided, its names are not tidy yet
      @old-G                     an older version that clones still need; marked for destruction
      zfsfs:generation           how often it has been published; missing means 0
    POOL/cache-tmp/N-c-NAME      a session's clone; or, during a swap, the head that a release replaces
      @next                      the release of this session is decided: recovery completes it
    POOL/cache-tmp/N-r-ID        a discarded build that something still holds; goes when it can

Every other dataset, and every other snapshot, is somebody else's and stays.
"""

from __future__ import annotations

import re

from zfsfs.driver import DatasetInfo, Listing
from zfsfs.names import BuildId, Dataset, Snapshot, cache_of

SNAP = "snap"
NEXT = "next"
GENERATION = "zfsfs:generation"

_OURS = re.compile(r"(snap|next|old-[0-9]+)\Z")
_JUNK = re.compile(r"[0-9]+-r-")


def is_ours(snapshot: Snapshot) -> bool:
    """Whether the store made a snapshot, by its name."""
    return bool(_OURS.match(snapshot.name))


def foreign(info: DatasetInfo) -> list[Snapshot]:
    """The snapshots that somebody else made of a dataset."""
    return [each.snapshot for each in info.snapshots if not is_ours(each.snapshot)]


def generation(info: DatasetInfo) -> int:
    """How often a cache has been published; 0 when the property is missing or no number."""
    text = info.properties.get(GENERATION, "0")
    return int(text) if text.isascii() and text.isdigit() else 0


def junk(number: int, build: BuildId) -> Dataset:
    """Where a discarded build goes that can't be destroyed yet."""
    return Dataset("cache-tmp", f"{number}-r-{build}")


def is_temporary(dataset: Dataset) -> bool:
    """Whether a dataset in cache-tmp is one that the store made."""
    return cache_of(dataset) is not None or bool(_JUNK.match(dataset.leaf))


def free_number(listing: Listing) -> int:
    """A number that no dataset of cache-tmp has, nor any smaller one that could come back."""
    numbers = [each.leaf.partition("-")[0] for each in listing if each.group == "cache-tmp"]
    return max((int(each) for each in numbers if each.isascii() and each.isdigit() and len(each) < 16), default=0) + 1


def dependents(listing: Listing, dataset: Dataset) -> list[DatasetInfo]:
    """The datasets of the store that are clones of one of a dataset's snapshots."""
    return [each for each in listing.values() if each.origin is not None and each.origin.dataset == dataset]

"""What is stored, in one place: each dataset, snapshot and property, and what its presence means.

    result/ID               a build, running or left over; with @snap a result
    cache/c-NAME            a cache; its @snap is the published version, and its head has the same contents
    cache-tmp/N-c-NAME      a session's clone of a cache, or one kept ready; or a head that a release has replaced
    cache-tmp/N-r-TEXT      rubbish: given up as a whole, its foreign snapshots and its clones in cache-tmp too.
                            A cache under construction lies here as well: it exists from its rename on
    result/.gone-N-TEXT     rubbish as well, likewise in cache: where it could not be moved to cache-tmp.
                            Datasets kept ready for builds are called so, too, and for a moment that of
                            a build that got one (see `fresh` and `naming`)
    cache-tmp/N-f-ID        a build that failed and is kept; where there are several of an ID, the highest N counts
    @snap                   see above
    @zfsfs-next             on a clone in cache-tmp: its release is decided. On a cache: the release is not tidied yet
    @old-N                  an earlier version, going as soon as no clone needs it. On a session's clone: where it was
                            parted from who has files of it open
    any other snapshot      foreign: never destroyed, unless a user's own rmdir deletes the dataset
    zfsfs:failed            on cache-tmp/N-f-ID: how the build ended, as JSON. On result/ID it says nothing
    zfsfs:policy            on a cache: what becomes of its sessions (see `policy`)
    zfsfs:publishers        on a cache: whose sessions are published. A clone has both from the decision on
    zfsfs:generation        how often a cache was published; a clone has it only from the decision on

OBuilder destroys all of cache-tmp when it starts: nothing that is to stay lies there, except within a swap, and
failed builds, which are only there to be looked at.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterable

from zfsfs.driver import DatasetInfo, Listing
from zfsfs.errors import InvalidName
from zfsfs.names import GONE, BuildId, Dataset

SNAP = "snap"
NEXT = "zfsfs-next"
GENERATION = "zfsfs:generation"
FAILED = "zfsfs:failed"
POLICY = "zfsfs:policy"
PUBLISHERS = "zfsfs:publishers"
#: What a cache keeps when another dataset becomes it.
RULES = (POLICY, PUBLISHERS)

_OLD = re.compile(r"old-[0-9]+\Z")
_NUMBERED = re.compile(r"([0-9]{1,18})-")
_JUNK = re.compile(r"[0-9]{1,18}-r-")
_GONE = re.compile(re.escape(GONE) + r"([0-9]{1,18})-")
_FAILED = re.compile(r"[0-9]{1,18}-f-(.+)\Z")


def is_old(name: str) -> bool:
    """Whether a snapshot's name is that of an earlier version."""
    return _OLD.match(name) is not None


def is_ours(name: str) -> bool:
    """Whether a snapshot's name is one that we give."""
    return name in (SNAP, NEXT) or is_old(name)


def foreign(info: DatasetInfo) -> list[str]:
    """The names of a dataset's foreign snapshots."""
    return [each.snapshot.name for each in info.snapshots if not is_ours(each.snapshot.name)]


def names(info: DatasetInfo) -> set[str]:
    """The names of a dataset's snapshots."""
    return {each.snapshot.name for each in info.snapshots}


def generation(info: DatasetInfo) -> int:
    """How often a cache was published; 0 where nobody counted."""
    text = info.properties.get(GENERATION, "")
    return int(text) if text.isascii() and text.isdigit() else 0


def rules(info: DatasetInfo) -> dict[str, str]:
    """The rules that are stored with a cache."""
    return {name: info.properties[name] for name in RULES if name in info.properties}


def old_name(start: int, taken: Collection[str]) -> str:
    """A name for an earlier version that is not taken."""
    return next(name for n in itertools.count(start) if (name := f"old-{n}") not in taken)


def spare_name(name: str, taken: Collection[str]) -> str:
    """Another name for a snapshot that stands in the way of a promotion."""
    if is_old(name):
        return old_name(0, taken)
    return next(other for n in itertools.count(1) if (other := f"{name[:240]}.{n}") not in taken)


def junk(number: int, text: str, group: str = "cache-tmp") -> Dataset:
    """A name for what is given up. `text` is for people, and cut: a name must not be too long to be destroyed."""
    text = text[:32].strip()
    return Dataset(group, f"{number}-r-{text}" if group == "cache-tmp" else f"{GONE}{number}-{text}")


def former_leaf(dataset: Dataset) -> str:
    """The last component of what a dataset that was given up was before, as far as its name tells."""
    if dataset.group == "cache-tmp":
        return dataset.leaf.partition("-")[2].removeprefix("r-")
    return _GONE.sub("", dataset.leaf)


def is_junk(dataset: Dataset) -> bool:
    """Whether a dataset is given up."""
    return (_JUNK if dataset.group == "cache-tmp" else _GONE).match(dataset.leaf) is not None


def failure(number: int, ident: BuildId) -> Dataset:
    """A name for a failed build that is kept."""
    return Dataset("cache-tmp", f"{number}-f-{ident}")


def failed_id(dataset: Dataset) -> BuildId | None:
    """The id of a failed build that is kept; None for any other dataset."""
    match = _FAILED.match(dataset.leaf) if dataset.group == "cache-tmp" else None
    try:
        return None if match is None else BuildId(match[1].encode("utf-8", "surrogateescape"))
    except InvalidName:
        return None


def failed_number(dataset: Dataset) -> int:
    """Which one of an id's failed builds it is: higher is newer."""
    return int(dataset.leaf.partition("-")[0])


def free_number(listing: Iterable[Dataset]) -> int:
    """A number above all that are used in cache-tmp, and for rubbish."""
    found = ((_NUMBERED if each.group == "cache-tmp" else _GONE).match(each.leaf) for each in listing)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def clones_of(listing: Listing, dataset: Dataset) -> list[DatasetInfo]:
    """The clones of a dataset's snapshots, as far as they are in the store."""
    return [each for each in listing.values() if each.origin is not None and each.origin.dataset == dataset]


class Numbers:
    """Numbers for cache-tmp, each given out once."""

    def __init__(self) -> None:
        self.next = 1

    def take(self) -> int:
        """The next one."""
        self.next += 1
        return self.next - 1

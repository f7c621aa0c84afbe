"""What is known of builds, and of caches and their sessions, while the store runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import trio

from zfsfs.driver import DatasetInfo, View
from zfsfs.names import BuildId, CacheName, Dataset, shown
from zfsfs.store.check import base_of
from zfsfs.store.events import Outcome
from zfsfs.store.layout import FAILED, POLICY, PUBLISHERS
from zfsfs.store.policy import Rules, stored_rules
from zfsfs.store.swap import Swap


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """A build that runs."""

    id: BuildId
    base: BuildId | None
    created: float
    dataset: Dataset


@dataclass(frozen=True, slots=True)
class ResultInfo:
    """A registered result. `guid` is its dataset's, 0 when it was published since the start: see `Builds.guid`."""

    id: BuildId
    base: BuildId | None
    created: float
    dataset: Dataset
    guid: int = 0


@dataclass(frozen=True, slots=True)
class FailedInfo:
    """A build that failed and is kept: `facts` are how it ended, whatever who kept it wrote down; `ended` when."""

    id: BuildId
    base: BuildId | None
    created: float
    guid: int
    dataset: Dataset
    ended: float
    facts: Mapping[str, Any]


def failed_info(ident: BuildId, info: DatasetInfo) -> FailedInfo:
    """A failed build as it is stored; what nobody can read any more is left out."""
    try:
        facts = json.loads(info.properties.get(FAILED, ""))
        ended = float(facts.pop("ended"))
    except (ValueError, TypeError, KeyError, AttributeError):
        facts, ended = {}, float(info.created)
    return FailedInfo(ident, base_of(info), info.created, info.guid, info.dataset, ended, facts)


@dataclass(frozen=True, slots=True)
class CacheInfo:
    """A cache: how often it was published, when it was made, how many sessions are open, its rules, and the
    clones that are kept ready for sessions."""

    name: CacheName
    generation: int
    created: float
    sessions: int
    dataset: Dataset
    rules: Rules = field(default_factory=Rules)
    ready: tuple[Dataset, ...] = ()


@dataclass(eq=False, slots=True)
class Session:
    """A private copy of a cache. `generation` is the version that it was cloned from; `dataset` is its clone and,
    when its release was published, the cache's own dataset. `ended` is how, once it is no longer open. `view` is a
    look into it where there was one already: who takes it closes it."""

    cache: CacheName
    label: bytes | None
    dataset: Dataset
    generation: int
    opened: float
    ended: Outcome | None = None
    view: View | None = None

    def __str__(self) -> str:
        return str(self.cache) if self.label is None else shown(self.cache.name + b"@" + self.label)

    def take_view(self) -> View | None:
        """The view, which is the caller's from here on."""
        view, self.view = self.view, None
        return view


@dataclass(frozen=True, slots=True)
class Spare:
    """A clone of a version that nobody has opened yet, and a look into it."""

    dataset: Dataset
    generation: int
    view: View


@dataclass(eq=False, slots=True)
class Entry:
    """A cache."""

    name: CacheName
    generation: int
    created: float
    properties: dict[str, str] = field(default_factory=dict)  # RULES, as they are stored
    rules: Rules = field(default_factory=Rules)
    lock: trio.Lock = field(default_factory=trio.Lock)
    cloning: int = 0  # clones that are being taken, of the version that stands; none is within a swap
    cloned: trio.Event = field(default_factory=trio.Event)
    sessions: set[Session] = field(default_factory=set)
    swap: tuple[Swap, Session] | None = None  # decided, and not yet tidied
    spares: list[Spare] = field(default_factory=list)  # of the newest version
    gone: bool = False  # it has been deleted, and who asked for that has to come back before its name is free

    def understand(self) -> None:
        """What is stored, as rules."""
        self.rules = stored_rules(self.properties.get(POLICY), self.properties.get(PUBLISHERS))

    def has_cloned(self) -> None:
        """A clone less is being taken."""
        self.cloning -= 1
        self.cloned.set()

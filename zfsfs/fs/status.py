"""What is going on, as text: .zfsfs/status.json, .zfsfs/events and .zfsfs/metrics; and user.zfsfs.* of an area."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

from zfsfs.errors import StoreError
from zfsfs.fs.area import Area
from zfsfs.fs.places import BuildPlace, CachePlace, FailedPlace, ResultPlace
from zfsfs.fs.tree import Tree
from zfsfs.names import Dataset, shown
from zfsfs.store import FailedInfo
from zfsfs.threads import in_thread


def status(tree: Tree) -> dict[str, Any]:
    """The state of the tree, ready for JSON."""
    store = tree.store
    return {
        "store": store.driver.name,
        "pid": os.getpid(),
        "trouble": store.driver.trouble(),
        "builds": [
            {
                "id": str(ident),
                "base": str(info.base) if info.base else None,
                "path": os.fsdecode(tree.builds[ident].place.path()) if ident in tree.builds else None,
                "dataset": str(info.dataset),
                "created": info.created,
                "open": tree.builds[ident].opens if ident in tree.builds else 0,
            }
            for ident, info in store.builds.running().items()
        ],
        "failed": [
            {
                "id": str(ident),
                "base": str(failed.base) if failed.base else None,
                "ended": failed.ended,
                "path": f"builds/.failed/{ident}",
                "dataset": str(failed.dataset),
                **_ending(failed),
            }
            for ident, failed in store.builds.failed().items()
        ],
        "results": len(store.builds.results()),
        "ready": [str(dataset) for dataset in store.ready()],
        "caches": [
            {
                "name": str(name),
                "path": os.fsdecode(b"caches/" + name.name),
                "generation": info.generation,
                "dataset": str(info.dataset),
                "policy": (rules := tree.sessions.ruling.of(name)).policy.value,
                "publishers": rules.publishers.text,
                "waiting": tree.sessions.waiters(name),
                "ready": [str(each) for each in info.ready],
            }
            for name in store.caches.names()
            if (info := store.caches.get(name)) is not None
        ],
        "sessions": [
            {
                "name": str(area.place.name),
                "path": os.fsdecode(area.place.path()),
                "dataset": str(area.place.session.dataset),
                "generation": area.place.session.generation,
                "opened": area.place.session.opened,
                "open": area.opens,
                "changed": area.may_have_changed,
                "private": tree.sessions.ruling.is_private(area.place),
                "holders": area.place.holders,
            }
            for area in tree.sessions.open_areas
            if isinstance(area.place, CachePlace) and area.place.session is not None
        ],
        "native": [
            {
                "path": shown(area.place.path()),
                "writable": area.frozen,
                "holders": area.held.names(),
            }
            for area in tree.natives()
            if area.held is not None
        ],
        "waiting": [
            {"dataset": str(dataset), "reason": waiting.reason, "tries": waiting.tries}
            for dataset, waiting in store.reaper.queue.items()
        ],
    }


def _ending(failed: FailedInfo) -> dict[str, Any]:
    """How a failed build ended. Everybody may know: an older daemon had the end of its log with it."""
    return {name: value for name, value in failed.facts.items() if name != "log"}


def files(tree: Tree) -> dict[bytes, Callable[[], bytes]]:
    """The files in .zfsfs, and what makes their contents."""
    return {
        b"status.json": lambda: json.dumps(status(tree), indent=1).encode() + b"\n",
        b"events": lambda: _events(tree),
        b"metrics": lambda: _metrics(tree),
    }


def _metrics(tree: Tree) -> bytes:
    now = status(tree)
    counts = tree.store.events.counts
    metrics = [f'zfsfs_events_total{{kind="{kind}"}} {count}' for kind, count in sorted(counts.items())]
    metrics += [f"zfsfs_{name} {len(now[name])}" for name in ("builds", "caches", "sessions", "waiting")]
    metrics.append(f"zfsfs_results {now['results']}")
    return "".join(line + "\n" for line in metrics).encode()


def _events(tree: Tree) -> bytes:
    recent = tree.store.events.recent
    events = [{"time": each.time, "kind": each.kind, "subject": each.subject, "text": each.text} for each in recent]
    return b"".join(json.dumps(each).encode() + b"\n" for each in events)


_FAILED = ("builder", "exit", "signal", "reason", "duration", "log", "ended")
_NAMES = (*_FAILED, "id", "base", "state", "generation", "outcome", "created", "dataset", "used", "referenced")
_RULES = ("policy", "publishers", "success")
_LOG = b"user.zfsfs.log"


def xattr_names(tree: Tree, area: Area, uid: int) -> list[bytes]:
    """The attributes that an area's root shows a user on top of the file's own."""
    names = _names(area)
    kept, builders = _kept(tree, area), tree.builders
    if kept is not None and builders is not None and not builders.logs.may_read(kept.guid, uid):
        names.remove(_LOG)  # who copies a directory with its attributes would be refused this one
    return names


def _names(area: Area) -> list[bytes]:
    mine = {
        "build": ("id", "base", "state", "created", "dataset", "used", "referenced"),
        "result": ("id", "base", "state", "created", "dataset", "used", "referenced"),
        "failed": ("id", "base", "state", "created", "dataset", "used", "referenced", *_FAILED),
        "cache": ("id", "state", "generation", "outcome", "created", "dataset", "used", "referenced", *_RULES),
    }[area.place.kind]
    return [f"user.zfsfs.{name}".encode() for name in (*_NAMES, *_RULES) if name in mine]


async def xattr(tree: Tree, area: Area, name: bytes, uid: int) -> bytes | None:
    """The value of one of them for a user; None when there is no such attribute. Raises EACCES: another's log."""
    if name not in _names(area):
        return None
    if name == _LOG:
        kept = _kept(tree, area)
        if kept is None or tree.builders is None:
            return b""
        return await in_thread(tree.builders.logs.tail, kept.guid, uid)
    key = name.decode("ascii").rpartition(".")[2]
    facts, dataset = _facts(tree, area)
    if key in ("used", "referenced"):
        try:
            await tree.store.builds.naming.settle(dataset)
            space = await in_thread(tree.store.driver.space, dataset)
        except StoreError:
            return b"0"
        return str(getattr(space, key)).encode()
    return str(facts.get(key, "")).encode("utf-8", "surrogateescape")


def _kept(tree: Tree, area: Area) -> FailedInfo | None:
    """What is known of a failed build, as long as it is kept."""
    place = area.place
    if not isinstance(place, FailedPlace):
        return None
    kept = tree.store.builds.failed().get(place.id)
    return kept if kept is not None and kept.dataset == place.dataset else None


def _facts(tree: Tree, area: Area) -> tuple[dict[str, object], Dataset]:
    place = area.place
    store = tree.store
    if isinstance(place, CachePlace):
        info = store.caches.get(place.name.cache)
        if info is None:
            return {}, Dataset("cache")
        session = place.session
        dataset = session.dataset if session else info.dataset
        return {
            "id": shown(bytes(place.name)),
            "state": "idle" if session is None else "private" if tree.sessions.ruling.is_private(place) else "open",
            "generation": session.generation if session else info.generation,
            "outcome": place.outcome,
            "created": int(info.created),
            "dataset": dataset,
            **tree.sessions.ruling.attributes(place),
        }, dataset
    if isinstance(place, FailedPlace):
        kept = _kept(tree, area)
        if kept is None:
            return {}, Dataset("cache-tmp")
        shown_facts = {name: "" if value is None else value for name, value in _ending(kept).items()}
        return {
            **shown_facts, "id": kept.id, "base": kept.base or "", "state": "failed", "created": int(kept.created),
            "dataset": kept.dataset, "ended": int(kept.ended),
        }, kept.dataset  # fmt: skip
    if isinstance(place, BuildPlace):
        build = store.builds.running().get(place.name.id)
        found, state = build, "building"
        ident = place.name.id
    else:
        assert isinstance(place, ResultPlace)
        result = store.builds.result(place.id)
        ident, state = place.id, "published"
        if result is None:
            return {}, Dataset("result")
        facts = {"id": ident, "base": result.base or "", "state": state}
        return {**facts, "created": int(result.created), "dataset": result.dataset}, result.dataset
    if found is None:
        return {}, Dataset("result")
    facts = {"id": ident, "base": found.base or "", "state": state}
    return {**facts, "created": int(found.created), "dataset": found.dataset}, found.dataset

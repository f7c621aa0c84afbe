"""Who holds a place in the tree, or a dataset, as `zfsfs who`, the events and the status tell it.

The attribute `user.zfsfs.holders` of a directory or file is the answer for it and all beneath, as JSON. Reading it
looks through all processes, so it is not among the attributes that are listed.

Guarantees: who may read a directory learns which processes hold it, and no more of another user's process than
/proc tells everybody: what it holds beneath is for root and for whoever the process belongs to. Processes that are
stuck delay an answer by `PATIENCE` at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import trio

from zfsfs.driver import Driver, viewing
from zfsfs.errors import ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.fs.holders import Holder, Wanted, holders, sends, sentence
from zfsfs.fs.nodes import Node
from zfsfs.fs.tree import Tree
from zfsfs.names import Dataset, Snapshot, shown
from zfsfs.store.layout import former_leaf
from zfsfs.threads import in_thread

NAME = b"user.zfsfs.holders"
PATIENCE = 10.0
#: The most that an attribute can hold is 64 KiB (XATTR_SIZE_MAX).
_ROOM = 60_000
#: As many looks may be under way; those of stuck processes may never end.
_limiter = trio.CapacityLimiter(4)

T = TypeVar("T")


async def _in_time(look: Callable[[], list[T]]) -> list[T]:
    """What a look at all processes finds, or nothing when it takes too long."""
    with trio.move_on_after(PATIENCE):
        return await in_thread(look, abandon_on_cancel=True, limiter=_limiter)
    return []


def path_of(node: Node) -> bytes:
    """Where a node is, from the tree's root, as far as it has a name."""
    parts: list[bytes] = []
    while node.parent is not None:
        parts.append(node.name if node.name is not None else b"(deleted)")
        node = node.parent
    return b"/".join([node.area.place.path(), *reversed(parts)])


def _natives(tree: Tree, areas: Iterable[Area]) -> Wanted:
    """What to look for to find whoever holds one of these areas, natively too."""
    driver = tree.store.driver
    natives, sources = {}, {}
    for area in areas:
        source = driver.mounted_as(area.place.dataset)
        if source:
            sources[os.fsencode(source)] = area.place.path()
            if area.view is not None:
                natives[os.fstat(area.view.fd).st_dev] = area.place.path()
    return Wanted(tree.device, natives, sources)


async def of_path(tree: Tree, path: bytes, area: Area | None, uid: int) -> list[dict[str, Any]]:
    """Who holds what is at a path from the tree's root, or beneath, as the user `uid` may know it. `area` is the one
    that it lies in, None for what lies above all."""
    wanted = _natives(tree, tree.areas() if area is None else [area])
    found = []
    for each in await _in_time(lambda: holders(wanted, thorough=True)):
        node = tree.table.showing(each.ino)
        held = each.path if node is None else path_of(node)
        # One that holds the whole area natively holds every path in it.
        if held and (not path or held == path or held.startswith(path + b"/") or (each.at and not each.ino)):
            found.append(_told(each, held, uid))
    if area is not None and path == area.place.path():
        found += await of_dataset(tree.store.driver, area.place.dataset)
    return found


def _told(holder: Holder, path: bytes, uid: int) -> dict[str, Any]:
    """A holder for JSON. Names may be any bytes, so they are shown as on a terminal."""
    private = uid not in (0, holder.uid)
    told: dict[str, Any] = {
        "what": holder.what,
        "pid": holder.pid,
        "uid": holder.uid,
        "command": holder.command,
    }
    if path:
        told["path"] = shown(b"/".join(path.split(b"/")[:2]) if private else path)
    if holder.at and not private:
        told["at"] = shown(holder.at)
    if holder.namespace:
        told["namespace"] = holder.namespace
    if holder.container:
        told["container"] = holder.container
    return told


async def of_dataset(driver: Driver, dataset: Dataset) -> list[dict[str, Any]]:
    """What keeps a dataset besides processes that refer to its files: sends, holds and clones."""
    leaves = frozenset({os.fsencode(dataset.leaf), os.fsencode(former_leaf(dataset))})
    found = [
        {"what": each.what, "pid": each.pid, "uid": each.uid, "command": each.command, "at": shown(each.at)}
        for each in (await _in_time(lambda: sends(leaves)) if driver.mounted_as(dataset) else [])
    ]
    try:
        needs = await in_thread(driver.needs, dataset)
    except ZfsfsError:
        return found
    return found + [{"what": each.what, "snapshot": each.snapshot.name, "name": each.name} for each in needs]


def packed(found: list[dict[str, Any]]) -> bytes:
    """The attribute's value: as many as there is room for, and how many were left out."""
    lines: list[str] = []
    size = 0
    for each in found:
        line = json.dumps(each)
        size += len(line) + 2
        if size > _ROOM:
            lines.append(json.dumps({"what": f"and {len(found) - len(lines)} more"}))
            break
        lines.append(line)
    return f"[{', '.join(lines)}]".encode()


async def explain(tree: Tree, dataset: Dataset) -> str:
    """Who holds a dataset that can't be destroyed; '' when nobody is found. Everybody may read it in the events, so
    it names no file."""
    driver = tree.store.driver

    def devices() -> dict[int, bytes]:
        found = {}
        source = driver.mounted_as(dataset)
        info = driver.info(dataset) if source else None
        targets: list[Dataset | Snapshot] = [dataset, *(each.snapshot for each in info.snapshots)] if info else []
        for target in targets:
            try:
                with viewing(driver, target) as fd:
                    found[os.fstat(fd).st_dev] = b""
            except (ZfsfsError, OSError):
                continue
        return found

    natives = await in_thread(devices)
    wanted = Wanted(tree.device, natives, {os.fsencode(driver.mounted_as(dataset) or "-"): b""})
    areas = tree.showing(dataset)
    told = []
    for each in await _in_time(lambda: holders(wanted, thorough=True)):
        node = tree.table.showing(each.ino)
        if (node.area in areas) if node is not None else (each.at and not each.ino and not each.path):
            told.append(_told(each, b"", -1))
    told += await of_dataset(driver, dataset)
    return "; ".join(dict.fromkeys(sentence(each) for each in told))

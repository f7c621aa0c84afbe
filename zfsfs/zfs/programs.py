"""The channel programs that read (zfs-program(8)): their text, what they are given and what they give back.

Names are arguments, never part of a program's text. A program sees one state of the pool from its start to its
end. Listing a dataset whose name has 254 bytes or more brings OpenZFS 2.3's kernel down: those are skipped, as is
whatever is longer than we give names to.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zfsfs.driver import DatasetInfo, SnapshotInfo
from zfsfs.errors import InvalidName
from zfsfs.names import MAX_FULL_NAME, SNAPSHOT_ROOM, Dataset, PoolName, Snapshot

#: The most that the kernel allows (zfs_lua_max_instrlimit, zfs_lua_max_memlimit); some 100,000 datasets fit.
INSTRUCTIONS = 100_000_000
MEMORY = 100 << 20
#: For programs of a few steps: the library allocates as much for the answer.
SMALL = 10 << 20

_U64 = (1 << 64) - 1
_TRUE = ("on", "yes", "1", "true")

# Every line that names a dataset opens it and lets it go again, which is what a listing costs: so nothing is asked
# that follows from other answers. A mark for destruction needs a clone or a hold, an order two snapshots.
# Snapshots come as one string of numbers each: a table each costs three times as much on the way to Python.
READ = b"""
local wanted = (...)["argv"]
local found, longest = {}, tonumber(wanted["longest"])
local function number(name, property)
    return (zfs.get_prop(name, property)) or 0
end
local function read_snapshot(name, ordered)
    local clones, holds = number(name, "numclones"), number(name, "userrefs")
    local deferred = clones + holds > 0 and tostring((zfs.get_prop(name, "defer_destroy")))
    return (ordered and number(name, "createtxg") or 0) .. " " .. number(name, "guid")
        .. " " .. clones .. " " .. holds .. " " .. tostring(deferred)
end
local function read(name)
    if #name > longest then return end
    local one = {guid = number(name, "guid"), created = number(name, "creation")}
    one["origin"] = (zfs.get_prop(name, "origin"))
    local names, snapshots, properties = {}, {}, {}
    for snapshot in zfs.list.snapshots(name) do names[#names + 1] = snapshot end
    for _, snapshot in ipairs(names) do
        snapshots[string.sub(snapshot, #name + 2)] = read_snapshot(snapshot, #names > 1)
    end
    for property, value, source in zfs.list.properties(name) do
        if source == name then properties[property] = value end
    end
    if #names > 0 then one["snapshots"] = snapshots end
    if next(properties) then one["properties"] = properties end
    found[name] = one
end
for _, name in ipairs(wanted["datasets"]) do
    if zfs.exists(name) then
        read(name)
        if wanted["children"] then
            for child in zfs.list.children(name) do read(child) end
        end
    end
end
return found
"""

SPACE = b"""
local name = (...)["argv"][1]
if not zfs.exists(name) then return nil end
return {used = (zfs.get_prop(name, "used")), referenced = (zfs.get_prop(name, "referenced"))}
"""

WRITTEN = b"""
local name = (...)["argv"][1]
if not zfs.exists(name) then return nil end
local own = 0
for snapshot in zfs.list.snapshots(name) do own = own + 1 end
local origin = (zfs.get_prop(name, "origin"))
return {own = own, origin = origin or "", written = (zfs.get_prop(name, "written"))}
"""

CLONES = b"""
local name, found = (...)["argv"][1], {}
if zfs.exists(name) then
    for clone in zfs.list.clones(name) do found[#found + 1] = clone end
end
return found
"""


def reading(pool: PoolName, datasets: Sequence[Dataset], *, children: bool) -> dict[bytes, Any]:
    """What READ is given."""
    return {
        b"datasets": [pool.full(each).encode() for each in datasets],
        b"children": children,
        b"longest": b"%d" % (MAX_FULL_NAME - SNAPSHOT_ROOM),  # a program takes no integers
    }


def parse_listing(pool: PoolName, found: Mapping[bytes, Any]) -> dict[Dataset, DatasetInfo]:
    """What READ gave back; what our types can't name is left out."""
    prefix = pool.name + "/"
    listing = {}
    for full, one in found.items():
        dataset = Dataset.parse(full.decode().removeprefix(prefix))
        if dataset is not None:
            listing[dataset] = _parse_dataset(prefix, dataset, one)
    return listing


def _parse_dataset(prefix: str, dataset: Dataset, one: Mapping[bytes, Any]) -> DatasetInfo:
    origin_name = one.get(b"origin", b"").decode()
    origin = _parse_snapshot(prefix, origin_name)
    snapshots = sorted(_parse_snapshots(dataset, one.get(b"snapshots", {})), key=lambda each: each[0])
    return DatasetInfo(
        dataset,
        one[b"guid"] & _U64,
        origin,
        "" if origin else origin_name,
        tuple(info for _, info in snapshots),
        {name.decode(): value.decode("utf-8", "replace") for name, value in one.get(b"properties", {}).items()},
        one[b"created"],
    )


def _parse_snapshots(dataset: Dataset, found: Mapping[bytes, bytes]) -> Iterator[tuple[int, SnapshotInfo]]:
    """(transaction group of its making, snapshot): no dataset has two of one group."""
    for name, numbers in found.items():
        try:
            snapshot = Snapshot(dataset, name.decode())
        except InvalidName:
            continue  # a name of the kernel's own, for a receive that is going on
        txg, guid, clones, holds, deferred = numbers.decode().split()
        yield int(txg), SnapshotInfo(snapshot, int(guid) & _U64, int(clones), deferred in _TRUE, int(holds))


def _parse_snapshot(prefix: str, full: str) -> Snapshot | None:
    match = re.fullmatch(r"([^@]+)@(.+)", full.removeprefix(prefix)) if full.startswith(prefix) else None
    dataset = Dataset.parse(match[1]) if match else None
    return Snapshot(dataset, match[2]) if match and dataset else None

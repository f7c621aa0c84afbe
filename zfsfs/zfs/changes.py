"""Several steps as one channel program (zfs-program(8)), and what a step's error numbers mean.

Names are arguments, never part of the program's text. What a program changes is on stable storage with one
transaction group, so a crash keeps all of it or none; an error keeps the steps before it.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import NamedTuple

from zfsfs.driver import Destroy, DestroySnapshot, Promote, RenameSnapshot, SetProperty, Step, TakeSnapshot
from zfsfs.errors import DriverError, Exists, Missing
from zfsfs.names import Dataset, PoolName, Snapshot
from zfsfs.zfs.library import Meanings, busy


class Failure(NamedTuple):
    """Which step failed, with what number, and the names that the kernel gave with it."""

    step: int
    errno: int
    details: str


# Each step is five strings: "check" or "", the verb, up to three arguments. Destroying or renaming a snapshot
# that isn't there is no error to the kernel, hence `exists`.
PROGRAM = b"""
local argv = (...)["argv"]
local function carry_out(how, at)
    local verb, a, b, c = argv[at + 1], argv[at + 2], argv[at + 3], argv[at + 4]
    if verb == "snapshot" then return how.snapshot(a) end
    if verb == "promote" then return how.promote(a) end
    if verb == "destroy" then return how.destroy(a) end
    if verb == "set_prop" then return how.set_prop(a, b, c) end
    if verb == "destroy_snapshot" then
        if not zfs.exists(a) then return ENOENT end
        return how.destroy{a, defer = true}
    end
    if verb == "rename_snapshot" then
        if not zfs.exists(a .. "@" .. b) then return ENOENT end
        return how.rename_snapshot(a, b, c)
    end
    error("no such verb: " .. verb)
end
local function failed(at, number, details)
    local names = ""
    for _, name in pairs(details or {}) do names = names .. " " .. tostring(name) end
    return {step = (at - 1) / 5, errno = number, details = names}
end
for at = 1, #argv, 5 do
    if argv[at] == "check" then
        local number, details = carry_out(zfs.check, at)
        if number ~= 0 then return failed(at, number, details) end
    end
end
for at = 1, #argv, 5 do
    local number, details = carry_out(zfs.sync, at)
    if number ~= 0 then return failed(at, number, details) end
end
return {step = #argv / 5, errno = 0}
"""


def encode(pool: PoolName, steps: Sequence[Step]) -> list[bytes]:
    """What PROGRAM is given: the steps, each marked when it can be checked before anything is done.

    It can when no step before it changes what its check looks at. What a promotion touches is not to be read from
    its names, so nothing is checked ahead after one, nor is one after snapshots have gone or changed their names.
    """
    flat: list[bytes] = []
    touched: set[Dataset] = set()
    promoted = removed = False
    for step in steps:
        verb, dataset, arguments = _encode_step(pool, step)
        late = removed if isinstance(step, Promote) else dataset in touched
        flat += [b"" if promoted or late else b"check", verb, *(each.encode() for each in arguments)]
        flat += [b""] * (3 - len(arguments))
        promoted |= isinstance(step, Promote)
        removed |= isinstance(step, Destroy | DestroySnapshot | RenameSnapshot)
        if not isinstance(step, SetProperty):
            touched.add(dataset)
    return flat


def _encode_step(pool: PoolName, step: Step) -> tuple[bytes, Dataset, list[str]]:
    match step:
        case TakeSnapshot(snapshot):
            return b"snapshot", snapshot.dataset, [pool.full(snapshot)]
        case Promote(dataset):
            return b"promote", dataset, [pool.full(dataset)]
        case Destroy(dataset):
            return b"destroy", dataset, [pool.full(dataset)]
        case DestroySnapshot(snapshot):
            return b"destroy_snapshot", snapshot.dataset, [pool.full(snapshot)]
        case RenameSnapshot(snapshot, name):
            pool.full(Snapshot(snapshot.dataset, name))
            return b"rename_snapshot", snapshot.dataset, [pool.full(snapshot.dataset), snapshot.name, name]
        case SetProperty(dataset, name, value):
            return b"set_prop", dataset, [pool.full(dataset), name, value]


def subject(pool: PoolName, step: Step) -> str:
    """The full name of what a step is about."""
    return pool.full(step.dataset if isinstance(step, Promote | Destroy | SetProperty) else step.snapshot)


DESTROY: Meanings = {
    errno.EEXIST: busy("has datasets beneath it"),
    errno.EBUSY: busy("is looked into or mounted, or has snapshots"),
}
DESTROY_SNAPSHOT: Meanings = {
    errno.EEXIST: busy("has clones"),
    errno.EBUSY: busy("is held, or looked into"),
}
TAKE_SNAPSHOT: Meanings = {errno.ENOENT: lambda what: Missing(f"{what}: there is no such dataset to snapshot")}


def meanings(pool: PoolName, step: Step, details: str) -> Meanings:
    """What error numbers say of this step beyond what they say of any."""
    match step:
        case TakeSnapshot():
            return TAKE_SNAPSHOT
        case Promote():
            return {
                errno.EEXIST: lambda what: Exists(
                    f"{what} and what it was cloned from both have the snapshot{details}"
                ),
                errno.EINVAL: lambda what: DriverError(f"{what} is no clone", errno.EINVAL),
                errno.EBUSY: busy("can't be promoted: a snapshot that would move is looked into or mounted"),
            }
        case Destroy():
            return DESTROY
        case DestroySnapshot():
            return DESTROY_SNAPSHOT
        case RenameSnapshot(snapshot, name):
            target = pool.full(Snapshot(snapshot.dataset, name))
            return {errno.EEXIST: lambda _: Exists(f"{target} exists")}
        case SetProperty(_, name, _):
            return {errno.EINVAL: lambda what: DriverError(f"{what}: {name!r} is no user property", errno.EINVAL)}

"""Who holds something: processes with their working directory, root, executable, a mapping or an open file in it,
and mounts of it in any mount namespace.

Paths read differently in another namespace, so what is compared are device and inode numbers, and the device, root
and source of each line of /proc/PID/mountinfo. Sources: proc(5), statx(2).

Guarantees
- Nothing here asks a filesystem: what processes refer to is looked at without asking whoever serves it. All the
  same these are many calls: never make them from the event loop.
- What a process chose itself (its name) is safe to print on one line.

Looking thoroughly may wait for a process that is stuck (`/proc/PID/maps`, `/proc/PID/cmdline`); the rest can't.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from zfsfs import syscalls
from zfsfs.names import shown
from zfsfs.native.processes import command_of, look_into, processes, read_proc, runs, unescaped

#: What a process may refer to, by its name under /proc/PID.
PLACES = {"cwd": "working directory", "root": "root directory"}
_EXECUTABLE = {"exe": "executable"}

_CONTAINER = re.compile(
    rb"[^0-9a-f]([0-9a-f]{64})(?:[^0-9a-f]|\Z)"
    rb"|/(?:machine-|systemd-nspawn@)([^/]+)\.(?:scope|service)"
    rb"|/lxc(?:\.payload\.|/)([^/]+)"
)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds something. `path` is what, from the tree's root; for what it refers to in the tree it is
    empty and `ino` tells it. `at` is how the process itself names it: the file of a native mount, or a mount point in
    the namespace with this number, in which the process is one of several. `container` is the id or name of the one
    that the process is in, as far as its control group tells."""

    pid: int
    uid: int
    command: str
    what: str
    ino: int = 0
    path: bytes = b""
    at: bytes = b""
    namespace: int = 0
    container: str = ""
    groups: frozenset[int] = frozenset()

    def __str__(self) -> str:
        at = f" at {shown(self.at)}" if self.namespace else ""
        inside = f" in container {self.container[:12]}" if self.container else ""
        return f"{self.what}{at} of {self.command} (pid {self.pid}){inside}"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: the tree's device, and what datasets are at natively: their devices and their names in mount
    tables, each with its path from the tree's root."""

    device: int
    natives: Mapping[int, bytes] = field(default_factory=dict)
    sources: Mapping[bytes, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """A line of a mountinfo: what is mounted, from the tree's root, and where; `native`: of a dataset itself."""

    path: bytes
    at: bytes
    native: bool
    device: int


def mounts_in(mountinfo: bytes, wanted: Wanted) -> Iterator[Mount]:
    """The mounts in a mountinfo of parts of the tree, and of the datasets looked for."""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.split(b" ")
        if len(fields) < 5 or len(kind) < 2 or not re.fullmatch(rb"\d{1,9}:\d{1,9}", fields[2]):
            continue
        major, _, minor = fields[2].partition(b":")
        device = os.makedev(int(major), int(minor))
        at = unescaped(fields[4])
        if device == wanted.device:
            root = unescaped(fields[3]).removesuffix(b"//deleted")
            if root != b"/":
                yield Mount(root.lstrip(b"/"), at, native=False, device=device)
            continue
        path = wanted.natives.get(device)
        if path is None and kind[0] == b"zfs":
            path = wanted.sources.get(unescaped(kind[1]).partition(b"@")[0])
        if path is not None:
            yield Mount(path, at, native=True, device=device)


def container_of(cgroup: bytes) -> str:
    """The id or name of a container in a /proc/PID/cgroup; '' when there is none that we can tell."""
    for line in cgroup.splitlines():
        match = _CONTAINER.search(line)
        if match:
            return shown(next(group for group in match.groups() if group is not None))
    return ""


class _Process:
    """What is looked up of a process once it is known to hold something."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._known: Holder | None = None

    def holder(self, what: str, **more: Any) -> Holder:
        if self._known is None:
            status = read_proc(f"/proc/{self._pid}/status")
            uid = re.search(rb"^Uid:\s+\d+\s+(\d+)", status, re.MULTILINE)
            gids = re.findall(rb"^(?:Gid:\s+\d+\s+(\d+)|Groups:[ \t]*(.*))", status, re.MULTILINE)
            groups = frozenset(int(gid) for found in gids for text in found for gid in text.split())
            command = command_of(self._pid)
            container = container_of(read_proc(f"/proc/{self._pid}/cgroup"))
            owner = int(uid[1]) if uid else -1
            self._known = Holder(self._pid, owner, command, what, container=container, groups=groups)
        return replace(self._known, what=what, **more)


def holders(wanted: Wanted, *, thorough: bool = False, pids: Iterable[int] | None = None) -> list[Holder]:
    """All holders of anything that is wanted, but ourselves: by working and root directory and by mounts, and when
    `thorough` by executables, open files and mappings, too."""
    found: list[Holder] = []
    everyone = {pid: _Process(pid) for pid in (processes() if pids is None else pids)}
    natives = dict(wanted.natives)
    namespaces: dict[int, list[Mount]] = {}
    sharing: dict[tuple[int, int], list[int]] = {}
    for pid in everyone:
        try:
            namespace, uid = os.stat(f"/proc/{pid}/ns/mnt").st_ino, os.stat(f"/proc/{pid}").st_uid
        except OSError:
            continue
        if namespace not in namespaces:
            namespaces[namespace] = list(mounts_in(look_into(f"/proc/{pid}/mountinfo"), wanted))
        if namespaces[namespace]:
            sharing.setdefault((namespace, uid), []).append(pid)
    # A process for each user: who holds something may depend on what a user may do with it. The kernel's own threads
    # are in the first namespace, too, and stand for nobody.
    for (namespace, _), sharers in sharing.items():
        process = everyone[next((pid for pid in sharers if runs(pid)), sharers[0])]
        for mount in namespaces[namespace]:
            what = "native mount" if mount.native else "mount"
            found.append(process.holder(what, path=mount.path, at=mount.at, namespace=namespace))
            if mount.native:
                natives[mount.device] = mount.path
    # A snapshot's device is known by its mounts only.
    wanted = replace(wanted, natives=natives)
    for pid, process in everyone.items():
        found += _by_reference(pid, process, wanted, PLACES | _EXECUTABLE if thorough else PLACES)
        if thorough:
            found += _by_open_file(pid, process, wanted)
            found += _by_mapping(pid, process, wanted)
    return found


def _by_reference(pid: int, process: _Process, wanted: Wanted, places: dict[str, str]) -> Iterator[Holder]:
    for place, what in places.items():
        path = f"/proc/{pid}/{place}"
        try:
            device, ino = syscalls.identity(path)
        except OSError:
            continue  # it is gone, or not ours to look at
        if device == wanted.device:
            yield process.holder(what, ino=ino)
        elif device in wanted.natives:
            yield process.holder(what, path=wanted.natives[device], at=_target(path))


def _by_open_file(pid: int, process: _Process, wanted: Wanted) -> Iterator[Holder]:
    try:
        numbers = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    yield from _by_reference(pid, process, wanted, {f"fd/{number}": "open file" for number in numbers})


def _by_mapping(pid: int, process: _Process, wanted: Wanted) -> Iterator[Holder]:
    seen = set()
    for line in read_proc(f"/proc/{pid}/maps").splitlines():
        fields = line.split(b" ", 5)
        if len(fields) < 5 or fields[4] == b"0" or (fields[3], fields[4]) in seen:
            continue
        seen.add((fields[3], fields[4]))
        major, _, minor = fields[3].partition(b":")
        device = os.makedev(int(major, 16), int(minor, 16))
        if device == wanted.device:
            yield process.holder("mapping", ino=int(fields[4]))
        elif device in wanted.natives:
            at = fields[5].strip() if len(fields) > 5 else b""
            yield process.holder("mapping", path=wanted.natives[device], at=at)


def _target(path: str) -> bytes:
    try:
        return os.fsencode(os.readlink(path))
    except OSError:
        return b""


def sends(leaves: frozenset[bytes]) -> list[Holder]:
    """The `zfs send` commands under way for a dataset, by the last component of its name: its other components may
    have changed since the command was started."""
    found = []
    for pid in processes():
        if read_proc(f"/proc/{pid}/comm") != b"zfs\n":
            continue
        words = read_proc(f"/proc/{pid}/cmdline").split(b"\0")
        if b"send" not in words[1:2]:
            continue
        for word in words[2:]:
            dataset, at, _ = word.partition(b"@")
            leaf = dataset.rpartition(b"/")[2]
            # What was given up has the beginning of its former name.
            if at and (leaf in leaves or leaf[:32].strip() in leaves):
                found.append(_Process(pid).holder("zfs send", at=word))
                break
    return found


def sentence(told: dict[str, Any]) -> str:
    """A holder as the attribute `user.zfsfs.holders` has it, for a person to read."""
    text = str(told["what"])
    if "pid" in told:
        text += f" by {told['command']} (pid {told['pid']})"
    if "name" in told:
        text += f" {told['name']} of @{told['snapshot']}"
    text += "".join(f" {word} {told[key]}" for word, key in (("of", "path"), ("at", "at")) if told.get(key))
    text += f" in mount namespace {told['namespace']}" if "namespace" in told else ""
    return text + (f" in container {told['container'][:12]}" if "container" in told else "")

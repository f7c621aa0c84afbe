"""Who has a dataset natively: mounts of it in any mount namespace, and processes that are in it without one.

Nothing tells when the last mount of something has gone, so /proc is looked at. A mount is known by the device and
the root of its line in /proc/PID/mountinfo (proc(5)). Where each dataset is a filesystem of its own its device is
enough; otherwise its root is the directory's path in the filesystem that it lies on.

What is left of a mount that was detached lazily (umount -l, or with its namespace) is in no mountinfo: working
directories, roots and open files are looked at too, before something is taken to be free.

Nobody's filesystem is asked here. All the same these are many calls: make them from a thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from zfsfs import syscalls
from zfsfs.errors import MountError
from zfsfs.native.processes import SHORT, command_of, look_into, processes, read_proc, unescaped


@dataclass(frozen=True, slots=True)
class Where:
    """How a dataset shows in mountinfo (`device`, `root`) and to fstat(2) (`st_dev`)."""

    device: bytes
    root: bytes
    st_dev: int


@dataclass(frozen=True, slots=True)
class Found:
    """A process that has it, or is one of those that see a mount of it (at `at`, in their namespace)."""

    pid: int
    command: str
    what: str
    at: str = ""

    def __str__(self) -> str:
        return f"{self.what} of {self.command} (pid {self.pid})"


def where(fd: int, *, own_filesystem: bool) -> Where:
    """How the dataset with this root directory shows. Raises MountError where that can't be told."""
    st_dev = os.fstat(fd).st_dev
    if own_filesystem:
        return everywhere(st_dev)
    found = re.search(rb"^mnt_id:\s*(\d+)", read_proc(f"/proc/self/fdinfo/{fd}"), re.MULTILINE)
    path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
    for line in read_proc("/proc/self/mountinfo").splitlines():
        fields = line.split(b" ")
        if found and fields[0] == found[1]:
            below = os.path.relpath(path, unescaped(fields[4]))
            return Where(fields[2], os.path.normpath(os.path.join(unescaped(fields[3]), below)), st_dev)
    raise MountError(f"{os.fsdecode(path)} lies on no mount that can be seen")


def everywhere(st_dev: int) -> Where:
    """How all of a filesystem shows."""
    return Where(b"%d:%d" % (os.major(st_dev), os.minor(st_dev)), b"/", st_dev)


def look(wanted: Mapping[Where, int], *, thoroughly: bool) -> dict[Where, list[Found]]:
    """Who has each of them. The number is a descriptor of its root; ours don't count. Raises OSError where nothing
    can be seen now, for want of descriptors or memory."""
    found: dict[Where, list[Found]] = {each: [] for each in wanted}
    namespaces: set[int] = set()
    # We first: what is mounted in our own namespace is named after nobody else.
    others = processes()
    pids = [os.getpid(), *others]
    for pid in pids:
        try:
            namespace = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        except OSError:
            continue  # it has gone, or is not ours to look at
        if namespace not in namespaces:
            namespaces.add(namespace)
            for place, at in _mounts(look_into(f"/proc/{pid}/mountinfo"), wanted):
                found[place].append(Found(pid, command_of(pid), f"mount at {os.fsdecode(at)}", os.fsdecode(at)))
    if thoroughly:
        for pid in others:
            for place, what in _referred(pid, wanted):
                found[place].append(Found(pid, command_of(pid), what))
    return found


def _mounts(mountinfo: bytes, wanted: Mapping[Where, int]) -> Iterator[tuple[Where, bytes]]:
    for line in mountinfo.splitlines():
        fields = line.split(b" ")
        for each in wanted:
            if len(fields) > 4 and fields[2] == each.device:
                root = unescaped(fields[3]).removesuffix(b"//deleted")
                if each.root == b"/" or root == each.root or root.startswith(each.root + b"/"):
                    yield each, unescaped(fields[4])


def _referred(pid: int, wanted: Mapping[Where, int]) -> Iterator[tuple[Where, str]]:
    links = {"cwd": "working directory", "root": "root directory"}
    try:
        links |= {f"fd/{number}": "open file" for number in os.listdir(f"/proc/{pid}/fd")}
    except OSError as failure:
        if failure.errno in SHORT:
            raise
    for link, what in links.items():
        path = f"/proc/{pid}/{link}"
        try:
            st_dev, st_ino = syscalls.identity(path)
        except OSError:
            continue
        for each, root in wanted.items():
            if st_dev == each.st_dev and (each.root == b"/" or _is_beneath(path, st_ino, root)):
                yield each, what


def _is_beneath(link: str, st_ino: int, root: int) -> bool:
    """Whether what a link in /proc stands for is where a mount without a namespace would have it: such a mount names
    its files from its own root. No link is followed on the way there: it may lead to what others have open."""
    try:
        fd = syscalls.open_beneath(root, os.fsencode(os.readlink(link)).lstrip(b"/") or b".")
    except OSError as failure:
        if failure.errno in SHORT:
            raise
        return False
    try:
        return os.fstat(fd).st_ino == st_ino
    finally:
        os.close(fd)

"""zfsfs who: who holds a directory, a file or a dataset."""

from __future__ import annotations

import argparse
import errno
import json
import os
from typing import TYPE_CHECKING, Any

from zfsfs import mountpoint as mountpoints
from zfsfs.cli.mounted import read_status
from zfsfs.errors import UsageError
from zfsfs.names import shown

if TYPE_CHECKING:
    from zfsfs.cli.parsing import Commands

_NAME = "user.zfsfs.holders"


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    who = commands.add_parser("who", help="who holds a directory, a file or a dataset: processes, mounts, zfs holds")
    who.set_defaults(run=_who)
    who.add_argument("--json", action="store_true")
    who.add_argument("path", metavar="PATH", help="in a mounted tree, or the name of a dataset of its store")


def _who(options: argparse.Namespace) -> None:
    from zfsfs.fs.holders import sentence

    path = options.path if os.path.lexists(options.path) else _path_of_dataset(options.path)
    if path is None:
        return
    kind = "a directory or file in a mounted tree"
    nothing = UsageError(f"{shown(os.fsencode(path))} is not {kind}; try the directory above")
    if not mountpoints.serves(path):  # elsewhere anybody may have made up the attribute
        raise nothing
    try:
        found: list[dict[str, Any]] = json.loads(os.getxattr(path, _NAME))
    except OSError as failure:
        if failure.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM):
            raise nothing from None
        raise
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for each in found:
        print(sentence(each))
    if not found:
        print(f"nobody holds {shown(os.fsencode(path))}")


def _path_of_dataset(name: str) -> str | None:
    """Where the dataset of that name is in a mounted tree; None for one that is nowhere in it, of which it is told
    why. Raises UsageError for any other."""
    for store, mountpoint in mountpoints.trees():
        if not name.startswith(store + "/"):
            continue
        relative, status = name.removeprefix(store + "/"), read_status(mountpoint)
        for group in ("builds", "sessions", "caches"):
            for each in status[group]:
                if each["dataset"] != relative:
                    continue
                if each["path"] is not None:
                    return os.path.join(mountpoint, each["path"])
                print(f"{name} has no path: its build is being discarded, or has only just begun")
                return None
        group, _, leaf = relative.partition("/")
        if group == "result" and leaf:
            return os.path.join(mountpoint, "results", leaf)
        for each in status["waiting"]:
            if each["dataset"] == relative:
                print(f"{name} waits to be destroyed: {each['reason']}")
                return None
    raise UsageError(f"{name} is neither a path nor a dataset of a mounted store")

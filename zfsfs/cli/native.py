"""Commands that mount datasets natively: exec, bind, unbind."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from zfsfs.errors import MountError, UsageError, ZfsfsError
from zfsfs.native.launch import FAILED, complain, execute

if TYPE_CHECKING:
    from zfsfs.cli.parsing import Commands

_READ_ONLY = "mount what could be written read-only; the tree can then be written meanwhile"


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    run = commands.add_parser(
        "exec",
        help="run a command with datasets natively at their paths",
        usage="zfsfs exec [--cwd DIR] [--read-only] PATH... -- COMMAND [ARGUMENT...]",
        description="Runs COMMAND in a mount namespace of its own, in which the dataset of each PATH (a build, a "
        "result or a cache's session) lies over PATH. The exit code is COMMAND's; 125 when it could not be set up, "
        "126 when COMMAND can't be executed, 127 when there is no such COMMAND.",
    )
    run.set_defaults(run=_exec)
    run.add_argument("--cwd", metavar="DIR", help="where COMMAND finds itself")
    run.add_argument("--read-only", action="store_true", help=_READ_ONLY)
    run.add_argument("paths", metavar="PATH", nargs="+")
    bind = commands.add_parser("bind", help="mount a dataset natively, until it is unmounted")
    bind.set_defaults(run=_bind)
    bind.add_argument("--read-only", action="store_true", help=_READ_ONLY)
    bind.add_argument(
        "--map-users",
        metavar="INSIDE:OUTSIDE:COUNT",
        action="append",
        help="show what belongs to users from INSIDE on (and groups) as belonging to those from OUTSIDE on, for "
        "containers in user namespaces; can be given again; root only",
    )
    bind.add_argument("path", metavar="PATH")
    bind.add_argument("target", metavar="TARGET")
    unbind = commands.add_parser("unbind", help="unmount what bind has mounted")
    unbind.set_defaults(run=_unbind)
    unbind.add_argument("target", metavar="TARGET")


def _exec(options: argparse.Namespace) -> None:
    from zfsfs.native.client import Natives

    if not options.words:
        raise UsageError("exec needs '--' and a command; try zfsfs exec --help")
    try:
        with Natives(options.paths, read_only=options.read_only) as natives:
            natives.enter()
        if options.cwd is not None:
            os.chdir(options.cwd)
    except (ZfsfsError, OSError) as failure:
        text = f"{failure.filename}: {failure.strerror}" if isinstance(failure, OSError) else failure
        complain(str(text))
        sys.exit(FAILED)
    execute(options.words)


def _bind(options: argparse.Namespace) -> None:
    from zfsfs.native.client import Natives
    from zfsfs.native.users import namespace_of, parse_map

    ranges = [parse_map(text) for text in options.map_users or ()]
    target = os.open(options.target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    users = namespace_of(ranges) if ranges else -1
    with Natives([options.path], read_only=options.read_only, users=users) as natives:
        natives.bind(target)


def _unbind(options: argparse.Namespace) -> None:
    from zfsfs.native.client import unbind

    if not unbind(options.target):
        raise MountError(f"{options.target} is no native mount of a zfsfs that runs")

"""The command line. A mistake prints one line and ends with the exit code of its error; see `zfsfs.errors`.

Each command stands in a module with others of its kind, and is added to the parser by that module's `add`.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import NoReturn

from zfsfs.cli import building, mounted, mounting, native, resting, who
from zfsfs.cli.parsing import Parser, split
from zfsfs.errors import ZfsfsError
from zfsfs.names import one_line

_EPILOG = """\
STORE is a ZFS dataset (tank/ci), or a path that begins with '/' or '.' and names a directory for a store
without ZFS. Exit codes: 0 done, 1 failed, 2 usage, 3 store unavailable, 4 busy, 5 store locked, 6 mountpoint,
7 inconsistent store.

SIGTERM ends the daemon as 'umount --force' does: open sessions are released, running builds discarded. Killed before
its end or by a power cut, it loses no result that was published, and no cache."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="zfsfs", description="A filesystem whose directories are a build store.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for module in (mounting, mounted, native, building, who, resting):
        module.add(commands)
    return parser


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    try:
        words, command = split(sys.argv[1:] if arguments is None else arguments)
        options = _parser().parse_args(words)
        options.words = command
        options.run(options)
        code = 0
    except ZfsfsError as error:
        print(f"zfsfs: {one_line(str(error))}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        code = 1
    except OSError as error:
        about = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        print(f"zfsfs: {one_line(f'{error.strerror or error}{about}')}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)

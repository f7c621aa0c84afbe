"""The command line. A mistake prints one line and ends with the exit code of its error; see `zfsfs.errors`.

Each command stands in a module with others of its kind, and is added to the parser by that module's `add`. Only the
module of the command that is called is imported: `zfsfs exec` starts before every command that it runs.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import NoReturn

from zfsfs import __version__
from zfsfs.cli.parsing import Parser, split
from zfsfs.errors import ZfsfsError
from zfsfs.native.launch import complain

#: The modules in the order of their commands in the help.
_MODULES = {
    "mounting": ("mount",),
    "mounted": ("umount", "status"),
    "native": ("exec", "bind", "unbind"),
    "building": ("build",),
    "who": ("who",),
    "resting": ("check", "recover"),
}
_EPILOG = """\
STORE is a ZFS dataset (tank/ci), or a path that begins with '/' or '.' and names a directory for a store
without ZFS. Exit codes: 0 done, 1 failed, 2 usage, 3 store unavailable, 4 busy, 5 store locked, 6 mountpoint,
7 inconsistent store.

SIGTERM ends the daemon as 'umount --force' does: open sessions are released, running builds discarded. Killed before
its end or by a power cut, it loses no result that was published, and no cache."""


def _modules(command: str) -> Iterable[str]:
    """Those that add a command to the parser; all of them where it is none."""
    own = [module for module, commands in _MODULES.items() if command in commands]
    return own or _MODULES


def _parser(command: str) -> argparse.ArgumentParser:
    parser = Parser(
        prog="zfsfs", description="A filesystem whose directories are a build store.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"zfsfs {__version__}")
    # With `prog` no usage text is formatted for it.
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", prog="zfsfs")
    for module in _modules(command):
        importlib.import_module(f"zfsfs.cli.{module}").add(commands)
    return parser


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    _occupy_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as standard error: a path may be any bytes
    try:
        words, command = split(sys.argv[1:] if arguments is None else arguments)
        options = _parser(words[0] if words else "").parse_args(words)
        options.words = command
        options.run(options)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0
    except ZfsfsError as error:
        complain(str(error))
        code = error.exit_code
    except BrokenPipeError:
        code = 1
    except OSError as error:
        about = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
        complain(f"{error.strerror or error}{about}")
        code = 1
    except KeyboardInterrupt:
        code = 130
    flushed = _flushed()
    sys.exit(code or flushed)


def _occupy_streams() -> None:
    """Where standard input, output or error was closed when we were started, nothing that we open shall take its
    place. A command that we become finds it closed."""
    with suppress(OSError):  # there may be no such device
        while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(fd)


def _flushed() -> int:
    """Write what is still to be written to standard output; an exit code where that is impossible."""
    try:
        if sys.stdout is not None:  # as it is where it was closed when we were started
            sys.stdout.flush()
    except OSError as error:
        # Or Python would try it again at its end, and complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            complain(f"standard output can't be written: {error.strerror}")
        return 1
    return 0

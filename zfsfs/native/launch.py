"""Becoming a command, as if it had been run directly.

Exit codes of our own are those of env(1): 125 it could not be set up (a line on standard error says why), 126 not
executable, 127 not found.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from zfsfs import syscalls

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127

#: What Python puts in LC_CTYPE, for what it starts too, where the locale is C (PEP 538).
_COERCED = ("C.UTF-8", "C.utf8", "UTF-8")


def complain(text: str) -> None:
    """Print a line on standard error, whatever is in it. Where that can't be written, to a full disk or because
    nobody reads it, what is done goes on, and the exit code is the same."""
    from zfsfs.names import one_line  # here: what goes well has no time for it

    if sys.stderr is None:  # it was closed; print would take standard output
        return
    try:
        print(f"zfsfs: {one_line(text)}", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = None  # it would try again at the very end, and have Python exit with 120


def execute(command: Sequence[str]) -> NoReturn:
    """Become the command. Ends the process with 126 or 127 when that is impossible."""
    for each in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and what is ignored stays so
        signal.signal(each, signal.SIG_DFL)
    _give_back_locale()
    try:
        syscalls.execvp(command)
    except OSError as failure:
        complain(f"{command[0]}: {os.strerror(failure.errno or 0)}")
        missing = isinstance(failure, FileNotFoundError | NotADirectoryError)
        sys.exit(NOT_FOUND if missing else NOT_EXECUTABLE)


def _give_back_locale() -> None:
    if os.environ.get("LC_CTYPE") in _COERCED:
        with suppress(OSError), open("/proc/self/environ", "rb") as file:  # as it was when we started
            given = [each for each in file.read().split(b"\0") if each.startswith(b"LC_CTYPE=")]
            del os.environ["LC_CTYPE"]
            if given:
                os.environ["LC_CTYPE"] = os.fsdecode(given[0].partition(b"=")[2])

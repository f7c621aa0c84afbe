"""A command beneath native mounts, started by a process that has threads and so can't do it itself.

`command` gives what to start; the program of this module enters the namespace, becomes the user that the command
is for, and executes it: the process id that was started is the command's. Exit codes of its own are those of env(1):
125 it could not be set up (a line on standard error says why), 126 not executable, 127 not found.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from zfsfs.native.mounts import Layer

FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127


def command(
    layers: Sequence[Layer], directory: str, command: Sequence[str], user: tuple[int, int, list[int]] | None = None
) -> tuple[list[str], tuple[int, ...]]:
    """What to start, and the descriptors that it has to inherit. `directory` is where the command finds itself,
    looked up in the namespace; `user` is uid, gid and supplementary groups."""
    spec = {
        "layers": [
            [each.native.fd, each.native.detached, each.native.read_only, each.spot.path, *each.spot.identity]
            for each in layers
        ],
        "directory": directory,
        "user": user,
        "command": list(command),
    }
    # -I: what lies in the working directory or in PYTHONPATH is none of its business.
    program = [sys.executable, "-I", os.path.abspath(__file__), json.dumps(spec)]
    return program, tuple(each.native.fd for each in layers)


def execute(command: Sequence[str]) -> NoReturn:
    """Become the command. Ends the process with 126 or 127 when that is impossible."""
    sys.stdout.flush()
    for each in (signal.SIGPIPE, signal.SIGXFSZ):  # which Python ignores, and what is ignored stays so
        signal.signal(each, signal.SIG_DFL)
    try:
        os.execvp(command[0], list(command))
    except OSError as failure:
        print(f"zfsfs: {command[0]}: {failure.strerror}", file=sys.stderr)
        missing = isinstance(failure, FileNotFoundError | NotADirectoryError)
        sys.exit(NOT_FOUND if missing else NOT_EXECUTABLE)


def _main(text: str) -> NoReturn:
    from zfsfs.errors import ZfsfsError
    from zfsfs.handover import Native
    from zfsfs.native.mounts import Layer, Spot, enter

    spec = json.loads(text)
    layers = [
        Layer(Native(fd, detached, read_only), Spot(path, (device, inode)))
        for fd, detached, read_only, path, device, inode in spec["layers"]
    ]
    try:
        enter(layers)
        for layer in layers:
            os.close(layer.native.fd)
        if spec["user"] is not None:
            uid, gid, groups = spec["user"]
            os.setgroups(groups)
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
        os.chdir(spec["directory"])
    except (ZfsfsError, OSError) as failure:
        print(f"zfsfs: {failure}", file=sys.stderr)
        sys.exit(FAILED)
    execute(spec["command"])


if __name__ == "__main__":
    # By path and isolated, so the package has to be found by hand.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    _main(sys.argv[1])

"""`zfsfs` for tests that call it a thousand times: a process that has imported it forks for each command.

A command starts in some milliseconds then, instead of half a second; emulated, of some seconds. Apart from that it is
one as any other: its own process, working directory, environment and streams. How the command line starts by itself
is seen by the tests of commands, and wherever a test calls `python -m zfsfs`.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import changed_daemon

_MOST = 1 << 17
#: What commands import when they need it.
_LATER = ("cli.background", "daemon", "directory.driver", "zfs.driver")


def run(
    words: Sequence[str], timeout: float, change: tuple[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """As subprocess.run with the output captured. `change`: what `changed_daemon` is to change.

    Raises TimeoutExpired after so many seconds; the command is killed then.
    """
    out, err = os.pipe(), os.pipe()
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    umask = os.umask(0)
    os.umask(umask)
    request = {"words": words, "change": change, "cwd": os.getcwd(), "umask": umask, "env": dict(os.environ)}
    with ours:
        with its:
            socket.send_fds(_server(), [json.dumps(request).encode()], [its.fileno(), out[1], err[1]])
        os.close(out[1])
        os.close(err[1])
        end = time.monotonic() + timeout
        pid = int(ours.recv(_MOST))
        try:
            printed, complained = _read(out[0], err[0], end=end)
            ours.settimeout(max(end - time.monotonic(), 0.1))
            code = int(ours.recv(_MOST))
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(["zfsfs", *words], timeout) from None
    return subprocess.CompletedProcess(["zfsfs", *words], code, printed, complained)


def _read(*fds: int, end: float) -> tuple[str, ...]:
    """Everything up to the end of some pipes, which it closes. Raises TimeoutError."""
    texts = {fd: b"" for fd in fds}
    with selectors.DefaultSelector() as ready:
        for fd in fds:
            ready.register(fd, selectors.EVENT_READ)
        try:
            while ready.get_map():
                if not (keys := ready.select(max(end - time.monotonic(), 0))):
                    raise TimeoutError
                for key, _ in keys:
                    if data := os.read(key.fd, _MOST):
                        texts[key.fd] += data
                    else:
                        ready.unregister(key.fd)
        finally:
            for fd in fds:
                os.close(fd)
    return tuple(text.decode() for text in texts.values())


@cache
def _server() -> socket.socket:
    """The process that forks, started where a test first needs it; it ends with this one."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with its:
        command = [sys.executable, __file__, str(its.fileno())]
        # A session of its own: after ctrl-C the tests still unmount by it.
        process = subprocess.Popen(
            command, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL, cwd="/", start_new_session=True
        )

    def end() -> None:
        ours.close()
        process.wait()

    atexit.register(end)
    return ours


# In the process that forks.


def _request(requests: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for each request. Returns in the processes of commands, of which nobody waits for the others."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        data, fds, _, _ = socket.recv_fds(requests, _MOST, 3)
        if not data:
            os._exit(0)
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            requests.close()
            found: dict[str, Any] = json.loads(data)
            return found, fds
        for fd in fds:
            os.close(fd)


def _with_an_answer(caller: socket.socket, streams: list[int]) -> None:
    """Fork once more: the parent tells the caller of the child, and how it ended; the child returns."""
    child = os.fork()
    if child == 0:
        caller.close()
        return
    for fd in streams:
        os.close(fd)
    # The caller may have given up, and be gone.
    with suppress(BrokenPipeError):
        caller.send(str(child).encode())
        caller.send(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])).encode())
    os._exit(0)


def _become(request: dict[str, Any], streams: list[int]) -> None:
    for fd, stream in zip((1, 2), streams, strict=True):
        os.dup2(stream, fd)
        os.close(stream)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (what it knew of the other is wrong)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = ["zfsfs", *request["words"]]
    if request["change"]:
        how, gate = request["change"]
        changed_daemon.change(how, Path(gate))


if __name__ == "__main__":
    from zfsfs.cli import main

    for name in _LATER:
        importlib.import_module(f"zfsfs.{name}")
    request, (answer, *streams) = _request(socket.socket(fileno=int(sys.argv[1])))
    _with_an_answer(socket.socket(fileno=answer), streams)
    _become(request, streams)
    main()

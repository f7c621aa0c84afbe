"""A round that hangs must say where, and end: a hang loses nobody's data, but nobody gets at it either."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

_KTHREAD = 0x200000  # PF_KTHREAD of the kernel's include/linux/sched.h


def guard(seconds: float, log: Path) -> Callable[[], None]:
    """Begin to watch over this process; what is returned says that it goes on. After so long without that word, the
    stacks of whatever may be to blame and the end of the daemon's log go to standard error, and this process ends."""
    # The children, which are forked from us, have it too; a daemon writes into its log.
    faulthandler.enable()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends when all that has the pipe has ended
        _watch(reader, seconds, log)
        os._exit(0)
    os.close(reader)
    return lambda: os.write(writer, b".") and None


def _watch(reader: int, seconds: float, log: Path) -> None:
    while select.select([reader], [], [], seconds)[0]:
        if not os.read(reader, 100):
            return
    print(f"nothing has happened for {seconds:.0f} s", file=sys.stderr)
    print(*_waiting(), sep="\n", file=sys.stderr, flush=True)
    # Each shows its Python stacks in its end.
    for pid in {*_python()} - {os.getppid()}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
        time.sleep(1)
    with suppress(OSError):
        print(log.read_text()[-20000:], file=sys.stderr, flush=True)
    # Last, for in its end all is cleared away, we too.
    os.kill(os.getppid(), signal.SIGABRT)


def _python() -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if b"python" in (folder / "cmdline").read_bytes() and int(folder.name) != os.getpid():
                yield int(folder.name)


def _waiting() -> Iterator[str]:
    """The kernel's stacks of whoever may be what all wait for: Python's threads, processes that have ended but for a
    thread (they have no command line any more), and whatever has work to do or can't be interrupted."""
    python = {*_python()}
    for task in sorted(Path("/proc").glob("[0-9]*/task/[0-9]*"), key=lambda each: int(each.name)):
        pid = int(task.parts[2])
        with suppress(OSError):
            words = (task.parents[1] / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            _, _, rest = (task / "stat").read_text().partition("(")
            name, _, fields = rest.rpartition(")")
            state, *_, flags = fields.split()[:7]  # fields 3 to 9 of proc_pid_stat(5)
            ending = not words and not int(flags) & _KTHREAD
            if pid in python or ending or state in "DR":
                yield f"{pid} {words or name}, thread {task.name} ({name}): {state}\n{_stack(task)}"


def _stack(task: Path) -> str:
    try:
        return (task / "stack").read_text()
    except OSError as failure:  # of an ordinary user
        return f"{failure.strerror}\n"

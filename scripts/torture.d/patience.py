"""A round that hangs must say where, and end: a hang loses nobody's data, but nobody gets at it either."""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def guard(seconds: float, log: Path) -> Callable[[], None]:
    """Begin to watch over this process; what is returned says that it goes on. After so long without that word, the
    stacks of all Python processes and the end of the daemon's log go to standard error, and this process ends."""
    # The children, which are forked from us, have it too; a daemon writes into its log.
    faulthandler.enable()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.close(writer)
        _watch(reader, seconds, log)
        os._exit(0)
    os.close(reader)
    return lambda: os.write(writer, b".") and None


def _watch(reader: int, seconds: float, log: Path) -> None:
    while select.select([reader], [], [], seconds)[0]:
        if not os.read(reader, 100):
            return
    print(f"nothing has happened for {seconds:.0f} s", file=sys.stderr)
    found = list(_processes())
    for pid, name in found:
        print(f"{pid} {name}\n{_kernel_stacks(pid)}", file=sys.stderr)
    # Each shows its Python stacks in its end; the torture's own comes last, so that it can't clear away before.
    for pid, _ in sorted(found, key=lambda each: each[0] == os.getppid()):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGABRT)
        time.sleep(1)
    with suppress(OSError):
        print(log.read_text()[-20000:], file=sys.stderr)


def _processes() -> list[tuple[int, str]]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if "python" in words and int(folder.name) != os.getpid():
                found.append((int(folder.name), words))
    return found


def _kernel_stacks(pid: int) -> str:
    stacks = []
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):
            stacks.append(f"  {task.name}:\n" + (task / "stack").read_text())
    return "".join(stacks)

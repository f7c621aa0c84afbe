"""A process that was killed, but of which a thread lives on.

OpenZFS may take the news of a signal from a thread that is in one of its calls: renaming a dataset, it starts kernel
threads, and where a signal interrupts that, it clears TIF_SIGPENDING and tries again. SIGKILL stays pending, and the
thread goes on as if it had not come. In Python it soon waits for the interpreter's lock, for ever where its owner is
dead. So the process keeps its descriptors, and with them the lock of the store. To a process that ends the kernel
delivers no other signal; but a thread that is interrupted by ptrace(2) looks at what is pending.

Guarantees: only a thread is interrupted that the kernel has told to die. Assumes: root, or CAP_SYS_PTRACE.

Sources: spl_kthread_create in OpenZFS's spl-thread.c, called by way of dsl_dir_rename_check and dmu_objset_find_dp;
complete_signal and prepare_signal in the kernel's signal.c; proc_pid_status(5). Seen with OpenZFS 2.3.9: of 60
processes that were killed while six threads renamed datasets, 15 lived on.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

from zfsfs import syscalls

_KILL = 1 << (signal.SIGKILL - 1)
_ENDED = ("Z", "X")
#: Seconds between two looks: most threads end by themselves.
PAUSE = 0.1


def finish(pid: int, seconds: float, proc: Path = Path("/proc")) -> bool:
    """Wait until all threads of a killed process have ended, and interrupt those that don't know that they were
    killed. False when it was not killed, or goes on after so many seconds."""
    end, traced, lives = time.monotonic() + seconds, set[int](), False
    while True:
        threads = _threads(pid, proc)
        if all(state in _ENDED for state, _ in threads.values()):
            return True
        # Its first thread takes the signal at once, and a moment to end.
        lived, lives = lives, not _is_killed(pid, threads)
        if (lived and lives) or time.monotonic() > end:
            return False
        for thread in unaware(threads):
            with suppress(OSError):
                if thread not in traced:
                    syscalls.ptrace_seize(thread)
                    traced.add(thread)
                # Each time: it may have been in such a call still, and have lost the news again.
                syscalls.ptrace_interrupt(thread)
        time.sleep(PAUSE)
        for thread in traced:
            with suppress(ChildProcessError):
                # Who traces a thread is told of its end, and nobody else before.
                os.waitpid(thread, os.WNOHANG | syscalls.WALL)


def _is_killed(pid: int, threads: dict[int, tuple[str, int]]) -> bool:
    first, _ = threads.get(pid, ("Z", 0))
    return first in _ENDED or any(pending & _KILL for _, pending in threads.values())


def unaware(threads: dict[int, tuple[str, int]]) -> set[int]:
    """Those that were killed and neither have ended nor wait for something that lets no signal through."""
    return {thread for thread, (state, pending) in threads.items() if pending & _KILL and state not in (*_ENDED, "D")}


def _threads(pid: int, proc: Path) -> dict[int, tuple[str, int]]:
    """The state of each thread, and the signals that are pending for it alone."""
    found = {}
    with suppress(FileNotFoundError, ProcessLookupError):
        for name in os.listdir(proc / str(pid) / "task"):
            with suppress(FileNotFoundError, ProcessLookupError):
                text = (proc / str(pid) / "task" / name / "status").read_text()
                fields = dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)
                found[int(name)] = fields["State"][0], int(fields["SigPnd"], 16)
    return found

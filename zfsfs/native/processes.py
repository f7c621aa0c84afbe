"""What /proc tells of processes (proc(5)). Whoever asks for a process may find that it has gone."""

from __future__ import annotations

import errno
import os
import re
from typing import NamedTuple

from zfsfs.names import shown

#: What keeps us from looking, but does not make anything go away.
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


def read_proc(path: str) -> bytes:
    """A file of /proc; nothing where the process is gone, or not ours to look at."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def look_into(path: str) -> bytes:
    """The same, for who takes what is not seen for gone. Raises OSError where nothing can be seen now, for want of
    descriptors or memory."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as failure:
        if failure.errno in SHORT:
            raise
        return b""


def command_of(pid: int) -> str:
    """What a process calls itself, safe to print."""
    return shown(read_proc(f"/proc/{pid}/comm").removesuffix(b"\n") or b"?")


def unescaped(text: bytes) -> bytes:
    """A path as it is, of one in a mountinfo."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


class Process(NamedTuple):
    """A process, told from a later one of the same number by when it was started (in clock ticks since boot). Those
    that can't be seen, being in another namespace of processes, are one: number 0."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> Process | None:
        """The process that a number (its own or a thread's) stands for now."""
        found = _stat(pid)
        return found[0] if found is not None else _UNSEEN if pid == 0 else None


_UNSEEN = Process(0, 0)
_PF_KTHREAD = 0x00200000


def runs(pid: int) -> bool:
    """Whether a thread, not one of the kernel's own, is there, has not ended, and can be looked at."""
    fields = _fields(pid)
    return len(fields) > 6 and fields[0] not in (b"Z", b"X") and not _is_kernels(fields)


_KTHREADD = 2
_kernel: frozenset[int] = frozenset()  # of its children, those that are known to be the kernel's own


def kernel_threads() -> frozenset[int]:
    """The kernel's own threads, which hold nothing of anybody's, as far as they are known: each was looked at once
    (proc(5), of `children` and `stat`).
    Where we see no others than our own container's processes there are none. A number may be that of another process
    only if a thread ended and a helper that the kernel itself started has got its number since."""
    global _kernel
    children = {int(each) for each in read_proc(f"/proc/{_KTHREADD}/task/{_KTHREADD}/children").split()}
    if not children or not _is_kernels(_fields(_KTHREADD)):
        return frozenset()
    new = children - _kernel
    _kernel = frozenset(children & _kernel | {each for each in new if _is_kernels(_fields(each))})
    return _kernel


def _is_kernels(fields: list[bytes]) -> bool:
    return len(fields) > 6 and bool(int(fields[6]) & _PF_KTHREAD)


def processes() -> list[int]:
    """All processes that we see, but ourselves and threads of the kernel."""
    others = {int(name) for name in os.listdir("/proc") if name.isdigit()}
    return sorted(others - kernel_threads() - {os.getpid()})


def _fields(pid: int) -> list[bytes]:
    """Those of /proc/PID/stat, from the state on; none when there is no such thread."""
    return read_proc(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def started(pid: int) -> int:
    """When a process was started; -1 when there is none."""
    found = _stat(pid)
    return -1 if found is None else found[0].started


def _stat(pid: int) -> tuple[Process, int] | None:
    """A process and its parent's number."""
    if pid <= 0:
        return None
    fields = _fields(pid)
    if len(fields) < 20:
        return None
    group = next(
        (int(line[5:]) for line in read_proc(f"/proc/{pid}/status").splitlines() if line.startswith(b"Tgid:")), pid
    )
    if group != pid:
        return _stat(group)
    return Process(pid, int(fields[19])), int(fields[1])


def lineage(pid: int) -> list[Process]:
    """A process and those that it comes of, the first of all (init) left out: orphans are everybody's."""
    found: list[Process] = [] if pid else [_UNSEEN]
    each = _stat(pid)
    while each is not None and each[0].pid > 1 and each[0] not in found:
        found.append(each[0])
        each = _stat(each[1])
    return found


def with_variable(name: str, value: str) -> list[int]:
    """The processes that were started with this in their environment, as far as we may see it."""
    wanted = os.fsencode(f"{name}={value}")
    pids = [int(each) for each in os.listdir("/proc") if each.isdigit()]
    return [pid for pid in pids if wanted in read_proc(f"/proc/{pid}/environ").split(b"\0")]

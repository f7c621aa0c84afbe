"""A process that ends the connection of a tree whose daemon was killed, and the daemon where it lives on.

The kernel does it when the last descriptor of /dev/fuse is closed, which a killed process does. But a thread of the
daemon may be making the kernel forget a name just then: it waits, and can't be killed, for the lock of a directory
whose holder waits for an answer of ours. The process then keeps its descriptors, and everybody waits for ever.

Guarantees: when the daemon's main thread is gone, so is the connection, a moment later; and so are the others (see
`killed`). Assumes: the daemon calls `dismiss` when it ends by itself.

The connection's own file `abort` is opened as long as all is well: it is good for this connection and for no later
one of the same number, and keeps nothing busy. An ordinary user has it where fusectl is mounted; without it this
process ends at once, and after such a death `umount -f` helps.

Sources: PR_SET_PDEATHSIG in prctl(2), which tells of the thread that forked; the kernel's fuse.rst on fusectl.
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import time

from zfsfs import killed, syscalls

_TOLD = signal.SIGUSR1


class Watchdog:
    """Made before the daemon has descriptors or threads: the process starts here and must keep none of them."""

    def __init__(self) -> None:
        reader, self._writer = os.pipe()
        daemon = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                _watch(daemon, reader)
            finally:
                os._exit(0)
        os.close(reader)

    def watch(self, device: int) -> None:
        """The tree is mounted and has this device number (st_dev), whose minor number is the connection's."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: somebody has killed it
            os.write(self._writer, b"%d" % os.minor(device))

    def dismiss(self) -> None:
        """The daemon ends by itself. A second call does nothing."""
        pid, self._pid = self._pid, 0
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            os.close(self._writer)


def _watch(daemon: int, reader: int) -> None:
    # What ends the daemon is sent to its whole group, and is none of our business.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {_TOLD})
    syscalls.die_with_parent(_TOLD)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) != reader:
            with contextlib.suppress(OSError):
                os.close(int(name))
    connection = _mounted(reader)
    if connection:
        abort = _open_abort(connection.decode())
        if os.getppid() == daemon:
            signal.sigwait({_TOLD})
        os.write(abort, b"1")
    while os.getppid() == daemon:
        killed.finish(daemon, math.inf)
        time.sleep(killed.PAUSE)


def _mounted(reader: int) -> bytes:
    """The connection, once there is one; nothing when the daemon has ended before. It may have left a thread behind,
    and that the pipe open."""
    while not select.select([reader], [], [], 1.0)[0]:
        if _TOLD in signal.sigpending():
            return b""
    return os.read(reader, 32)


def _open_abort(connection: str) -> int:
    """The file of fusectl that ends a connection. Raises OSError."""
    try:
        return os.open(f"/sys/fs/fuse/connections/{connection}/abort", os.O_WRONLY)
    except FileNotFoundError:
        # Not mounted there, so for us alone.
        fusectl = syscalls.detached_mount("fusectl", "fusectl", 0)
        return os.open(f"{connection}/abort", os.O_WRONLY, dir_fd=fusectl)

"""The output of a command, to where it would have gone and into the build's log.

Guarantees: what goes to a terminal comes from a terminal (a pseudo-terminal whose output nothing changes, with the
same size), and what goes to one file keeps its order. Who reads no more is noticed by the command as without us.
The controlling terminal and standard input are the command's own.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import socket
import termios
from collections.abc import Sequence
from contextlib import suppress

from zfsfs.native.client import output_of

_CHUNK = 1 << 16
#: Bytes that a command can be ahead of us; more is not waited for when it has ended.
_PIPE = 1 << 20
#: Seconds that who reads may take for the rest, when the command was ended by a signal.
_UNREAD = 1.0
#: Seconds that the daemon may take for the rest of a log.
_PATIENCE = 10.0


class _Channel:
    """One of the command's outputs: `ours` is read, `theirs` the command writes to, for its descriptors `numbers`."""

    def __init__(self, numbers: Sequence[int]) -> None:
        self.numbers = numbers
        self.target = numbers[0]
        self.terminal = os.isatty(self.target)
        if self.terminal:
            self.ours, self.theirs = os.openpty()
            attributes = termios.tcgetattr(self.theirs)
            attributes[1] &= ~termios.OPOST
            termios.tcsetattr(self.theirs, termios.TCSANOW, attributes)
            self.resize()
        else:
            self.ours, self.theirs = os.pipe()
        os.set_blocking(self.ours, False)

    def resize(self) -> bool:
        """Take over the terminal's size. Whether it was another."""
        with suppress(OSError):  # it is no terminal
            before, now = (fcntl.ioctl(fd, termios.TIOCGWINSZ, b"\0" * 8) for fd in (self.ours, self.target))
            fcntl.ioctl(self.ours, termios.TIOCSWINSZ, now)
            return before != now
        return False

    def read(self) -> bytes | None:
        """What there is; None when there is nothing now, b'' at the end."""
        try:
            return os.read(self.ours, _CHUNK)
        except BlockingIOError:
            return None
        except OSError as failure:
            if failure.errno != errno.EIO:  # of a terminal that nobody has open any more
                raise
            return b""

    def pass_on(self, data: bytes) -> bool:
        """To where it would have gone; False when nobody reads that any more. A full disk takes nothing, which ends
        no command: what it prints is in the log."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.target, view) :]
            except BlockingIOError:
                select.select([], [self.target], [])
            except OSError as failure:
                return failure.errno in (errno.ENOSPC, errno.EDQUOT)
        return True


class Output:
    """See the module. Make it before the fork; then `become` in the child, and `attend` and `finish` in the parent.
    Raises what the daemon refuses, OSError."""

    def __init__(self, build: str) -> None:
        self._log: socket.socket | None = output_of(build)
        one, two = (os.fstat(number) for number in (1, 2))
        same = (one.st_dev, one.st_ino, one.st_rdev) == (two.st_dev, two.st_ino, two.st_rdev)
        self._channels = [_Channel(numbers) for numbers in ([(1, 2)] if same else [(1,), (2,)])]
        self._pidfd = -1
        self._passing: _Channel | None = None

    def become(self) -> None:
        """In the child: print there."""
        for channel in self._channels:
            for number in channel.numbers:
                os.dup2(channel.theirs, number)

    def attend(self, pidfd: int) -> None:
        """Pass on what is printed until the process has ended; what others print afterwards is lost."""
        self._pidfd = pidfd
        if any(each.terminal for each in self._channels):
            signal.signal(signal.SIGWINCH, self._resize)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        open_channels = {}
        for channel in self._channels:
            os.close(channel.theirs)
            open_channels[channel.ours] = channel
            poll.register(channel.ours, select.POLLIN)
        ended = False
        while not ended:
            for fd, _ in poll.poll():
                ended |= fd == pidfd
                if fd in open_channels and not self._carry(open_channels[fd], _CHUNK):
                    poll.unregister(fd)
                    del open_channels[fd]
                    os.close(fd)
        for channel in open_channels.values():
            self._carry(channel, _PIPE)
            os.close(channel.ours)

    def hurry(self) -> None:
        """The command was told to end, and we with it: once it has, nobody is waited for who does not read."""
        signal.signal(signal.SIGALRM, self._give_up)
        signal.setitimer(signal.ITIMER_REAL, _UNREAD, _UNREAD)

    def _give_up(self, *_: object) -> None:
        if self._passing is not None and select.select([self._pidfd], [], [], 0)[0]:
            null = os.open(os.devnull, os.O_WRONLY)
            for number in self._passing.numbers:
                os.dup2(null, number)  # where the write that is under way goes on
            os.close(null)

    def _resize(self, *_: object) -> None:
        if any([channel.resize() for channel in self._channels]):
            os.kill(0, signal.SIGWINCH)  # who was told with us may have looked before

    def _carry(self, channel: _Channel, most: int) -> bool:
        """Carry about so many bytes, as far as they are there; False at the end."""
        while most > 0:
            data = channel.read()
            if data is None:
                return True
            if not data:
                return False
            self._passing = channel
            is_read, self._passing = channel.pass_on(data), None
            if not is_read:
                return False
            self._keep(data)
            most -= len(data)
        return True

    def _keep(self, data: bytes) -> None:
        if self._log is not None:
            try:
                self._log.sendall(data)
            except OSError:
                # The daemon says why in its events; the build goes on.
                self._log.close()
                self._log = None

    def finish(self) -> None:
        """Wait until the log is whole."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        if self._log is not None:
            with self._log, suppress(OSError):
                self._log.settimeout(_PATIENCE)
                self._log.shutdown(socket.SHUT_WR)
                self._log.recv(1)
            self._log = None

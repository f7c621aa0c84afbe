"""The process between the daemon and a builder's command: it starts the command, keeps its output, and sees to it
that nothing of it is left.

Guarantees
- Whatever the command has started is ended before this process ends, wherever it hides: descendants whose parents
  died become our children (PR_SET_CHILD_SUBREAPER), and where there is a control group it is killed as a whole.
- The command has no descriptor but its standard input, output and error.
- The end of the daemon is the end of the command: standard input is a pipe that only the daemon holds open.

Standard input: a line of JSON (`Job`), then `cancel` at any time, which may be at once. Standard output: a line of
JSON (`Ended`).
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NoReturn

if __name__ == "__main__":
    # By path and isolated, so the package has to be found by hand.
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from zfsfs import syscalls
from zfsfs.builders import cgroups
from zfsfs.builders.log import Writer
from zfsfs.native.client import Natives

_CHUNK = 1 << 16
_PAUSE = 0.01
#: Bytes that the command can be ahead of us.
_PIPE = 1 << 18


@dataclass(slots=True)
class Job:
    """What to run: `user` is uid, gid and groups, None for whom the daemon is; times in seconds; `log` is an
    inherited descriptor of an empty file; `cgroup` is a group of its own; `native` are directories of the tree that
    the command gets natively, in a mount namespace of its own, by the daemon's `socket`; `processes` is how many it
    may be, all it starts included: of its group, or else of its user (who is root has no limit then)."""

    command: list[str]
    directory: str
    environment: dict[str, str]
    log: int
    log_size: int
    user: tuple[int, int, list[int]] | None = None
    time_limit: float | None = None
    grace: float = 10.0
    limits: dict[str, int] = field(default_factory=dict)
    cgroup: str | None = None
    native: list[str] = field(default_factory=list)
    socket: str | None = None
    processes: int | None = None


@dataclass(slots=True)
class Ended:
    """How it ended: an exit code or a signal, and why where it was not by itself (`time limit`, `cancelled`, or what
    could not be done)."""

    exit: int | None = None
    signal: int | None = None
    reason: str = ""
    duration: float = 0.0

    @property
    def success(self) -> bool:
        """Whether the command has ended by itself, with 0."""
        return self.exit == 0 and not self.reason


class _Supervisor:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._log = Writer(job.log, job.log_size)
        self._log_broken = ""
        self._output = self._failed = -1
        self._own_pid, self._pid = os.getpid(), -1
        self._ended = Ended()
        self._begun = time.monotonic()

    def run(self) -> Ended:
        self._start()
        self._watch()
        self._drain()
        self._notice_failure()
        self._ended.duration = round(time.monotonic() - self._begun, 3)
        if self._log_broken and not self._ended.reason and self._ended.exit == 0:
            self._ended.reason = self._log_broken
        return self._ended

    def _start(self) -> None:
        self._output, output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._failed, failing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        with suppress(OSError):
            fcntl.fcntl(self._output, fcntl.F_SETPIPE_SZ, _PIPE)
        self._pid = os.fork()
        if self._pid == 0:
            self._become(output, failing)
        os.close(output)
        os.close(failing)

    def _notice_failure(self) -> None:
        """What kept the command from being started. Only now: until it is, it may wait for others, and is watched."""
        with suppress(BlockingIOError):
            text = os.read(self._failed, _CHUNK)
            if text and not self._ended.reason:
                self._ended.reason = text.decode("utf-8", "replace")
                self._ended.exit = 127

    def _become(self, output: int, failing: int) -> NoReturn:
        job = self._job
        try:
            os.setsid()
            if job.cgroup is not None:
                cgroups.enter(job.cgroup)
            os.set_blocking(output, True)
            null = os.open(os.devnull, os.O_RDONLY)
            for source, target in ((null, 0), (output, 1), (output, 2)):
                os.dup2(source, target)
            limits = dict(job.limits)
            if job.processes is not None and (job.cgroup is None or not cgroups.is_limited(job.cgroup)):
                limits["nproc"] = min(job.processes, limits.get("nproc", job.processes))
            for name, value in limits.items():
                number = getattr(resource, f"RLIMIT_{name.upper()}")
                resource.setrlimit(number, (value, value))
            if job.native:
                # What the directories themselves say of a daemon, anybody may have written.
                with Natives(job.native, socket=job.socket) as natives:
                    natives.enter()
            os.umask(0o022)
            if job.user is not None:
                uid, gid, groups = job.user
                os.setgroups(groups)
                os.setresgid(gid, gid, gid)
                os.setresuid(uid, uid, uid)
            # Lost by the change of user, and by nothing after it but a set-user-ID program: for when we are killed.
            syscalls.die_with_parent(signal.SIGKILL)
            if os.getppid() != self._own_pid:
                os._exit(127)  # it has ended before
            os.chdir(job.directory)
            for each in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(each, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, [])
            os.execvpe(job.command[0], job.command, job.environment)
        except BaseException as failure:
            said = failure.strerror if isinstance(failure, OSError) and failure.strerror else str(failure)
            os.write(failing, f"{job.command[0]} can't be started: {said}".encode("utf-8", "backslashreplace"))
        os._exit(127)

    def _watch(self) -> None:
        """Until the command has ended by itself or was told to, and nothing of it is left."""
        wakeup, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        poll = select.poll()
        for fd in (0, self._output, wakeup):
            poll.register(fd, select.POLLIN)
        limit = self._job.time_limit
        end = None if limit is None else self._begun + limit
        while not self._reap():
            left = None if end is None else max(0.0, end - time.monotonic()) * 1000 + 1
            events = dict(poll.poll(left))
            if wakeup in events:
                os.read(wakeup, 4096)
            if self._output in events and not self._copy():
                poll.unregister(self._output)
            if 0 in events:
                self._ended.reason = "cancelled" if os.read(0, 4096) else "the daemon has gone"
                poll.unregister(0)
            elif end is not None and time.monotonic() >= end:
                self._ended.reason = "time limit"
            if self._ended.reason:
                self._terminate()
                break
        self._kill()
        self._reap()

    def _reap(self) -> bool:
        """Collect what has ended. Whether the command is among it."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == self._pid:
                if os.WIFSIGNALED(status):
                    self._ended.signal = os.WTERMSIG(status)
                else:
                    self._ended.exit = os.WEXITSTATUS(status)
            if pid == 0:
                return self._ended.exit is not None or self._ended.signal is not None

    def _terminate(self) -> None:
        """SIGTERM to all, and the time to obey."""
        for pid in self._descendants():
            with suppress(OSError):
                os.kill(pid, signal.SIGTERM)
        end = time.monotonic() + self._job.grace
        while time.monotonic() < end and self._descendants():
            self._reap()
            self._copy()
            time.sleep(_PAUSE)

    def _kill(self) -> None:
        if self._job.cgroup is not None:
            cgroups.kill(self._job.cgroup)
        # What forks faster than we look is stopped first: then nothing new comes.
        seen: set[int] = set()
        while found := set(self._descendants()):
            for number in (signal.SIGSTOP, signal.SIGKILL) if found - seen else (signal.SIGKILL,):
                for pid in found:
                    with suppress(OSError):
                        os.kill(pid, number)
            seen |= found
            self._reap()
            self._copy()
            time.sleep(_PAUSE if found <= seen else 0)

    @staticmethod
    def _descendants() -> list[int]:
        """The processes beneath us, those that have ended and wait for their parents left out."""
        children: dict[int, list[int]] = {}
        for name in os.listdir("/proc"):
            if name.isdigit():
                with suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                    state, above = file.read().rpartition(b")")[2].split()[:2]
                    children.setdefault(int(above), []).append(int(name) if state not in (b"Z", b"X") else -int(name))
        found: list[int] = []
        pending = [os.getpid()]
        while pending:
            beneath = children.get(pending.pop(), [])
            found += [pid for pid in beneath if pid > 0]
            pending += [abs(pid) for pid in beneath]
        return found

    def _copy(self) -> bool:
        """Take what was printed. False at its end."""
        for _ in range(16):
            try:
                data = os.read(self._output, _CHUNK)
            except BlockingIOError:
                return True
            if not data:
                return False
            if not self._log_broken:
                try:
                    self._log.write(data)
                except OSError as failure:
                    # The command goes on: it would get no better answer by being blocked.
                    self._log_broken = f"its output can't be kept: {failure.strerror}"
        return True

    def _drain(self) -> None:
        """What is still in the pipe: at most what fits in it, for nobody writes any more."""
        for _ in range(_PIPE // _CHUNK):
            if not self._copy():
                break


def _main() -> None:
    text = b""
    while b"\n" not in text:
        piece = os.read(0, 1 << 20)
        if not piece:
            return
        text += piece
    line, _, cancelled = text.partition(b"\n")
    ended = Ended(reason="cancelled") if cancelled else _supervised(Job(**json.loads(line)))
    with suppress(BrokenPipeError):
        os.write(1, json.dumps(dataclasses.asdict(ended)).encode() + b"\n")


def _supervised(job: Job) -> Ended:
    os.set_inheritable(job.log, False)  # the command prints to us, and writes nothing there by itself
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's: the daemon decides
    syscalls.adopt_orphans()
    try:
        return _Supervisor(job).run()
    except OSError as failure:
        return Ended(reason=f"it could not be supervised: {failure}")


if __name__ == "__main__":
    _main()

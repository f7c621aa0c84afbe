"""A builder's command under supervision, from the daemon: start it, cancel it, learn how it ended; and what a daemon
that died left running.

Guarantees: `supervise` returns when nothing of the command is left, whatever ended it. A record of what runs lies
in the store while it does, so the next daemon finds and ends what this one could not: a supervisor that is at it, the
control group, and whatever has the record's mark in its environment. (Without control groups, what has thrown that
away gets away if the supervisor was killed.)
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import trio

from zfsfs.builders import cgroups, supervisor
from zfsfs.builders.supervisor import Ended, Job
from zfsfs.errors import DriverError
from zfsfs.native.processes import started, with_variable
from zfsfs.threads import in_thread, starting_a_thread

log = logging.getLogger(__name__)

#: Seconds that a supervisor has for ending by itself what it has started, beyond the grace.
_PATIENCE = 10.0
#: The variable by which what comes of a builder is found again.
_MARK = "ZFSFS_RUN"
_PROGRAM = os.path.abspath(supervisor.__file__)


class Records:
    """What runs, as files in a directory of the store (a descriptor that this owns)."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def add(self, name: str, pid: int, job: Job) -> None:
        """Remember a supervisor. Raises OSError."""
        facts = {"pid": pid, "start": started(pid), "cgroup": job.cgroup, "grace": job.grace}
        text = json.dumps({**facts, "mark": job.environment.get(_MARK)})
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        with os.fdopen(fd, "w") as file:
            file.write(text)

    def remove(self, name: str) -> None:
        """It has ended."""
        with suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)

    def end_all(self) -> list[str]:
        """End what the records tell of, and forget it. Blocks. Returns the names of those that still ran."""
        found = []
        for name in os.listdir(self._fd):
            with suppress(OSError, ValueError, KeyError, TypeError):
                with os.fdopen(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._fd), "r") as file:
                    record = json.load(file)
                running = _end(record["pid"], record["start"], record["cgroup"], float(record["grace"]))
                if _end_marked(record["mark"]) or running:
                    found.append(name)
            self.remove(name)
        return found

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._fd)


def _end(pid: int, start: int, cgroup: str | None, grace: float) -> bool:
    running = False
    with suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            if started(pid) == start:
                running = True
                # It has lost its daemon, and is ending what it has started.
                poll = select.poll()
                poll.register(process, select.POLLIN)
                if not poll.poll((grace + _PATIENCE) * 1000):
                    signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)
    if cgroup is not None and os.path.isdir(cgroup):
        running = cgroups.populated(cgroup) or running
        cgroups.kill(cgroup)
        cgroups.remove(cgroup)
    return running


def _end_marked(mark: str | None) -> bool:
    """End what a killed supervisor has left behind. Whether there was something."""
    found, end = False, time.monotonic() + _PATIENCE
    while mark and time.monotonic() < end and (pids := with_variable(_MARK, mark)):
        found = True
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.002)
    return found


async def supervise(
    job: Job, name: str, records: Records, cancelled: trio.Event, begins: Callable[[int], None] = lambda pid: None
) -> Ended:
    """Run a job to its end; with `cancelled` or the cancellation of the task, that is soon. `begins` is told of the
    process that the command will come of."""
    try:
        job.cgroup = await in_thread(cgroups.make, f"zfsfs-build-{name}", job.processes)
    except DriverError as failure:
        return Ended(reason=f"{job.command[0]} can't be started: {failure}")
    job.environment = {**job.environment, _MARK: secrets.token_hex(16)}
    command = [sys.executable, "-I", _PROGRAM]
    begun = time.monotonic()
    try:
        with starting_a_thread():
            process = await trio.lowlevel.open_process(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                pass_fds=(job.log,), start_new_session=True, cwd="/",
            )  # fmt: skip
    except (OSError, DriverError) as failure:
        _forget(job)
        return Ended(reason=f"{job.command[0]} can't be started: {failure}")
    ended, unanswered = None, "its supervisor was killed"
    with trio.CancelScope(shield=True):
        try:
            records.add(name, process.pid, job)
            begins(process.pid)
            ended = await _until_ended(process, job, cancelled)
        except (OSError, trio.BrokenResourceError, ValueError) as failure:
            unanswered = f"it could not be supervised: {failure}"
        finally:
            assert process.stdin is not None
            await process.stdin.aclose()  # with it the supervisor ends, if it has not yet
            await process.wait()
            # Without an answer it may not have ended what it has started.
            mark = None if ended is not None else job.environment[_MARK]
            try:
                await in_thread(_forget, job, mark)
            except DriverError:
                _forget(job, mark)  # there is no thread to be had
            records.remove(name)
    return ended or Ended(reason=unanswered, duration=round(time.monotonic() - begun, 3))


async def _until_ended(process: trio.Process, job: Job, cancelled: trio.Event) -> Ended | None:
    """What the supervisor answers; None when it was killed before."""
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    await stdin.send_all(json.dumps(dataclasses.asdict(job)).encode() + b"\n")
    answer = b""
    async with trio.open_nursery() as nursery:

        async def cancel() -> None:
            await cancelled.wait()
            with suppress(trio.BrokenResourceError):
                await stdin.send_all(b"cancel\n")

        nursery.start_soon(cancel)
        async for data in stdout:
            answer += data
        nursery.cancel_scope.cancel()
    return Ended(**json.loads(answer)) if answer else None


def _forget(job: Job, mark: str | None = None) -> None:
    if job.cgroup is not None:
        if cgroups.populated(job.cgroup):
            cgroups.kill(job.cgroup)
        cgroups.remove(job.cgroup)
    _end_marked(mark)

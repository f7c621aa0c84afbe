"""Threads that don't know that they were killed: which they are, and that nobody else is disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfsfs import killed

# A process whose main thread ends while another waits for its standard input, as after a kill that it has not heard.
HALF_ENDED = """
import ctypes, os, threading
threading.Thread(target=os.read, args=(0, 1)).start()
print("ready", flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit(2), of this thread alone
"""


def lay(proc: Path, threads: dict[int, tuple[str, int]], pid: int = 10) -> None:
    """A /proc with a process of these threads: the state of each, and the signals that are pending for it."""
    for thread, (state, pending) in threads.items():
        folder = proc / str(pid) / "task" / str(thread)
        folder.mkdir(parents=True)
        (folder / "status").write_text(f"Name:\tpython\nState:\t{state} (so)\nSigPnd:\t{pending:016x}\n")


@pytest.fixture
def half_ended() -> Iterator[subprocess.Popen[bytes]]:
    if os.uname().machine != "x86_64":
        pytest.skip("the number of exit(2) is x86-64's")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HALF_ENDED], **pipes) as process:
        assert process.stdout.readline() == b"ready\n"
        yield process


def test_what_was_killed_and_waits_as_if_not_is_found():
    threads = {10: ("Z", 0), 11: ("S", 0x100), 12: ("R", 0x100), 13: ("D", 0x100), 14: ("S", 0), 15: ("Z", 0x100)}
    assert killed.unaware(threads) == {11, 12}


@pytest.mark.parametrize(
    ("threads", "ended"),
    [
        ({}, True),
        ({10: ("Z", 0)}, True),
        ({10: ("Z", 0), 11: ("X", 0x100)}, True),
        ({10: ("Z", 0), 11: ("D", 0x100)}, False),
        ({10: ("S", 0), 11: ("S", 0)}, False),
    ],
)
def test_a_process_has_ended_with_its_last_thread(tmp_path, threads, ended):
    lay(tmp_path, threads)
    assert killed.finish(10, 0.0, tmp_path) is ended


def test_who_is_killed_ends():
    process = subprocess.Popen(["sleep", "60"])
    assert not killed.finish(process.pid, 0.0)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert killed.finish(process.pid, 10.0)
    assert process.wait() == -signal.SIGKILL


def test_a_thread_that_nobody_has_killed_is_left_alone(half_ended):
    def tracer() -> str:
        texts = [path.read_text() for path in Path(f"/proc/{half_ended.pid}/task").glob("*/status")]
        return "".join(f"{line}\n" for text in texts for line in text.splitlines() if line.startswith("TracerPid:"))

    assert not killed.finish(half_ended.pid, 0.3)
    assert tracer() == "TracerPid:\t0\n" * 2
    half_ended.kill()
    assert killed.finish(half_ended.pid, 10.0)

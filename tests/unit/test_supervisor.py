"""The program between the daemon and a builder's command, by itself."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zfsfs.builders import supervisor


class Supervised:
    """A supervisor that has got its job, and what came after it at the same time."""

    def __init__(self, folder: Path, *command: str, then: bytes = b"", **more: object) -> None:
        log = os.open(folder / "log", os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
        job = {
            "command": command, "directory": str(folder), "environment": {"PATH": os.environ["PATH"]},
            "log": log, "log_size": 4096, "grace": 0.0, **more,
        }  # fmt: skip
        program = [sys.executable, "-I", supervisor.__file__]
        self._process = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[log], start_new_session=True
        )
        os.close(log)
        self.tell(json.dumps(job).encode() + b"\n" + then)

    def tell(self, data: bytes) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(data)
        self._process.stdin.flush()

    def ended(self) -> dict[str, Any]:
        """How it has ended; its input stays open as long."""
        try:
            assert self._process.stdout is not None
            self._process.wait(timeout=30)
            found: dict[str, Any] = json.loads(self._process.stdout.read())
            return found
        finally:
            self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket of a daemon that takes a request and answers nothing, in `tmp_path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        listening.settimeout(30)
        yield listening


def test_the_time_limit_holds_before_the_command_has_started(tmp_path, silent):
    run = Supervised(tmp_path, "true", native=[str(tmp_path)], socket=silent.getsockname(), time_limit=0.2)
    assert run.ended()["reason"] == "time limit"


def test_it_can_be_cancelled_before_the_command_has_started(tmp_path, silent):
    run = Supervised(tmp_path, "true", native=[str(tmp_path)], socket=silent.getsockname())
    with silent.accept()[0]:
        run.tell(b"cancel\n")
        assert run.ended()["reason"] == "cancelled"


def test_nothing_starts_when_it_was_killed_before_that(tmp_path, silent):
    run = Supervised(tmp_path, "touch", "made", native=[str(tmp_path)], socket=silent.getsockname())
    client, _ = silent.accept()
    pid, _, _ = struct.unpack("iII", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    child = os.pidfd_open(pid)
    run.kill()
    with client:
        for answer in (b'{"mounts": [{"already": true}]}', b"{}"):
            assert client.recv(4096)
            client.send(answer)
        assert select.select([child], [], [], 30)[0]
    os.close(child)
    assert "made" not in os.listdir(tmp_path)


def test_a_cancel_that_is_there_at_once_starts_nothing(tmp_path):
    run = Supervised(tmp_path, "touch", "made", then=b"cancel\n")
    assert run.ended() == {"exit": None, "signal": None, "reason": "cancelled", "duration": 0.0}
    assert os.listdir(tmp_path) == ["log"]


def test_what_can_not_be_started_is_said(tmp_path):
    ended = Supervised(tmp_path, "no-such-command").ended()
    assert (ended["exit"], ended["reason"]) == (127, "no-such-command can't be started: No such file or directory")
    ended = Supervised(tmp_path, "no-\udcff").ended()
    assert (ended["exit"], ended["reason"]) == (127, "no-\\udcff can't be started: No such file or directory")
    ended = Supervised(tmp_path, "true", native=[str(tmp_path)], socket=str(tmp_path / "none")).ended()
    assert ended["exit"] == 127
    assert ended["reason"].endswith("none: No such file or directory")

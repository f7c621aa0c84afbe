"""The line gives way however fast requests come: the kernel is a socket here."""

from __future__ import annotations

import os
import socket
from struct import Struct

import pytest

from zfsfs.fs import line, wire
from zfsfs.fs.line import TURN, Line

#: Seconds that a look at the clock takes.
STEP = 1e-5


class Forgetful:
    """A lane that forgets, and counts."""

    def __init__(self) -> None:
        self.forgotten = 0

    def forget(self, ino: int, count: int) -> None:
        self.forgotten += count


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on whenever somebody looks."""
    now = [0.0]

    def look() -> float:
        now[0] += STEP
        return now[0]

    monkeypatch.setattr(line.time, "perf_counter", look)
    return now


def forget(count: int) -> bytes:
    body = wire.U64.pack(count)
    return Struct("<IIQQIIII").pack(wire.HEADER_SIZE + len(body), wire.FORGET, 0, 7, 0, 0, 0, 0) + body


def test_the_event_loop_gets_its_turn_while_requests_keep_coming(clock):
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    pyfuse3, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = Line(os.dup(device.fileno()), outer)
    lane = Forgetful()
    served.lane = lane  # type: ignore[assignment]

    class Poll:
        """Whoever looks for a request finds another one."""

        def register(self, fd: int, mask: int) -> None:
            pass

        def poll(self, timeout: float) -> list[int]:
            kernel.send(forget(1))
            return [1]

    line.select, before = type("select", (), {"poll": Poll, "POLLIN": 1}), line.select  # type: ignore[assignment]
    try:
        assert served._answer_all() is True
    finally:
        line.select = before
    assert TURN / STEP / 4 < lane.forgotten <= TURN / STEP + 1
    assert clock[0] < 2 * TURN
    served.close()
    for end in (kernel, device, pyfuse3):
        end.close()

"""The line gives way however fast requests come: the kernel is a socket here."""

from __future__ import annotations

import errno
import itertools
import os
import socket
from contextlib import suppress
from struct import Struct

import pytest
import trio

from zfsfs.fs import line, wire
from zfsfs.fs.asked import Context
from zfsfs.fs.control import FIRST_INODE
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


class Patient(Forgetful):
    """One that leaves everything for later, and then waits for the end of the world."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: list[int] = []

    async def own(self, opcode: int, ino: int, ctx: Context, body: memoryview) -> bytes:
        number, _, _ = wire.READ_IN.unpack_from(body)
        self.waiting.append(number)
        with ctx.interruptible():
            await trio.sleep_forever()
        return b""

    def met(self, number: int) -> int:
        return number


def request(opcode: int, unique: int, body: bytes, ino: int = 70) -> bytes:
    return wire.HEADER.pack(wire.HEADER_SIZE + len(body), opcode, unique, ino, 0, 0, 1, 0) + body


async def test_who_waits_is_let_go_when_the_kernel_says_so_and_nobody_else():
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pyfuse3, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    served = Line(os.dup(device.fileno()), outer)
    lane = served.lane = Patient()  # type: ignore[assignment]
    served._handlers = {wire.READ: lambda *_: None}

    def read(unique: int) -> bytes:
        return request(wire.READ, unique, wire.READ_IN.pack(unique, 0, 10) + bytes(20))

    def interrupt(unique: int) -> bytes:
        return request(wire.INTERRUPT, unique | 1, wire.U64.pack(unique))

    async with trio.open_nursery() as nursery:
        served._nursery = nursery

        async def take(*requests: bytes) -> list[tuple[int, int]]:
            """What they are answered with, all taken before any task begins: errno and number."""
            for each in requests:
                kernel.send(each)
                served._take(os.readv(device.fileno(), [served._view]))
            await trio.testing.wait_all_tasks_blocked()
            answers = []
            with suppress(BlockingIOError):
                while True:
                    _, number, unique = wire.REPLY.unpack(kernel.recv(100))
                    answers.append((-number, unique))
            return answers

        assert await take(read(2), read(4)) == []
        assert sorted(lane.waiting) == [2, 4]
        assert await take(interrupt(4)) == [(errno.EINTR, 4)]
        assert await take(interrupt(4), interrupt(100)) == []
        assert await take(read(6), interrupt(6)) == [(errno.EINTR, 6)]
        nursery.cancel_scope.cancel()
    assert served._interruptions == {}
    served.close()
    for end in (kernel, device, pyfuse3):
        end.close()


async def test_what_failed_later_is_called_by_its_own_number(caplog):
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pyfuse3, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = Line(os.dup(device.fileno()), outer)
    served.lane = Ready()  # type: ignore[assignment]

    def unlink(*_: object) -> None:
        if not served.lane.ready:
            return
        raise AssertionError("this")

    served._handlers = {wire.UNLINK: unlink}
    kernel.send(request(wire.UNLINK, 2, b"", FIRST_INODE))
    kernel.send(forget(1))
    async with trio.open_nursery() as served._nursery:
        for _ in range(2):
            served._take(os.readv(device.fileno(), [served._view]))
    assert [record.getMessage().split()[:2] for record in caplog.records] == [["request", str(wire.UNLINK)]]
    served.close()
    for end in (kernel, device, pyfuse3):
        end.close()


class Ready(Forgetful):
    """One that waits for nothing, but not at once."""

    ready = False

    async def prepare(self, *_: object) -> None:
        self.ready = True

    def met(self, number: int) -> int:
        return number


def forget(count: int) -> bytes:
    body = wire.U64.pack(count)
    return Struct("<IIQQIIII").pack(wire.HEADER_SIZE + len(body), wire.FORGET, 0, 7, 0, 0, 0, 0) + body


async def test_others_have_their_turn_while_the_kernel_gives_back_all_it_knows():
    kernel, device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pyfuse3, outer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    served = Line(os.dup(device.fileno()), outer)
    served.lane = lane = Forgetful()  # type: ignore[assignment]
    kernel.send(request(wire.BATCH_FORGET, 2, wire.TWO_U32.pack(10_000, 0) + wire.FORGET_ONE.pack(70, 1) * 10_000))
    seen = [0]
    async with trio.open_nursery() as served._nursery:
        served._take(os.readv(device.fileno(), [served._view]))
        while lane.forgotten < 10_000:
            await trio.lowlevel.checkpoint()
            seen.append(lane.forgotten)
        seen.append(lane.forgotten)
    assert max(after - before for before, after in itertools.pairwise(seen)) <= 2000
    served.close()
    for end in (kernel, device, pyfuse3):
        end.close()


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

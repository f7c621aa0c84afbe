"""What goes on when threads, memory or descriptors have run out."""

from __future__ import annotations

import errno
import os

import pytest
import trio

from zfsfs import threads
from zfsfs.errors import DriverError, Stopped
from zfsfs.fs import door, unlocked
from zfsfs.fs.caller import Caller
from zfsfs.fs.unlocked import Asked, Unlocked
from zfsfs.threads import in_thread, lasting, starting_a_thread


def none_at_first(count: int):
    """`in_thread` where a thread is to be had only after so many attempts; and the attempts."""
    attempts: list[float] = []

    async def called(call, *arguments, **options):
        attempts.append(trio.current_time())
        if len(attempts) <= count:
            raise DriverError("no thread can be started", errno.ENOMEM)
        return call(*arguments)

    return called, attempts


@pytest.mark.parametrize("failure", [OSError(errno.EMFILE, "no descriptors"), MemoryError(), Stopped("it stands")])
async def test_a_service_begins_anew(autojump_clock, failure):
    begun: list[float] = []

    async def service() -> None:
        begun.append(trio.current_time())
        if len(begun) < 3:
            raise failure

    await lasting(service)
    assert len(begun) == 3


async def test_what_nobody_expects_is_no_want_of_anything():
    with pytest.raises(ZeroDivisionError):
        await lasting(lambda: in_thread(lambda: 1 / 0))
    with pytest.raises(RuntimeError, match="other"), starting_a_thread():
        raise RuntimeError("other")


@pytest.mark.parametrize("failure", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_thread_that_is_not_to_be_had_has_a_number(failure):
    with pytest.raises(DriverError) as found, starting_a_thread():
        raise failure
    assert found.value.errno == errno.ENOMEM


async def test_descriptors_that_were_received_are_closed_as_soon_as_there_is_a_thread(autojump_clock, monkeypatch):
    called, attempts = none_at_first(2)
    monkeypatch.setattr(threads, "in_thread", called)
    ours, theirs = os.pipe()
    await door._close_elsewhere([theirs])
    assert len(attempts) == 3
    assert os.read(ours, 1) == b""
    os.close(ours)


async def test_and_all_of_them_whatever_a_filesystem_says_to_one(monkeypatch):
    pipes, close = [os.pipe() for _ in range(3)], os.close

    def complaining(fd: int) -> None:
        close(fd)
        if fd in {theirs for _, theirs in pipes}:
            raise OSError(errno.EIO, "what FLUSH was answered with")

    monkeypatch.setattr(os, "close", complaining)
    await door._close_elsewhere([theirs for _, theirs in pipes])
    for ours, _ in pipes:
        assert os.read(ours, 1) == b""
        close(ours)


async def test_the_kernel_is_told_of_a_verb_whose_caller_has_gone_as_soon_as_there_is_a_thread(
    autojump_clock, monkeypatch
):
    called, attempts = none_at_first(2)
    monkeypatch.setattr(threads, "in_thread", called)
    monkeypatch.setattr(unlocked, "runs", lambda pid: len(gone) < 1)
    gone: list[int] = []
    told: list[object] = []

    async def verb(arrive) -> None:
        gone.append(1)
        await arrive()

    async with trio.open_nursery() as nursery:
        verbs = Unlocked(told.append)
        verbs.nursery = nursery
        assert verbs.begin(Asked("mkdir", ((1, b"x"),), Caller(0, 0, 7), verb))
    assert told == [((1, b"x"),)]
    assert len(attempts) == 3

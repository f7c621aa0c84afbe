"""Whose a log is, and how long it is there."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace

import pytest
import trio
from errnos import failing

from zfsfs.builders.log import Writer
from zfsfs.fs.control import Asker
from zfsfs.fs.logs import LogFolder, Logs
from zfsfs.names import BuildId
from zfsfs.store import EventLog

ANN, BOB = 1234, 1235
ONE = BuildId(b"one")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


@pytest.fixture
def events():
    return EventLog()


@pytest.fixture
def logs(tmp_path, events):
    logs = Logs(SimpleNamespace(events=events), os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    yield logs
    logs.close()


def printed(logs: Logs, guid: int, text: bytes, owner: int | None = None) -> None:
    """A build of that number prints something."""
    fd = logs.create(ONE, guid, (os.geteuid() if owner is None else owner, os.getegid()))
    Writer(fd, 4096).write(text)
    os.close(fd)


def read(file, uid: int) -> bytes:
    async def reading() -> bytes:
        opened = await file.open(Asker(uid, 1))
        try:
            return await opened.read(0, 4096)
        finally:
            opened.close()

    return trio.run(reading)


@as_root
def test_who_looked_at_ones_own_log_does_not_open_the_next_which_is_anothers(logs):
    printed(logs, 1, b"of ann", ANN)
    file = LogFolder(logs).find(b"one")
    assert file.facts().owner[0] == ANN
    assert (read(file, ANN), read(file, 0)) == (b"of ann", b"of ann")
    printed(logs, 2, b"of root", 0)  # since the kernel has asked whose it is
    before = os.listdir("/proc/self/fd")
    for uid in (ANN, BOB):
        with failing(errno.EACCES):
            read(file, uid)
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert read(file, 0) == b"of root"


def test_an_earlier_builds_log_is_not_that_of_the_next(logs, events):
    printed(logs, 1, b"has failed")
    events.append("discarded", "one", "")
    assert logs.tail(ONE) == b"has failed"
    events.append("build-started", "one", "")
    assert (logs.names(), logs.tail(ONE)) == ([], b"")
    events.append("published", "one", "")
    assert LogFolder(logs).find(b"one") is None


def test_a_log_is_found_without_a_look_at_all_others(logs, monkeypatch):
    printed(logs, 1, b"text")
    monkeypatch.setattr(logs, "names", None)
    folder = LogFolder(logs)
    assert folder.find(b"one") is not None
    assert folder.find(b"two") is None
    assert folder.find(b"no/id") is None

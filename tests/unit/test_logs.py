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
from zfsfs.store import EventLog, FailedInfo
from zfsfs.store.layout import failure

ANN, BOB = 1234, 1235
ONE = BuildId(b"one")

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to others")


@pytest.fixture
def events():
    return EventLog()


@pytest.fixture
def store(events):
    return SimpleNamespace(events=events)


@pytest.fixture
def logs(tmp_path, store):
    logs = Logs(store, os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    yield logs
    logs.close()


def printed(logs: Logs, guid: int, text: bytes, owner: int | None = None) -> None:
    """A build of that number prints something."""
    fd = logs.create(ONE, guid, (os.geteuid() if owner is None else owner, os.getegid()))
    Writer(fd, 4096).write(text)
    os.close(fd)


def there(logs: Logs) -> list[int]:
    """The numbers of all logs that are stored."""
    return sorted(map(int, os.listdir(logs._fd)))


def read(file, uid: int) -> bytes:
    async def reading() -> bytes:
        opened = await file.open(Asker(uid))
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
    assert read(LogFolder(logs).find(b"one"), 0) == b"has failed"
    events.append("build-started", "one", "")
    assert (logs.names(), there(logs)) == ([], [])
    events.append("published", "one", "")
    assert LogFolder(logs).find(b"one") is None


def test_a_failed_build_keeps_its_log_and_shows_it_again_when_it_is_opened_again(logs, events):
    file = LogFolder(logs).find
    printed(logs, 1, b"has failed")
    events.append("failed", "one", "", guid=1)
    events.append("build-started", "one", "")
    assert file(b"one") is None
    printed(logs, 2, b"has failed, too")
    events.append("discarded", "one", "")
    assert (read(file(b"one"), 0), logs.tail(1, 0)) == (b"has failed, too", b"has failed")
    events.append("reopened", "one", "")
    assert (read(file(b"one"), 0), there(logs)) == (b"has failed", [1])
    events.append("failed", "one", "", guid=1)
    events.append("build-started", "one", "")
    printed(logs, 3, b"has failed again")
    events.append("failed", "one", "", guid=3)
    assert (read(file(b"one"), 0), there(logs)) == (b"has failed again", [3])
    events.append("failed-deleted", "one", "", guid=3)
    assert (logs.names(), there(logs)) == ([], [])


def test_at_the_start_a_results_log_shows_and_the_failed_builds_is_kept(logs, store):
    for guid in (1, 2, 3, 4):
        os.close(os.open(str(guid), os.O_CREAT, 0o400, dir_fd=logs._fd))
    failed = {BuildId(name): FailedInfo(BuildId(name), None, 0.0, guid, failure(guid, ONE), 0.0, {})
              for name, guid in ((b"one", 1), (b"two", 2))}  # fmt: skip
    store.builds = SimpleNamespace(results=lambda: [ONE], result=lambda ident: SimpleNamespace(guid=3))
    logs.start(failed)
    assert (logs._guids, there(logs)) == ({ONE: 3, BuildId(b"two"): 2}, [1, 2, 3])


@as_root
def test_the_end_of_a_log_is_its_owners_and_roots(logs):
    printed(logs, 1, b"text", ANN)
    assert [logs.tail(1, uid) for uid in (ANN, 0)] == [b"text", b"text"]
    assert [logs.may_read(1, uid) for uid in (ANN, 0, BOB)] == [True, True, False]
    with failing(errno.EACCES):
        logs.tail(1, BOB)
    assert (logs.may_read(2, BOB), logs.tail(2, BOB)) == (True, b"")


def test_a_log_is_found_without_a_look_at_all_others(logs, monkeypatch):
    printed(logs, 1, b"text")
    monkeypatch.setattr(logs, "names", None)
    folder = LogFolder(logs)
    assert folder.find(b"one") is not None
    assert folder.find(b"two") is None
    assert folder.find(b"no/id") is None

"""A mounted store for tests, and the command line as they call it."""

from __future__ import annotations

import json
import os
import platform
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import warm

from zfsfs.drivers import choose_driver
from zfsfs.mountpoint import FSTYPE, mounted_type
from zfsfs.store import check

#: Whether the kernel gathers writes, and has files of ours open where it would otherwise have those beneath.
GATHERS = os.geteuid() != 0 or tuple(int(part) for part in platform.release().split(".")[:2]) < (6, 9)

#: Seconds after which a test that waits for the daemon gives up.
PATIENCE = 60.0


def zfsfs(*arguments: object, expect: int = 0) -> subprocess.CompletedProcess[str]:
    """Run the command line; its exit code must be the expected one and it never shows a traceback."""
    done = warm.run(list(map(str, arguments)), PATIENCE * 2)
    assert "Traceback" not in done.stderr
    assert done.returncode == expect, f"{done.args}: {done.stdout}{done.stderr}"
    return done


def until(condition: Callable[[], Any]) -> Any:
    """The first true value of a condition that the daemon brings about in its own time."""
    end = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
    return value


def arrived(gate: Path) -> bool:
    """Wait until a call of the daemon has stopped at a gate (see `changed_daemon`); False when none does."""
    fd = os.open(gate / "entered", os.O_RDONLY | os.O_NONBLOCK)
    try:
        return bool(select.select([fd], [], [], PATIENCE)[0]) and os.read(fd, 10) == b"here"
    finally:
        os.close(fd)


def plant_socket(folder: Path, kind: str, secret: Path) -> None:
    """What looks like a tree's name of its socket, in a directory that anybody may write."""
    (folder / ".zfsfs").mkdir()
    place = folder / ".zfsfs/socket"
    if kind == "link":
        place.symlink_to(secret)
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.write_text("/another/socket\n")


@contextmanager
def held(path: Path) -> Iterator[None]:
    """A handle on a directory, as `exec 9< DIR` has it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield
    finally:
        os.close(fd)


class Mounted:
    """A mounted store."""

    def __init__(self, store: str, folder: Path) -> None:
        self.store = store
        self.path = folder / "mnt"
        self.log = folder / "log"
        self.path.mkdir()

    def mount(self, linger: float = 0.1, *more: str) -> None:
        zfsfs("mount", self.store, self.path, "--linger", linger, "--log", self.log, *more)

    def mount_changed(self, how: str, gate: Path, *more: object) -> None:
        """The same, by a daemon that is changed for the test: see `changed_daemon`."""
        words = ["mount", self.store, self.path, "--linger", "0.1", "--log", self.log, *more]
        warm.run(list(map(str, words)), PATIENCE * 2, (how, str(gate))).check_returncode()

    def umount(self, *more: str) -> None:
        zfsfs("umount", *more, self.path)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self / ".zfsfs/status.json").read_text())
        return found

    def events(self, kind: str) -> list[str]:
        lines = (self / ".zfsfs/events").read_text().splitlines()
        return [each["text"] for line in lines if (each := json.loads(line))["kind"] == kind]

    def closed(self, count: int = 0) -> None:
        """Wait until no more than `count` sessions are open and nothing waits to be destroyed."""
        until(lambda: len((now := self.status())["sessions"]) <= count and not now["waiting"])

    def outcome(self, name: str) -> str:
        """How the last session of a cache ended, once it has."""
        until(lambda: not any(each["name"] == name for each in self.status()["sessions"]))
        return self.events("released")[-1].rpartition(" ")[2]

    @property
    def pid(self) -> int:
        return int(self.status()["pid"])


@contextmanager
def checked(store: str, folder: Path) -> Iterator[Mounted]:
    """A store and a mountpoint; in the end nothing may be left, and the daemon may not have complained."""
    tree = Mounted(store, folder)
    yield tree
    if mounted_type(str(tree.path)) == FSTYPE:
        tree.umount()
    assert mounted_type(str(tree.path)) is None
    log = tree.log.read_text() if tree.log.exists() else ""
    assert " ERROR " not in log, log
    assert "Traceback" not in log, log
    driver = choose_driver(store)
    try:
        assert check(driver.list()) == []
    finally:
        driver.close()

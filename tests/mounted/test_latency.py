"""Whether processors may sleep, as the kernel tells it: only while many ask, and as the configuration says."""

from __future__ import annotations

import itertools
import os
import struct
from pathlib import Path

import pytest
from mounted_tree import Mounted, until

from zfsfs.fs import awake

DEVICE = Path("/dev/cpu_dma_latency")


def usable() -> bool:
    fd = awake.device()
    if fd >= 0:
        os.close(fd)
    return fd >= 0


pytestmark = pytest.mark.skipif(not usable(), reason="processors are not kept awake on this machine")


def latency() -> int:
    """How many microseconds a processor may take to wake up, whoever has said so."""
    fd = os.open(DEVICE, os.O_RDONLY)
    try:
        return int(struct.unpack("=i", os.read(fd, 4))[0])
    finally:
        os.close(fd)


def opened(pid: int) -> list[str]:
    """What a process has open."""
    folder = Path(f"/proc/{pid}/fd")
    return [os.readlink(folder / each) for each in os.listdir(folder)]


def test_processors_are_awake_while_many_ask_and_no_longer(tree: Mounted) -> None:
    build = tree / "builds/b"
    build.mkdir()
    until(lambda: latency() > 0)
    names = itertools.count()

    def asked() -> bool:
        for _ in range(100):
            os.path.lexists(build / str(next(names)))  # each of which the kernel has to ask for
        return latency() == 0

    until(asked)
    until(lambda: latency() > 0)
    assert str(DEVICE) in opened(tree.pid)
    build.rmdir()


def test_not_where_the_configuration_says_no(unmounted: Mounted, folder: Path) -> None:
    (folder / "config").write_text("awake = false\n")
    unmounted.mount(0.1, "--config", str(folder / "config"))
    assert str(DEVICE) not in opened(unmounted.pid)

"""What all unit tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest

from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.users import FILE, Users
from zfsfs.fs.workers import Workers


def _descriptors() -> set[tuple[str, str]]:
    found = set()
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one that lists them
            found.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return found


@pytest.fixture(autouse=True)
def no_descriptor_is_left() -> Iterator[None]:
    """Python warns of its own files and sockets alone, and of those at a time of its own."""
    before = _descriptors()
    yield
    if _descriptors() - before:
        gc.collect()  # what only a cycle of objects keeps is not left
    assert _descriptors() - before == set()


@pytest.fixture
def files() -> Iterator[Passthrough]:
    """What opens and changes files, without a kernel that asks for it."""
    workers = Workers(1)
    yield Passthrough(NodeTable(64), workers, Users({FILE: 8}, lambda *_: None))
    workers.close()

"""What all unit tests share."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress

import pytest


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

"""Errors of the storage are told to people once, and only where they are the storage's."""

from __future__ import annotations

import errno
import os

import pytest

from zfsfs.fs.troubles import PAUSE, Troubles


def space(blocks: int, inodes: int, files: int = 1_000_000) -> os.statvfs_result:
    """So many blocks of 4 KiB and so many inodes are free."""
    return os.statvfs_result((4096, 4096, 1_000_000, blocks, blocks, files, inodes, inodes, 0, 255))


class Told(list[str]):
    """What was told, and a clock."""

    now = 0.0

    def troubles(self, free: os.statvfs_result) -> Troubles:
        return Troubles(self.append, lambda: free, lambda: self.now)


def test_a_trouble_is_told_once_a_minute() -> None:
    told = Told()
    troubles = told.troubles(space(0, 0))
    assert [troubles.met(errno.ENOSPC) for _ in range(3)] == [errno.ENOSPC] * 3
    assert len(told) == 1
    assert "the store is full" in told[0]
    told.now += PAUSE
    troubles.met(errno.ENOSPC)
    assert len(told) == 2


def test_what_is_no_trouble_is_not_told() -> None:
    told = Told()
    assert told.troubles(space(0, 0)).met(errno.ENOENT) == errno.ENOENT
    assert told == []


@pytest.mark.parametrize(
    "free", [space(0, 500_000), space(10, 500_000), space(500_000, 0)], ids=["", "few", "inodes"]
)
def test_a_storage_without_room_is_full(free: os.statvfs_result) -> None:
    told = Told()
    told.troubles(free).met(errno.ENOSPC)
    assert len(told) == 1


@pytest.mark.parametrize("free", [space(500_000, 500_000), space(500_000, 0, files=0)], ids=["", "counts no inodes"])
def test_an_attribute_that_has_no_room_leaves_the_storage_as_it_is(free: os.statvfs_result) -> None:
    told = Told()
    assert told.troubles(free).met(errno.ENOSPC) == errno.ENOSPC
    assert told == []


def test_a_part_of_the_storage_may_be_full() -> None:
    told = Told()
    told.troubles(space(500_000, 500_000)).tell(errno.ENOSPC)
    assert len(told) == 1


def test_a_storage_that_can_not_be_asked_counts_as_full() -> None:
    def fails() -> os.statvfs_result:
        raise OSError(errno.EIO, "")

    told = Told()
    Troubles(told.append, fails).met(errno.ENOSPC)
    assert len(told) == 1


def test_descriptors_that_ran_out_are_the_daemons_and_are_counted() -> None:
    told = Told()
    assert told.troubles(space(0, 0)).met(errno.EMFILE) == errno.ENFILE
    assert "are open" in told[0]

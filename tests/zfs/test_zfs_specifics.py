"""What only ZFS has: foreign datasets, holds, the mount table, pools and groups that others made."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from suites.driver_suite import A, B, at, base_and_clone, get, put, read, snapshots, write

from zfsfs.driver import Destroy, DestroySnapshot, Promote, SetProperty, TakeSnapshot, viewing
from zfsfs.errors import Busy, Exists, InvalidName, Unavailable

if TYPE_CHECKING:
    from zfsfs.zfs.driver import ZfsDriver


def zfs(*arguments: str) -> str:
    return subprocess.run(["zfs", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def left_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def driver(pool: str) -> Iterator[ZfsDriver]:
    from zfsfs.zfs.driver import ZfsDriver

    before = left_open()
    driver = ZfsDriver(pool)
    driver.lock()
    driver.prepare()
    yield driver
    driver.close()
    assert left_open() in (before, before + 1), "descriptors are left (one is the library's, for /dev/zfs)"
    assert f" {pool}/" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(("name", "says"), [("nosuchpool", "zpool import"), ("", "zfs create -p")])
def test_what_is_not_there_says_what_to_do(pool: str, name: str, says: str) -> None:
    from zfsfs.zfs.driver import ZfsDriver

    with pytest.raises(Unavailable, match=says):
        ZfsDriver(name or f"{pool}/none")


def test_groups_that_are_there_keep_their_properties(pool: str) -> None:
    from zfsfs.zfs.driver import ZfsDriver

    zfs("create", "-o", "atime=on", f"{pool}/result")
    ZfsDriver(pool).prepare()
    assert zfs("get", "-Ho", "value", "atime", f"{pool}/result") == "on"
    assert zfs("get", "-Ho", "value", "atime", f"{pool}/cache") == "off"


def test_names_are_bytes_and_no_snapshots_among_them(pool: str) -> None:
    from zfsfs.zfs.driver import ZfsDriver

    odd, names = f"{pool}/odd", [b"file", b"FILE", b"\xff", b"e\xcc\x81", b"\xc3\xa9"]
    zfs("create", "-o", "casesensitivity=insensitive", "-o", "normalization=formC", "-o", "snapdir=visible", odd)
    driver = ZfsDriver(odd)
    driver.prepare()
    driver.create(A)
    with viewing(driver, A, writable=True) as root:
        for name in names:
            os.close(os.open(name, os.O_CREAT | os.O_EXCL, dir_fd=root))
        assert sorted(map(os.fsencode, os.listdir(root))) == sorted(names)
    driver.close()


def test_an_error_that_can_be_foreseen_leaves_the_whole_batch_undone(driver: ZfsDriver) -> None:
    driver.create(A)
    driver.create(B)
    with viewing(driver, B), pytest.raises(Busy):
        driver.batch([TakeSnapshot(at(A)), Destroy(B)])
    assert snapshots(driver, A) == []


def test_a_batch_may_snapshot_one_dataset_more_than_once(driver: ZfsDriver) -> None:
    driver.create(A)
    driver.batch([TakeSnapshot(at(A, name)) for name in "xyz"])
    assert snapshots(driver, A) == ["x", "y", "z"]


def test_the_swap_is_one_batch(driver: ZfsDriver) -> None:
    base_and_clone(driver)
    driver.batch([TakeSnapshot(at(B, "new")), Promote(B), SetProperty(B, "a:b", "c"), Destroy(A)])
    driver.batch([DestroySnapshot(at(B))])
    assert set(snapshots(driver, B)) == {"new"}


def test_a_conflict_of_a_promotion_is_named(driver: ZfsDriver) -> None:
    base_and_clone(driver)
    driver.snapshot(at(B))
    with pytest.raises(Exists, match="snapshot snap"):
        driver.promote(B)


def test_the_least_change_of_a_clone_is_told_from_none(driver: ZfsDriver) -> None:
    base_and_clone(driver)
    before = driver.written(B, wait=False)
    assert before is not None
    with viewing(driver, B, writable=True) as root:
        get(root)
        os.listdir(root)
        assert driver.written(B, wait=True) == before
        for mode in (0o604, 0o644):  # and back
            os.chmod("file", mode, dir_fd=root)
            after = driver.written(B, wait=True)
            assert after is not None
            assert after > before


def test_a_hold_makes_destruction_wait(driver: ZfsDriver, pool: str) -> None:
    driver.create(A)
    driver.snapshot(at(A))
    zfs("hold", "backup", f"{pool}/{at(A)}")
    driver.destroy_snapshot(at(A), defer=True)
    info = driver.info(A)
    assert info is not None
    assert [(each.holds, each.deferred) for each in info.snapshots] == [(1, True)]
    with pytest.raises(Busy, match="snapshots: snap"):
        driver.destroy(A)
    zfs("release", "backup", f"{pool}/{at(A)}")
    assert snapshots(driver, A) == []


def test_foreign_datasets_are_met_and_left_alone(driver: ZfsDriver, pool: str) -> None:
    driver.create(A)
    zfs("create", f"{pool}/{A}/deep")
    long = f"{pool}/result/{'y' * (252 - len(pool) - 8)}"
    zfs("create", long)
    assert {each for each in driver.list() if each.leaf} == {A}
    with pytest.raises(Busy, match="beneath"):
        driver.destroy(A)


def test_reading_works_with_readonly_on(driver: ZfsDriver, pool: str) -> None:
    driver.create(A)
    write(driver, A, "text")
    zfs("set", "readonly=on", f"{pool}/{A}")
    with viewing(driver, A) as one, viewing(driver, A) as two:
        assert get(one) == get(two) == "text"


def test_a_head_is_read_and_written_at_once(driver: ZfsDriver) -> None:
    driver.create(A)
    with viewing(driver, A) as frozen, viewing(driver, A, writable=True) as open_:
        put(open_, "text")
        assert get(frozen) == "text"
        with pytest.raises(OSError, match="Read-only"):
            put(frozen, "more")


def test_a_snapshot_is_viewed_twice_but_not_written(driver: ZfsDriver) -> None:
    base_and_clone(driver)
    with viewing(driver, at(A)):
        assert read(driver, at(A)) == "of a"
        with pytest.raises(InvalidName):
            driver.view(at(A), writable=True)

"""Which steps of a batch are checked before the first is done, and how they reach the channel program."""

from __future__ import annotations

import errno

import pytest

from zfsfs.driver import Destroy, DestroySnapshot, Promote, RenameSnapshot, SetProperty, Step, TakeSnapshot
from zfsfs.errors import Busy, DriverError, InvalidName, Missing, NoSpace, Stopped
from zfsfs.names import Dataset, PoolName, Snapshot
from zfsfs.zfs import changes, library, programs

POOL = PoolName("tank/ci")
A, B = Dataset("cache", "c-a"), Dataset("cache-tmp", "1-c-a")


def checked(*steps: Step) -> list[bool]:
    return [mark == b"check" for mark in changes.encode(POOL, steps)[::5]]


@pytest.mark.parametrize(
    ("steps", "ahead"),
    [
        ([TakeSnapshot(Snapshot(A, "x")), Destroy(B)], [True, True]),
        ([TakeSnapshot(Snapshot(B, "x")), Promote(B)], [True, True]),
        ([RenameSnapshot(Snapshot(A, "x"), "y"), Promote(B)], [True, False]),
        ([DestroySnapshot(Snapshot(A, "x")), Destroy(A)], [True, False]),
        ([DestroySnapshot(Snapshot(A, "x")), Destroy(B)], [True, True]),
        ([Promote(B), Destroy(A), SetProperty(B, "a:b", "c")], [True, False, False]),
        ([SetProperty(A, "a:b", "c"), TakeSnapshot(Snapshot(A, "x"))], [True, True]),
    ],
)
def test_a_step_is_checked_ahead_when_no_earlier_one_bears_on_it(steps: list[Step], ahead: list[bool]) -> None:
    assert checked(*steps) == ahead


def test_steps_are_five_strings_each() -> None:
    assert changes.encode(POOL, [SetProperty(A, "a:b", ""), RenameSnapshot(Snapshot(A, "x"), "y")]) == [
        *(b"check", b"set_prop", b"tank/ci/cache/c-a", b"a:b", b""),
        *(b"check", b"rename_snapshot", b"tank/ci/cache/c-a", b"x", b"y"),
    ]


def test_a_new_name_that_is_none_is_refused_before_anything_is_done() -> None:
    with pytest.raises(InvalidName):
        changes.encode(POOL, [RenameSnapshot(Snapshot(A, "x"), "a/b")])


def test_a_snapshot_of_somebody_else_may_have_the_longest_name_that_there_is() -> None:
    longest = Snapshot(A, "x" * (255 - len(f"{POOL.name}/{A}@")))
    assert changes.encode(POOL, [DestroySnapshot(longest)])[2] == f"{POOL.name}/{longest}".encode()
    with pytest.raises(InvalidName):
        changes.encode(POOL, [DestroySnapshot(Snapshot(A, longest.name + "x"))])


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOENT, Missing),
        (errno.EBUSY, Busy),
        (errno.EDQUOT, NoSpace),
        (errno.ENAMETOOLONG, DriverError),
        (errno.E2BIG, DriverError),
    ],
)
def test_numbers_are_kept(number: int, kind: type[Exception]) -> None:
    error = library.meaning(number, "tank/ci/cache/c-a")
    assert type(error) is kind
    assert error.errno == number


def test_a_suspended_pool_is_an_error_of_the_storage_to_callers() -> None:
    error = library.meaning(errno.EAGAIN, "tank/ci/cache/c-a")
    assert isinstance(error, Stopped)
    assert error.errno == errno.EIO
    assert "zpool clear" in str(error)


def test_a_listing_leaves_out_what_is_not_ours_and_keeps_snapshots_in_their_order() -> None:
    snapshots = {b"new": b"20 -1 0 0 nil", b"old": b"7 3 1 0 on", b"%recv": b"30 4 0 0 false"}
    listing = programs.parse_listing(
        POOL,
        {
            b"tank/ci/cache/c-a": {b"guid": -2, b"created": 9, b"snapshots": snapshots},
            b"tank/ci/cache-tmp/1-c-a": {b"guid": 5, b"created": 9, b"origin": b"tank/else@x"},
            b"tank/ci/result/%hidden": {b"guid": 6, b"created": 9},
        },
    )
    assert set(listing) == {A, B}
    assert [each.snapshot.name for each in listing[A].snapshots] == ["old", "new"]
    assert listing[A].snapshots[0].deferred
    assert listing[A].guid == 2**64 - 2
    assert (listing[B].origin, listing[B].origin_name) == (None, "tank/else@x")

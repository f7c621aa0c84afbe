"""Which failed builds are kept, and until when: by a clock that the test has."""

from __future__ import annotations

import math

import pytest

from zfsfs.config import KeepFailed
from zfsfs.fs.building import surplus
from zfsfs.names import BuildId
from zfsfs.store import FailedInfo
from zfsfs.store.layout import failure

DAY = 86400.0


def failed(name: str, ended: float) -> FailedInfo:
    ident = BuildId(name.encode())
    return FailedInfo(ident, None, 0.0, 1, failure(1, ident), ended, {})


@pytest.mark.parametrize(
    ("keep", "now", "gone"),
    [
        (KeepFailed(0, math.inf), 30.0, ["c", "b", "a"]),
        (KeepFailed(2, math.inf), 30.0, ["a"]),
        (KeepFailed(3, math.inf), 1e12, []),
        (KeepFailed(3, DAY), 30.0 + DAY - 21, []),
        (KeepFailed(3, DAY), 10.0 + DAY, ["a"]),
        (KeepFailed(3, DAY), 20.0 + DAY, ["b", "a"]),
        (KeepFailed(1, DAY), 30.0 + DAY, ["c", "b", "a"]),
        (KeepFailed(3, 0.0), 30.0, ["c", "b", "a"]),
    ],
)
def test_those_that_are_too_many_or_too_old_go(keep, now, gone):
    three = [failed("b", 20.0), failed("a", 10.0), failed("c", 30.0)]
    assert [str(each.id) for each in surplus(three, keep, now)] == gone

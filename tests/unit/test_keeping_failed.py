"""Which failed builds are kept, and until when, and what is said of those that can't go: by a clock of the test's."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import trio

from zfsfs.config import KeepFailed
from zfsfs.errors import Busy
from zfsfs.fs.building import Builders, surplus
from zfsfs.names import BuildId
from zfsfs.store import EventLog, FailedInfo
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


class Tidying(Builders):
    """One whose tree has a failed build that is held, and no path."""

    def __init__(self) -> None:
        self.tried: list[float] = []
        self.why = "somebody has it"
        kept = {each.id: each for each in [failed("held", 0.0)]}
        self.events = EventLog(trio.current_time)
        store = SimpleNamespace(builds=SimpleNamespace(failed=lambda: kept), events=self.events)
        tree = SimpleNamespace(store=store, failures=SimpleNamespace(forget=self.forget))
        super().__init__(tree, {}, "", "", None, None, None, KeepFailed(5, 1.0), trio.current_time)

    async def forget(self, ident: BuildId) -> None:
        self.tried.append(trio.current_time())
        raise Busy(self.why)

    async def _by_path(self, verb, directly=None) -> None:
        await directly()


async def test_what_keeps_a_failed_build_from_being_deleted_is_said_once(autojump_clock):
    tidying, begun = Tidying(), trio.current_time()
    for why in ("somebody has it", "somebody else has it"):
        tidying.why = why
        with trio.move_on_after(3600):
            await tidying.tidy()
    assert [event.text for event in tidying.events.recent] == [
        "failed build held can't be deleted yet: somebody has it",
        "failed build held can't be deleted yet: somebody else has it",
    ]
    assert [time - begun for time in tidying.tried[:8]] == [1, 3, 7, 15, 31, 63, 123, 183]

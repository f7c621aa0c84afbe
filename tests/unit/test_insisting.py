"""What has to be done sooner or later."""

from __future__ import annotations

import trio

from zfsfs.errors import DriverError, Missing
from zfsfs.fs.insisting import insist


class Stubborn:
    """What fails with these, one after another, and then goes well. `tried` says when."""

    def __init__(self, *failures: Exception) -> None:
        self._failures = list(failures)
        self.tried: list[float] = []
        self.said: list[str] = []

    async def __call__(self) -> None:
        self.tried.append(trio.current_time())
        await trio.lowlevel.checkpoint()
        if self._failures:
            raise self._failures.pop(0)

    def say(self, why: Exception) -> None:
        self.said.append(str(why))


async def test_it_is_tried_ever_more_rarely_until_it_goes_well_and_said_once_why_not(autojump_clock):
    verb, begun = Stubborn(*[DriverError("broken")] * 9, OSError("another thing")), trio.current_time()
    await insist(verb, verb.say)
    assert verb.said == ["broken", "another thing"]
    assert [time - begun for time in verb.tried] == [0, 0.5, 1.5, 3.5, 7.5, 15.5, 31.5, 63.5, 123.5, 183.5, 243.5]


async def test_it_is_over_when_somebody_else_has_done_it(autojump_clock):
    for gone in (Missing("gone"), FileNotFoundError()):
        verb = Stubborn(DriverError("broken"), gone)
        await insist(verb, verb.say)
        assert len(verb.tried) == 2


async def test_the_end_waits_for_one_attempt_and_no_more(autojump_clock):
    verb, end = Stubborn(*[DriverError("broken")] * 9), trio.Event()
    end.set()
    await insist(verb, verb.say, end)
    assert len(verb.tried) == 1


async def test_who_is_cancelled_has_tried_it_once(autojump_clock):
    verb = Stubborn(*[DriverError("broken")] * 9)
    with trio.CancelScope() as scope:
        scope.cancel()
        await insist(verb, verb.say)
    assert scope.cancelled_caught
    assert len(verb.tried) == 1

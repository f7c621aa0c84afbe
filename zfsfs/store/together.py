"""A verb that several ask for at the same time, carried out once for all of them.

Guarantees
- Each who asks waits for its own only, and gets what became of that.
- Who is alone waits for nobody. Others who ask in one pass of the event loop are carried out together, and so are
  those who ask while `MOST` are under way: the verb waits for the storage, which takes many as fast as one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from zfsfs.errors import ZfsfsError
from zfsfs.threads import in_thread

T = TypeVar("T")

#: While the storage writes one transaction group, another can be filled.
MOST = 2


@dataclass(eq=False, slots=True)
class _Wish(Generic[T]):
    subject: T
    over: bool = False
    failure: Exception | None = None


class Together(Generic[T]):
    """See the module. `verb`, which may wait, returns what became of each subject, in their order."""

    def __init__(self, verb: Callable[[Sequence[T]], Sequence[ZfsfsError | None]]) -> None:
        self._verb = verb
        self._waiting: list[_Wish[T]] = []
        self._under_way = 0
        self._parked = trio.lowlevel.ParkingLot()

    async def carry_out(self, subject: T) -> None:
        """The verb on a subject; it can't be cancelled. Raises what became of that."""
        mine = _Wish(subject)
        self._waiting.append(mine)
        with trio.CancelScope(shield=True):
            if self._under_way:
                await trio.lowlevel.checkpoint()
            while not mine.over:
                if mine in self._waiting and self._under_way < MOST:
                    await self._all_waiting()
                else:
                    await self._parked.park()
        if mine.failure is not None:
            raise mine.failure

    async def _all_waiting(self) -> None:
        wishes, self._waiting = self._waiting, []
        self._under_way += 1
        try:
            outcomes = await in_thread(self._verb, [each.subject for each in wishes])
            for each, outcome in zip(wishes, outcomes, strict=True):
                each.failure = outcome
        except Exception as failure:
            for each in wishes:
                each.failure = failure
        finally:
            for each in wishes:
                each.over = True
            self._under_way -= 1
            self._parked.unpark_all()

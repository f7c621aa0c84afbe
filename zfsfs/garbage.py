"""Python's search for what is unreachable in cycles looks at every object there is, and stops everything meanwhile:
0.8 s where the kernel knows a million inodes. So all of them are looked at only while nobody asks for anything.

Almost everything goes by its count of references. What is young is looked at as ever, some hundred objects at a time.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

import trio

#: Seconds between two looks whether now is the time, and the most inodes that are looked at: 50 ms.
PAUSE, MOST = 10.0, 50_000
#: More than there will ever be.
_NEVER = 1 << 30


def put_off() -> None:
    """What there is now stays for ever; all the rest is looked at by `collect_when_idle` only."""
    gc.freeze()
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, _NEVER)


async def collect_when_idle(idle: Callable[[], bool], inodes: Callable[[], int]) -> None:
    """Look for what is unreachable whenever nobody asks for anything, until cancelled."""
    while True:
        await trio.sleep(PAUSE)
        _, _, since = gc.get_count()
        if since and idle() and inodes() < MOST:
            gc.collect()

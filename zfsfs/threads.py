"""Calls that may wait, in threads of trio's; and what goes on when there are none to be had."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import trio

from zfsfs.errors import DriverError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: For calls that wait for something that we ourselves have to answer first, or for somebody else's filesystem: of
#: them there may be any number. What trio allows by default they would use up, and what they wait for would get none.
UNLIMITED = trio.CapacityLimiter(math.inf)
#: Seconds after which a service that ended for want of memory goes on.
PAUSE = 1.0


async def in_thread(
    call: Callable[..., T],
    *arguments: Any,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """What the call returns or raises. Raises DriverError ENOMEM where the system gives no thread, for want of memory
    or because of a limit of processes."""
    try:
        return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=abandon_on_cancel, limiter=limiter)
    except RuntimeError as failure:
        if "start new thread" not in str(failure):
            raise
        raise DriverError("no thread can be started: memory or processes have run out", errno.ENOMEM) from None
    except MemoryError:
        raise DriverError("the daemon has run out of memory", errno.ENOMEM) from None


async def lasting(service: Callable[[], Awaitable[None]]) -> None:
    """A service that can be begun anew at any time is, when memory or threads have run out; until cancelled."""
    while True:
        try:
            await service()
            return
        except (MemoryError, DriverError) as failure:
            log.warning("a service begins anew: %s", failure or "out of memory")
        await trio.sleep(PAUSE)

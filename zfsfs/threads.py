"""Calls that may wait, in threads of trio's; and what goes on when there are none to be had."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

from zfsfs.errors import DriverError, ZfsfsError

log = logging.getLogger(__name__)

T = TypeVar("T")

#: For calls that wait for something that we ourselves have to answer first, or for somebody else's filesystem: of
#: them there may be any number. What trio allows by default they would use up, and what they wait for would get none.
UNLIMITED = trio.CapacityLimiter(math.inf)
#: Seconds after which goes on what ended for want of something.
PAUSE = 1.0


@contextmanager
def starting_a_thread() -> Iterator[None]:
    """Raises DriverError ENOMEM where the block gets no thread or memory."""
    try:
        yield
    except RuntimeError as failure:
        if "start new thread" not in str(failure):
            raise
        raise DriverError("no thread can be started: memory or processes have run out", errno.ENOMEM) from None
    except MemoryError:
        raise DriverError("the daemon has run out of memory", errno.ENOMEM) from None


async def in_thread(
    call: Callable[..., T],
    *arguments: Any,
    abandon_on_cancel: bool = False,
    limiter: trio.CapacityLimiter | None = None,
) -> T:
    """What the call returns or raises. Raises DriverError ENOMEM where the system gives no thread, for want of memory
    or because of a limit of processes."""
    with starting_a_thread():
        return await trio.to_thread.run_sync(call, *arguments, abandon_on_cancel=abandon_on_cancel, limiter=limiter)


async def at_last(call: Callable[..., T], *arguments: Any) -> T:
    """The same, for what may wait for us: where no thread is to be had now, as soon as one is."""
    while True:
        try:
            return await in_thread(call, *arguments, abandon_on_cancel=True, limiter=UNLIMITED)
        except DriverError:
            await trio.sleep(PAUSE)


async def lasting(service: Callable[[], Awaitable[None]]) -> None:
    """A service that can be begun anew at any time is, when memory, threads or descriptors have run out, or the
    storage fails; until cancelled."""
    while True:
        try:
            await service()
            return
        except (MemoryError, OSError, ZfsfsError) as failure:
            log.warning("a service begins anew: %s", failure or "out of memory")
        await trio.sleep(PAUSE)

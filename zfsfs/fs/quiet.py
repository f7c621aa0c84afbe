"""Before an area ends or becomes something else: see that nobody is at work in it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from zfsfs.errors import Busy
from zfsfs.fs.area import Area
from zfsfs.names import shown
from zfsfs.store.arriving import Arrive, again, at_once

#: Seconds that a handle may take to be released after close(2) returned.
DRAIN = 1.0
#: Seconds between two looks at what is mapped.
_PAUSE = 0.02
#: Seconds that what was killed may take to be gone, on a machine that has much to do.
GONE = 60.0


def patience(arrive: Arrive) -> float:
    """Seconds for which a verb waits that others let go: who has waited does not do it again."""
    return 0.0 if arrive is again else DRAIN


async def not_native(area: Area, arrive: Arrive = at_once) -> None:
    """Raises Busy while somebody has the area natively."""
    if area.held is not None:
        area.held.look()
        with trio.move_on_after(patience(arrive)):
            await area.until(lambda: area.held is None)
    if area.held is not None:
        who = ", ".join(area.held.names())
        raise Busy(f"{shown(area.place.path())} is native for somebody: {who}")


async def not_written(area: Area, otherwise: str, arrive: Arrive = at_once) -> None:
    """See that nothing beneath is open for writing, or mapped for it. Raises Busy, which begins with `otherwise`."""
    await unmapped(area, lambda: not area.writers, patience(arrive))
    if area.writers:
        raise Busy(f"{otherwise}: {area.writers} files in it are open for writing")
    if area.mapped:
        raise Busy(f"{otherwise}: {len(area.mapped)} files in it are mapped to be written")


async def unmapped(area: Area, quiet: Callable[[], bool], seconds: float) -> None:
    """Wait, so many seconds at most, until handles have gone such that an area is quiet, and until nothing in it is
    mapped to be written. Both are so when this returns, or too late. It is looked once at least."""
    # RELEASE comes after close(2) has returned, and a mapping goes without a word.
    end = trio.current_time() + seconds
    while not quiet() or area.mapped:
        with trio.move_on_at(end):
            await area.until(quiet)
        mapped = await area.table.mapped(area)
        if trio.current_time() >= end:
            return
        if mapped:
            await trio.sleep(_PAUSE)


async def abandoned(area: Area) -> None:
    """Those who had an area natively have been killed: give them the time to be gone."""
    with trio.move_on_after(GONE):
        while area.held is not None:
            area.held.look()
            with trio.move_on_after(DRAIN):
                await area.until(lambda: area.held is None)


async def closed(area: Area, arrive: Arrive) -> None:
    """Give handles that were just closed the time to be released; those that are open stay."""
    with trio.move_on_after(patience(arrive)):
        await area.until(lambda: not area.opens)

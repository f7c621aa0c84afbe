"""What has to be done sooner or later, whatever stands in its way now."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from zfsfs.errors import Missing, ZfsfsError

#: Seconds before the second attempt, and the most that lie between two.
FIRST = 0.5
LONGEST = 60.0


async def insist(
    verb: Callable[[], Awaitable[object]], say: Callable[[Exception], object], end: trio.Event | None = None
) -> None:
    """Do something until it succeeds, or what it is about is not there any more, ever more rarely; `say` is called
    with what stands in its way, once as long as that stays the same. With `end` set it is tried once and no more; who
    is cancelled has tried it once, too."""
    said, pause = "", FIRST
    end = trio.Event() if end is None else end
    while True:
        try:
            with trio.CancelScope(shield=True):
                await verb()
            return
        except (Missing, FileNotFoundError):
            return
        except (ZfsfsError, OSError, MemoryError) as failure:
            if str(failure) != said:
                said = str(failure)
                say(failure)
        with trio.move_on_after(pause):
            await end.wait()
        if end.is_set():
            return
        pause = min(pause * 2, LONGEST)

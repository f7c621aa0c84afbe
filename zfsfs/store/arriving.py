"""Verbs that end in two steps: what they do is on the disk, and then the tables say so.

Who asked may have to come back first: until then all has to look as it did before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

#: Awaited by a verb between the two. It raises nothing.
Arrive = Callable[[], Awaitable[None]]


async def at_once() -> None:
    """An `Arrive` of who is there."""


async def again() -> None:
    """An `Arrive` of who is there, and whose verb has failed just now, after it had waited for all there is to wait
    for: it is tried anew with the kernel's locks held, and waits for nobody."""

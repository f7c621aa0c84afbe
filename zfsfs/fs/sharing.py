"""A look that is shared by all who want one before it begins."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class _Look(Generic[T]):
    found: T
    done = False


class Shared(Generic[T]):
    """`look` looks, one at a time. What it finds is good for who asked before it began, and for nobody else: it may
    have missed what came after that."""

    def __init__(self, look: Callable[[], Awaitable[T]]) -> None:
        self._look = look
        self._looking = trio.Lock()
        self._next: _Look[T] | None = None

    async def result(self) -> T:
        """What a look finds that begins from now on. Raises what `look` raises: the others then look again."""
        mine = self._next
        if mine is None:
            mine = self._next = _Look()
        async with self._looking:
            if not mine.done:
                if self._next is mine:
                    self._next = None
                mine.found = await self._look()
                mine.done = True
        return mine.found

"""Threads for calls that may wait for a disk, which the event loop waits for a moment before it looks elsewhere.

Most reads and writes end in microseconds, in the page cache; going to another thread and back through the event
loop costs more than the call. So the loop hands the call over and waits, blocking, for at most `PATIENCE`; only
a call that takes longer goes the long way and lets others be answered meanwhile.

Guarantee: who writes, or has written what was, takes no thread from those who look and read, however long it takes.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import trio

#: Seconds that the event loop may stand still for a call.
PATIENCE = 0.0003

T = TypeVar("T")


class Call(Generic[T]):
    """A function that a thread runs."""

    __slots__ = ("_error", "_function", "_result", "_running", "waiter")

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: T
        self._error: BaseException | None = None
        self._running = threading.Lock()
        self._running.acquire()
        self.waiter: tuple[trio.lowlevel.TrioToken, trio.Event] | None = None

    def run(self) -> None:
        """In the thread."""
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._running.release()

    def has_ended(self, patience: float = 0) -> bool:
        """Whether it has; so many seconds are waited for that, blocking."""
        ended = self._running.acquire(timeout=patience)
        if ended:
            self._running.release()
        return ended

    def result(self) -> T:
        """What the function returned; raises what it raised. Once it has ended."""
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None
        return self._result


_Calls = queue.SimpleQueue[Call[Any] | None]


class Workers:
    """A fixed number of threads for what `writes`, as many for what does not. Calls are carried out to their end even
    when whoever asked is cancelled."""

    def __init__(self, count: int = 16) -> None:
        self._calls: dict[bool, _Calls] = {False: queue.SimpleQueue(), True: queue.SimpleQueue()}
        self._guard = threading.Lock()
        self._threads = [
            threading.Thread(target=self._work, args=(calls,), name=f"zfsfs-io-{number}", daemon=True)
            for calls in self._calls.values()
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, calls: _Calls) -> None:
        while (call := calls.get()) is not None:
            call.run()
            with self._guard:  # against `until_ended`, which leaves its waiter and then looks again
                waiter = call.waiter
            if waiter is not None:
                token, event = waiter
                with contextlib.suppress(trio.RunFinishedError):
                    token.run_sync_soon(event.set)

    def put(self, function: Callable[[], None], *, writes: bool = False) -> None:
        """Run a function in a thread. It sees to its errors and to what comes of it."""
        self.begin(function, writes=writes)

    def begin(self, function: Callable[[], T], *, writes: bool = False) -> Call[T]:
        """Run a function in a thread; who wants to know its end asks."""
        call = Call(function)
        self._calls[writes].put(call)
        return call

    async def until_ended(self, call: Call[Any]) -> None:
        """Return once a function has ended, however."""
        if call.has_ended():
            return
        event = trio.Event()
        with self._guard:
            call.waiter = (trio.lowlevel.current_trio_token(), event)
        if not call.has_ended():
            with trio.CancelScope(shield=True):
                await event.wait()

    async def run(self, function: Callable[[], T], *, writes: bool = False) -> T:
        """The function's result, or what it raised; it runs in a thread."""
        call = self.begin(function, writes=writes)
        if not call.has_ended(PATIENCE):
            await self.until_ended(call)
        return call.result()

    def close(self) -> None:
        """End the threads once what was handed over is done."""
        for calls in self._calls.values():
            for _ in self._threads:  # more than wait there
                calls.put(None)
        for thread in self._threads:
            thread.join()

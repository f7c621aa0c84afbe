"""Keeping a virtual machine's idle processors awake while requests keep coming.

Who asks sleeps until it is answered, and the processor that it ran on goes idle meanwhile. An idle processor of a
virtual machine may leave for the host, and to fetch it back takes some 28 us: more than all else that a request
costs. So while many come, the kernel is told that nobody can wait for a processor to wake up. Idle ones then look for
work until there is some, as they would otherwise do for a moment only, or not at all.

Guarantees
- Processors may sleep again `LASTING` seconds after the last of many requests, and when the daemon ends, however.
- Nothing is asked for where it costs much or is of no use: see `device`.

Sources: Documentation/power/pm_qos_interface.rst and Documentation/virt/guest-halt-polling.rst of the kernel;
`haltpoll_select` in its drivers/cpuidle/governors/haltpoll.c.
"""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path
from struct import Struct

import trio

#: Many are at least so many, and so many a second.
MANY, OFTEN = 16, 4000
#: Seconds that processors are kept awake after that. To begin and to end it wakes all that are idle.
LASTING = 0.01
#: All processors are kept awake, for the sake of two: not where there are more.
MOST_PROCESSORS = 8

_DEVICE = Path("/dev/cpu_dma_latency")
_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_LATENCY = Struct("=i")  # microseconds
_NONE, _ANY = 0, 2_000_000_000


def device(path: Path = _DEVICE, driver: Path = _DRIVER, processors: int | None = None) -> int:
    """A descriptor that latencies are written to; -1 where nothing is to be gained (idle processors are not those of
    a virtual machine, or are nobody's that can be told) or too much is to be paid (there are many)."""
    try:
        if driver.read_text().strip() != "haltpoll" or (processors or os.cpu_count() or 1) > MOST_PROCESSORS:
            return -1
        return os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except OSError:
        return -1


class Awake:
    """See the module. `device` is the caller's no more; -1: nobody is kept awake."""

    def __init__(self, device: int = -1) -> None:
        self._device = device
        self._count, self._since = 0, -math.inf
        self._many = trio.Event()
        self._while_kept = trio.CancelScope()

    @property
    def kept(self) -> bool:
        """Whether processors are kept awake, or are about to be."""
        return self._many.is_set()

    def asked(self, count: int) -> None:
        """So many requests came in one go."""
        self._count += count
        if self._count < MANY or self._device < 0:
            return
        now = trio.current_time()
        if self._count > OFTEN * (now - self._since):
            self._while_kept.deadline = now + LASTING
            self._many.set()
        self._count, self._since = 0, now

    async def watch(self) -> None:
        """Keep processors awake when it is time, for as long as it is."""
        while True:
            await self._many.wait()
            self._say(_NONE)
            with self._while_kept:
                await trio.sleep_forever()
            self._say(_ANY)
            self._many, self._while_kept = trio.Event(), trio.CancelScope()

    def _say(self, latency: int) -> None:
        with suppress(OSError):  # it goes on as before
            os.write(self._device, _LATENCY.pack(latency))

    def close(self) -> None:
        """Processors may sleep."""
        if self._device >= 0:
            os.close(self._device)
            self._device = -1

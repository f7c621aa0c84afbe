"""When processors are kept from sleeping: the kernel's device is a pipe here, and time is the test's."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from zfsfs.fs.awake import LASTING, MANY, MOST_PROCESSORS, OFTEN, Awake, device


class Kernel:
    """What hears how long a processor may take to wake up: 0 us, or as long as it likes."""

    def __init__(self) -> None:
        self._heard, told = os.pipe()
        os.set_blocking(self._heard, False)
        self.awake = Awake(told)

    def heard(self) -> str:
        """What it was told since it was last asked."""
        try:
            said = os.read(self._heard, 100)
        except BlockingIOError:
            return ""
        return " ".join("awake" if latency == 0 else "sleep" for (latency,) in struct.iter_unpack("=i", said))

    def close(self) -> None:
        os.close(self._heard)
        self.awake.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


async def ask(kernel: Kernel, times: int, pause: float) -> None:
    for _ in range(times):
        kernel.awake.asked(1)
        await trio.sleep(pause)


async def test_while_many_ask_processors_are_awake_and_then_sleep_again(
    kernel: Kernel, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(kernel.awake.watch)
    await ask(kernel, 3 * MANY, 0.5 / OFTEN)
    assert kernel.heard() == "awake"
    await ask(kernel, 20 * MANY, 0.5 / OFTEN)
    assert kernel.heard() == ""
    await trio.sleep(LASTING)
    assert kernel.heard() == "sleep"
    await ask(kernel, 3 * MANY, 0.5 / OFTEN)
    assert kernel.heard() == "awake"


async def test_who_asks_now_and_then_keeps_nobody_awake_nor_does_one_burst(
    kernel: Kernel, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(kernel.awake.watch)
    await ask(kernel, 20 * MANY, 2 / OFTEN)
    await trio.sleep(1)
    kernel.awake.asked(MANY)
    await trio.sleep(1)
    assert kernel.heard() == ""


async def test_many_and_then_a_few_let_them_sleep(
    kernel: Kernel, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    nursery.start_soon(kernel.awake.watch)
    await ask(kernel, 3 * MANY, 0.5 / OFTEN)
    await ask(kernel, 3 * MANY, LASTING / 2)
    assert kernel.heard() == "awake sleep"


async def test_what_the_kernel_does_not_take_disturbs_nobody(nursery: trio.Nursery) -> None:
    refusing = Awake(os.open(os.devnull, os.O_RDONLY))
    nursery.start_soon(refusing.watch)
    for _ in range(3):
        refusing.asked(1000)
    await wait_all_tasks_blocked()
    refusing.close()


async def test_without_a_device_nothing_is_said() -> None:
    awake = Awake()
    awake.asked(1000)
    awake.asked(1000)
    awake.close()


@pytest.mark.parametrize(
    ("driver", "processors", "there", "used"),
    [
        ("haltpoll\n", 2, True, True),
        ("haltpoll\n", MOST_PROCESSORS, True, True),
        ("haltpoll\n", MOST_PROCESSORS + 1, True, False),
        ("intel_idle\n", 2, True, False),
        ("none\n", 2, True, False),
        (None, 2, True, False),
        ("haltpoll\n", 2, False, False),
    ],
)
def test_where_it_is_done(tmp_path: Path, driver: str | None, processors: int, there: bool, used: bool) -> None:
    if driver is not None:
        (tmp_path / "driver").write_text(driver)
    if there:
        (tmp_path / "device").touch()
    fd = device(tmp_path / "device", tmp_path / "driver", processors)
    assert (fd >= 0) == used
    if used:
        assert not os.get_inheritable(fd)
        os.close(fd)

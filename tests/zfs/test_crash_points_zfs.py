"""Crash points on real ZFS, where a verb takes some 50 ms and reading a store the longer the more is in it.

So a covering set is run: every sequence that is no part of another, before each of its calls (a batch is one: one
transaction group there), with other sessions where they change what lies on the disk, several scenes in one store
with one recovery; and the recovery from each state of the swap, stopped after every call. ZFSFS_CRASH_POINTS=all adds
the other sequences, all numbers of other sessions, the steps of batches as calls, and every recovery in small steps
(an hour in emulation).
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from crash_counts import counted
from suites.crash_suite import (
    SEQUENCES,
    Armed,
    Scene,
    Sequence,
    recovered_step_by_step,
    release_that_wins,
    settled,
    start_up,
    start_up_after_obuilder_was_cut_off,
    stopped,
)

from zfsfs.driver import Driver
from zfsfs.names import Dataset
from zfsfs.store import Store, carry_out

ALL = os.environ.get("ZFSFS_CRASH_POINTS") == "all"
#: Those that recover the whole store: they are what is stopped below.
RECOVERING = (start_up, start_up_after_obuilder_was_cut_off)
#: How many scenes share a store.
SHARING = 8


def cases() -> Iterator[tuple[Sequence, int]]:
    for sequence in SEQUENCES:
        if sequence.run in RECOVERING or ((sequence.acted or sequence.within) and not ALL):
            continue
        if sequence.needs != "cache":
            yield sequence, 0
        elif ALL:
            yield from ((sequence, others) for others in (0, 1, 3))
        else:
            yield sequence, 3 if sequence.run is release_that_wins else 1


@pytest.fixture
def driver(unlocked: Driver) -> Driver:
    return unlocked


async def scene_in(driver: Driver, sequence: Sequence, others: int, number: int) -> tuple[Scene, Armed]:
    """A scene in a store that a process has just found empty; its names are its own."""
    stop = Armed(driver, split=ALL)
    store = Store(stop)
    store._numbers.next = 1000 * number + 1
    scene = Scene(store, f"-{number}")
    await scene.set(sequence.needs, others)
    return scene, stop


@pytest.mark.parametrize(("sequence", "others"), list(cases()), ids=str)
async def test_a_crash_before_any_call_loses_nothing(driver: Driver, sequence: Sequence, others: int) -> None:
    budget, within, cut = 0, 0, True
    while cut:
        scenes: list[Scene] = []
        while cut and len(scenes) < SHARING:
            scene, stop = await scene_in(driver, sequence, others, budget)
            cut = await stopped(sequence, scene, stop, budget)
            scenes.append(scene)
            budget += cut
        if ALL:
            within += recovered_step_by_step(driver)[1]
        else:
            carry_out(driver)
        settled(driver)
        for scene in scenes:
            scene.look(driver)
    counted("ZFS", sequence, budget, within)
    assert budget, "there was nothing to stop"


@pytest.mark.parametrize("sequence", [each for each in SEQUENCES if each.run is release_that_wins], ids=str)
async def test_recovery_is_stopped_after_every_call(driver: Driver, sequence: Sequence) -> None:
    budget, within, cut = 0, 0, True
    while cut:
        scene, stop = await scene_in(driver, sequence, 1, budget)
        cut = await stopped(sequence, scene, stop, budget)
        within += recovered_step_by_step(driver)[1]
        scene.look(driver)
        budget += cut
    settled(driver)
    counted("ZFS", "recovery", 0, within)
    assert within > budget


async def test_a_start_after_obuilder_was_cut_off_is_stopped_after_every_call(driver: Driver) -> None:
    sequence = next(each for each in SEQUENCES if each.run is start_up_after_obuilder_was_cut_off)
    scene, stop = await scene_in(driver, sequence, 1, 0)
    assert await stopped(sequence, scene, stop, 2), "OBuilder's two calls, and none of ours"
    _, within = recovered_step_by_step(driver)
    settled(driver)
    scene.look(driver)
    counted("ZFS", sequence, 0, within)
    assert within


@pytest.mark.parametrize("made", range(len(Dataset.GROUPS)))
async def test_the_first_start_on_an_empty_pool_may_be_cut_off_anywhere(pool: str, made: int) -> None:
    from zfsfs.zfs.driver import ZfsDriver

    driver = ZfsDriver(pool)
    for group in Dataset.GROUPS[:made]:
        driver._create_group(Dataset(group))
    store = Store(driver)
    report = await store.start()
    assert (report.done, report.warnings) == ([], [])
    assert set(driver.list()) == {Dataset(group) for group in Dataset.GROUPS}
    await store.close()
    counted("ZFS", "first start", 1, 0)

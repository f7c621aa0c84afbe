"""Every sequence of the store, stopped before each of its calls, and the recovery from it, stopped likewise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from crash_counts import counted
from faults import PowerCut, Stopping
from storages import DirectoryStorage, DyingDirectory, FakeStorage, folder
from suites.crash_suite import (
    PLENTY,
    SEQUENCES,
    Armed,
    Scene,
    Sequence,
    foreign_snapshots,
    recovered_step_by_step,
    settled,
    stopped,
    until_cut,
)

from zfsfs.driver import Driver
from zfsfs.names import Dataset
from zfsfs.store import Store, carry_out

Storage = FakeStorage | DirectoryStorage

every_sequence = pytest.mark.parametrize("sequence", SEQUENCES, ids=str)
OTHERS = (0, 1, 3)


def others_of(sequence: Sequence) -> tuple[int, ...]:
    """Other sessions are open where a sequence is about a cache."""
    return OTHERS if sequence.needs == "cache" else (0,)


@pytest.fixture
def room() -> Iterator[Path]:
    with folder() as path:
        yield path


async def scene_on(driver: Driver, sequence: Sequence, others: int, foreign: bool) -> tuple[Scene, Armed]:
    stop = Armed(driver)
    store = Store(stop)
    await store.start()
    scene = Scene(store)
    await scene.set(sequence.needs, others, foreign=foreign)
    return scene, stop


def whole(storage: Storage, scene: Scene, daily: int | None) -> None:
    """The store is as it may be after a recovery."""
    driver = storage.driver()
    driver.prepare()
    settled(driver)
    scene.look(driver)
    if daily is not None:
        assert foreign_snapshots(driver) == daily, "somebody else's snapshot is gone"
    driver.close()
    assert storage.leaks() == []


def recovered(storage: Storage, budget: int) -> bool:
    """Recovery, with so many calls. Whether it was cut."""
    stopping = Stopping(storage.driver(), budget)
    try:
        stopping.prepare()
        carry_out(stopping)
    except PowerCut:
        return True
    finally:
        stopping.close()
    return False


async def points(storage: Storage, sequence: Sequence, others: int, foreign: bool, budget: int) -> tuple[bool, int]:
    """One crash point, and each of those of the recovery from it: whether it was one, and how many these are."""
    scene, stop = await scene_on(storage.driver(), sequence, others, foreign)
    daily = foreign_snapshots(stop) if foreign and not sequence.deletes else None
    cut = await stopped(sequence, scene, stop, budget)
    stop.close()
    within = 0
    while True:
        spoilt = storage.copy()
        interrupted = recovered(spoilt, within)
        if interrupted:
            recovered(spoilt, PLENTY)
        whole(spoilt, scene, daily)
        if not interrupted:
            return cut, within
        within += 1


@pytest.mark.parametrize("foreign", [False, True], ids=["", "with foreign snapshots"])
@every_sequence
async def test_a_crash_before_any_call_and_before_any_of_the_recovery_loses_nothing(
    sequence: Sequence, foreign: bool
) -> None:
    for others in others_of(sequence):
        budget, cut, within = 0, True, 0
        while cut:
            cut, more = await points(FakeStorage(), sequence, others, foreign, budget)
            budget, within = budget + cut, within + more
        counted("the fake", sequence, budget, within)
        assert budget or foreign, "there was nothing to stop"


@every_sequence
async def test_on_directories(sequence: Sequence) -> None:
    for others in others_of(sequence):
        budget, cut, within = 0, True, 0
        while cut:
            with folder() as room:
                cut, more = await points(DirectoryStorage(room), sequence, others, False, budget)
            budget, within = budget + cut, within + more
        counted("directories", sequence, budget, within)
        assert budget, "there was nothing to stop"


@every_sequence
async def test_a_directory_store_whose_process_ends_within_a_call(sequence: Sequence) -> None:
    for others in others_of(sequence)[:2]:
        budget, cut, within = 0, True, 0
        while cut:
            with folder() as room:
                storage = DirectoryStorage(room)
                driver = storage.dying(PLENTY)
                scene, _ = await scene_on(driver, sequence, others, False)
                cut = await died(driver, sequence, scene, budget)
                within += recovered_dying(storage)
                whole(storage, scene, None)
            budget += cut
        counted("directories, within calls", sequence, budget, within)
        assert budget, "there was nothing to stop"


async def died(driver: DyingDirectory, sequence: Sequence, scene: Scene, budget: int) -> bool:
    driver.arm(budget)
    try:
        return await until_cut(sequence, scene)
    finally:
        driver.close()


def recovered_dying(storage: DirectoryStorage) -> int:
    """Recovery, by a process that dies a moment later each time; how often it died."""
    for budget in range(1000):
        driver = storage.dying(budget)
        try:
            driver.prepare()
            carry_out(driver)
        except PowerCut:
            continue
        finally:
            driver.close()
        return budget
    raise AssertionError("recovery does not come to an end")


async def test_a_recovery_that_is_stopped_after_every_call_comes_to_an_end() -> None:
    for sequence in SEQUENCES:
        scene, stop = await scene_on(FakeStorage().driver(), sequence, 3, False)
        calls = await calls_of(sequence)
        assert await stopped(sequence, scene, stop, len(calls) // 2)
        stop.revive()
        recovered_step_by_step(stop)
        settled(stop)
        scene.look(stop)


async def calls_of(sequence: Sequence) -> list[str]:
    scene, stop = await scene_on(FakeStorage().driver(), sequence, 3, False)
    assert not await stopped(sequence, scene, stop, PLENTY)
    return stop.calls


@pytest.mark.parametrize("sequence", [each for each in SEQUENCES if each.within], ids=str)
async def test_what_is_said_to_be_within_another_sequence_is(sequence: Sequence) -> None:
    """The same verbs on the same groups in its order: a slow storage leaves it out for that."""
    mine = [call.partition("/")[0] for call in await calls_of(sequence)]
    for other in SEQUENCES:
        if not other.within and not other.acted:
            theirs = (call.partition("/")[0] for call in await calls_of(other))
            if all(call in theirs for call in mine):
                return
    pytest.fail(f"no other sequence makes these calls: {mine}")


async def test_the_first_start_on_an_empty_store_may_be_cut_off_anywhere(room: Path) -> None:
    budget, cut = 0, True
    while cut:
        storage = DirectoryStorage(room / str(budget))
        driver = storage.dying(budget)
        cut = False
        try:
            await Store(driver).start()
        except PowerCut:
            cut = True
        driver.close()
        store = Store(storage.driver())
        report = await store.start()
        assert (report.done, report.warnings) == ([], [])
        assert set(store.driver.list()) == {Dataset(group) for group in Dataset.GROUPS}
        await store.close()
        budget += cut
    counted("directories, within calls", "first start", budget, 0)
    assert budget

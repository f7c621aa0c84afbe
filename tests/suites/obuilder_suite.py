"""Stores that OBuilder's own commands have left half done, at each of its points: what becomes of them here.

The sequences are those of OBuilder 0.4's zfs_store.ml, a verb for each of its commands (its `destroy -r` and `-R` are
several, in zfs(8)'s order: clones, snapshots newest first, the head). A cache is kept wherever its data still exists.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from suites.crash_suite import fill, recovered_step_by_step, seen, settled

from zfsfs.driver import Driver
from zfsfs.names import BuildId, CacheName, Dataset, Snapshot, cache, result
from zfsfs.store import Store, leftovers

NPM = CacheName(b"npm")
MAIN = cache(NPM)
A, B = result(BuildId(b"a")), result(BuildId(b"b"))
Call = Callable[[], None]


def at(dataset: Dataset, name: str = "snap") -> Snapshot:
    return Snapshot(dataset, name)


class OBuilder:
    """Its process: the numbers that it gives, and its commands as lists of calls."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._next = 0
        self._generation = 0

    def _number(self) -> Dataset:
        self._next += 1
        return Dataset("cache-tmp", f"{self._next - 1}-c-npm")

    def cache(self) -> tuple[list[Call], Dataset]:
        """The commands of `cache`, which gives a clone; the cache is made when it is not there."""
        driver, clone = self._driver, self._number()
        made: list[Call] = [] if driver.info(MAIN) else [lambda: driver.create(MAIN)]
        info = driver.info(MAIN)
        if info is None or info.snapshot("snap") is None:
            made.append(lambda: driver.snapshot(at(MAIN)))
        return [*made, lambda: driver.clone(at(MAIN), clone)], clone

    def clone(self, text: str) -> Dataset:
        """A clone that its user has written into."""
        calls, clone = self.cache()
        for call in calls:
            call()
        fill(self._driver, clone, text)
        return clone

    def release(self, clone: Dataset) -> list[Call]:
        """The commands of a release that wins."""
        driver, gone, old = self._driver, self._number(), f"old-{self._generation}"
        self._generation += 1
        return [
            lambda: driver.rename(MAIN, gone),
            lambda: driver.promote(clone),
            lambda: driver.destroy(gone),
            lambda: driver.rename_snapshot(at(clone), old),
            lambda: driver.destroy_snapshot(at(clone, old), defer=True),
            lambda: driver.snapshot(at(clone)),
            lambda: driver.rename(clone, MAIN),
        ]

    def published(self, text: str) -> None:
        """A cycle from its beginning to its end."""
        for call in self.release(self.clone(text)):
            call()


def carry_out(calls: list[Call], count: int) -> None:
    for call in calls[:count]:
        call()


def started(driver: Driver) -> None:
    """Recovery, in small steps; it must come to an end with nothing left over."""
    driver.prepare()
    recovered_step_by_step(driver)
    settled(driver)
    assert [each for each in driver.list() if each.group == "cache-tmp" and each.leaf] == []


def holds(driver: Driver, *texts: str) -> None:
    """The cache holds one of these, whole, and its head has what is published."""
    found = seen(driver, at(MAIN))
    assert found in texts
    assert seen(driver, MAIN) == found


class OBuilderSuite:
    """A subclass's fixture: `driver`, prepared."""

    @pytest.mark.parametrize("done", range(8))
    @pytest.mark.parametrize("others", [0, 1, 3])
    def test_a_release_that_was_cut_off(self, driver: Driver, others: int, done: int) -> None:
        obuilder = OBuilder(driver)
        obuilder.published("older")
        for number in range(others):
            # Each release leaves the version that this clone needs as a deferred @old-N.
            obuilder.clone(f"other {number}")
            if number < 2:
                obuilder.published(f"older {number}")
        obuilder.published("old")
        calls = obuilder.release(obuilder.clone("new"))
        assert len(calls) == 7
        carry_out(calls, done)
        started(driver)
        holds(driver, "new" if done >= 2 else "old")

    @pytest.mark.parametrize("done", range(4))
    def test_the_first_use_of_a_cache_that_was_cut_off(self, driver: Driver, done: int) -> None:
        calls, _ = OBuilder(driver).cache()
        assert len(calls) == 3
        carry_out(calls, done)
        started(driver)
        if done:
            holds(driver, "")
        else:
            assert driver.info(MAIN) is None

    def test_a_clone_that_was_never_released(self, driver: Driver) -> None:
        obuilder = OBuilder(driver)
        obuilder.published("old")
        obuilder.clone("new")
        started(driver)
        holds(driver, "old")

    @pytest.mark.parametrize("done", range(3))
    def test_a_cache_whose_deletion_was_cut_off_is_there_or_not(self, driver: Driver, done: int) -> None:
        OBuilder(driver).published("old")
        carry_out([lambda: driver.destroy_snapshot(at(MAIN), defer=False), lambda: driver.destroy(MAIN)], done)
        started(driver)
        if done < 2:
            holds(driver, "old")
        else:
            assert driver.info(MAIN) is None

    @pytest.mark.parametrize("done", range(3))
    def test_its_own_clearing_of_cache_tmp_that_was_cut_off(self, driver: Driver, done: int) -> None:
        obuilder = OBuilder(driver)
        obuilder.published("old")
        clone = obuilder.clone("new")
        carry_out([lambda: driver.destroy(clone), lambda: driver.destroy(Dataset("cache-tmp"))], done)
        started(driver)
        holds(driver, "old")

    @pytest.mark.parametrize("base", [None, A])
    @pytest.mark.parametrize("done", range(3))
    async def test_a_build_that_was_cut_off(self, driver: Driver, base: Dataset | None, done: int) -> None:
        driver.create(A)
        driver.snapshot(at(A))
        begin = (lambda: driver.create(B)) if base is None else lambda: driver.clone(at(A), B)
        carry_out([begin, lambda: driver.snapshot(at(B))], done)
        store = Store(driver)
        await store.start()
        assert {str(each) for each in store.builds.results()} == ({"a", "b"} if done == 2 else {"a"})
        assert leftovers(driver.list()) == ([B] if done == 1 else [])
        await store.close()
        settled(driver)

    @pytest.mark.parametrize("done", range(5))
    async def test_a_result_whose_deletion_was_cut_off(self, driver: Driver, done: int) -> None:
        driver.create(A)
        driver.snapshot(at(A))
        driver.clone(at(A), B)
        driver.snapshot(at(B))
        calls: list[Call] = [
            lambda: driver.destroy_snapshot(at(B), defer=False),
            lambda: driver.destroy(B),
            lambda: driver.destroy_snapshot(at(A), defer=False),
            lambda: driver.destroy(A),
        ]
        carry_out(calls, done)
        store = Store(driver)
        await store.start()
        left = [["a", "b"], ["a"], ["a"], [], []][done]
        assert sorted(map(str, store.builds.results())) == left
        await store.close()
        settled(driver)

"""Every sequence of the store, stopped before each of its verbs; and the recovery from it, stopped likewise."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable

import pytest
from fake import FakeDriver
from faults import PowerCut, Stopping
from suites.store_suite import MAIN, ME, NPM, A, B, build, published, read, write

from zfsfs.driver import Driver
from zfsfs.errors import Missing
from zfsfs.names import BuildName, Snapshot, cache_tmp, result
from zfsfs.store import Session, Store, carry_out, check, plan

PLENTY = 10**9


class Armed(Stopping):
    """Stops only from when it is told to."""

    def arm(self, budget: int) -> None:
        self._left = budget
        self.calls.clear()


class Scene:
    """A store with two results and a cache, some sessions of it open, and one of ours with new contents."""

    ours: Session

    def __init__(self, foreign: bool) -> None:
        self.fake = FakeDriver()
        self.driver = Armed(self.fake, PLENTY)
        self.store = Store(self.driver)
        self.foreign = foreign
        self.done = False
        self.daily_before = 0

    async def set(self, others: int) -> None:
        store = self.store
        await store.start()
        await build(store, b"a", "a")
        await build(store, b"b@a", "b")
        await store.builds.start(BuildName.parse(b"c@a"), ME, 0o755)
        await store.caches.create(NPM, ME, 0o755)
        sessions = []
        for number in range(others):
            # Of different ages: the older versions live on as long as these.
            sessions.append(await store.caches.open(NPM, f"{number}".encode()))
            if number < 2:
                await self.publish("older")
        await self.publish("old")
        self.ours = await store.caches.open(NPM, None)
        write(self.driver, self.ours.dataset, "new")
        if self.foreign:
            for dataset in [each for each in self.fake.list() if each.leaf]:
                self.driver.snapshot(Snapshot(dataset, "daily"))
        await store.complete_deletes()

    async def publish(self, text: str) -> None:
        session = await self.store.caches.open(NPM, None)
        write(self.driver, session.dataset, text)
        await self.store.caches.release(session, changed=True)
        await self.store.complete_deletes()


Sequence = Callable[[Scene], Awaitable[None]]


async def build_start_without_base(scene: Scene) -> None:
    await scene.store.builds.start(BuildName.parse(b"d"), ME, 0o755)


async def build_start_with_base(scene: Scene) -> None:
    await scene.store.builds.start(BuildName.parse(b"d@b"), ME, 0o755)


async def build_publish(scene: Scene) -> None:
    await scene.store.builds.publish(BuildName.parse(b"c").id)


async def build_discard(scene: Scene) -> None:
    await scene.store.builds.discard(BuildName.parse(b"c").id)
    await scene.store.complete_deletes()


async def result_delete(scene: Scene) -> None:
    await scene.store.builds.delete(B)
    await scene.store.complete_deletes()


async def cache_first_use(scene: Scene) -> None:
    name = type(NPM)(b"pip")
    await scene.store.caches.create(name, ME, 0o755)
    await scene.store.caches.open(name, None)


async def release_wins(scene: Scene) -> None:
    await scene.store.caches.release(scene.ours, changed=True)
    scene.done = True
    await scene.store.complete_deletes()


async def release_wins_and_the_next_opens(scene: Scene) -> None:
    await scene.store.caches.release(scene.ours, changed=True)
    scene.done = True
    await scene.store.caches.open(NPM, None)


async def release_unchanged(scene: Scene) -> None:
    await scene.store.caches.release(scene.ours, changed=False)
    await scene.store.complete_deletes()


async def session_discarded(scene: Scene) -> None:
    await scene.store.caches.discard(scene.ours)
    await scene.store.complete_deletes()


async def start_up(scene: Scene) -> None:
    await Store(scene.driver).start()


async def start_up_after_obuilder(scene: Scene) -> None:
    # OBuilder was cut off after its promotion.
    gone = cache_tmp(1000, NPM)
    scene.fake.rename(MAIN, gone)
    scene.fake.promote(scene.ours.dataset)
    await Store(scene.driver).start()


SEQUENCES: list[Sequence] = [
    build_start_without_base,
    build_start_with_base,
    build_publish,
    build_discard,
    result_delete,
    cache_first_use,
    release_wins,
    release_wins_and_the_next_opens,
    release_unchanged,
    session_discarded,
    start_up,
    start_up_after_obuilder,
]


def settled(scene: Scene, fake: FakeDriver, sequence: Sequence) -> None:
    """What must hold after recovery."""
    report = carry_out(fake)
    assert report.done == [], "recovery was not at its end"
    assert check(fake.list(), known=report.postponed) == []
    if not scene.foreign:
        assert report.postponed == {}
        assert plan(fake.list()) == []
    contents = published(fake)
    assert contents in ("old", "new")
    if scene.done:
        assert contents == "new"
    if sequence in (release_unchanged, session_discarded, start_up, build_publish, result_delete):
        assert contents == "old"
    listing = fake.list()
    for ident, text in ((A, "a"), (B, "b")):
        if result(ident) in listing:
            assert read(fake, Snapshot(result(ident), "snap")) == text
        else:
            assert (sequence, ident) == (result_delete, B)
    if scene.foreign and sequence not in (session_discarded, build_discard, result_delete):
        daily = sum(each.snapshot.name.startswith("daily") for info in listing.values() for each in info.snapshots)
        assert daily == scene.daily_before


async def stopped(sequence: Sequence, others: int, foreign: bool, budget: int) -> tuple[Scene, bool]:
    scene = Scene(foreign)
    await scene.set(others)
    scene.daily_before = sum(
        each.snapshot.name.startswith("daily") for info in scene.fake.list().values() for each in info.snapshots
    )
    scene.driver.arm(budget)
    try:
        await sequence(scene)
    except PowerCut:
        return scene, True
    return scene, False


@pytest.mark.parametrize("foreign", [False, True], ids=["", "with foreign snapshots"])
@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("sequence", SEQUENCES, ids=lambda each: each.__name__)
async def test_a_crash_before_any_verb_keeps_every_cache_and_result(
    sequence: Sequence, others: int, foreign: bool
) -> None:
    budget, cut, points = 0, True, 0
    while cut:
        scene, cut = await stopped(sequence, others, foreign, budget)
        budget += 1
        points += cut
        # Recovery itself, stopped before each of its own verbs and run again.
        interrupted, within = True, 0
        while interrupted:
            fake = copy.deepcopy(scene.fake)
            interrupted = False
            try:
                carry_out(Stopping(fake, within))
            except PowerCut:
                interrupted = True
                carry_out(fake)
            settled(scene, fake, sequence)
            within += 1
    assert points > 0 or (foreign and sequence in (release_unchanged, start_up))


async def test_a_crash_at_any_point_of_two_releases_keeps_what_was_published_first() -> None:
    for others in (0, 1, 3):
        budget, cut = 0, True
        while cut:
            scene = Scene(False)
            await scene.set(others)
            late = await scene.store.caches.open(NPM, b"late")
            write(scene.driver, late.dataset, "late")
            scene.driver.arm(budget)
            cut = False
            try:
                await release_wins(scene)
                await scene.store.caches.release(late, changed=True)
                await scene.store.complete_deletes()
            except PowerCut:
                cut = True
            carry_out(scene.fake)
            settled(scene, scene.fake, release_wins)
            budget += 1


async def test_a_cache_whose_creation_was_cut_off_is_whole_or_not_there() -> None:
    name = type(NPM)(b"pip")
    for budget in range(10):
        scene, cut = await stopped(cache_first_use, 0, False, budget)
        driver: Driver = scene.fake
        again = Store(driver)
        await again.start()
        if again.caches.get(name) is None:
            assert cut
            with pytest.raises(Missing):
                await again.caches.open(name, None)
            await again.caches.create(name, ME, 0o755)
        await again.caches.open(name, None)

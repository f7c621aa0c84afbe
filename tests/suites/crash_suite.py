"""Every sequence of the store, stopped before a call: what stands before it, what it does, what may be found after.

A scene is a part of a store: two results, a running build, a cache with a session of ours and some of others. What
may be found after a crash is written down as the sequence goes on: `may` before a call, `must` once it has returned.
Several scenes can share a store, so that one recovery on a slow storage answers for many crash points.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from collections.abc import Sequence as Sequence_
from dataclasses import dataclass

import trio
import trio.testing
from faults import PowerCut, Stopping, no_room

from zfsfs.driver import Driver, Step, viewing
from zfsfs.errors import Missing, NoSpace
from zfsfs.names import BuildId, BuildName, CacheName, Dataset, Snapshot, cache, cache_of, cache_tmp, result
from zfsfs.store import Outcome, RecoveryReport, Session, Store, carry_out, check
from zfsfs.store.demand import QUIET
from zfsfs.store.layout import POLICY, PUBLISHERS, generation, rules

ME = (os.getuid(), os.getgid())
PLENTY = 10**9
_FILES = ("one", "two")


def fill(driver: Driver, dataset: Dataset, text: str) -> None:
    """Contents that show when they are mixed with others."""
    with viewing(driver, dataset, writable=True) as root:
        write(root, text)


def write(root: int, text: str) -> None:
    """The same, in a directory."""
    for name in _FILES:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=root)
        os.write(fd, text.encode())
        os.close(fd)


def seen(driver: Driver, target: Dataset | Snapshot) -> str | None:
    """What `fill` has put there, '' in an empty dataset, None where there is none. Fails when it is not whole."""
    try:
        with viewing(driver, target) as root:
            texts = []
            for name in os.listdir(root):
                fd = os.open(name, os.O_RDONLY, dir_fd=root)
                texts.append(os.read(fd, 4096).decode())
                os.close(fd)
    except Missing:
        return None
    assert len(texts) in (0, len(_FILES)), f"{target} is not whole"
    assert len(set(texts)) <= 1, f"{target} is a mixture: {texts}"
    return texts[0] if texts else ""


class Armed(Stopping):
    """Stops only when it is told to. `split`: each step of a batch is a call; else a batch is one, as on ZFS."""

    def __init__(self, driver: Driver, *, split: bool = True) -> None:
        super().__init__(driver, PLENTY)
        self._split, self._armed = split, False

    def arm(self, budget: int) -> None:
        """From now on carry out `budget` calls."""
        self._left, self._armed = budget, True
        self.calls.clear()

    def revive(self) -> None:
        """As if nothing had happened."""
        self.cut, self._left, self._armed = False, PLENTY, False

    def batch(self, steps: Sequence_[Step]) -> None:
        if self._armed and self._split:
            super().batch(steps)
        else:
            self._change(f"batch of {len(steps)}").batch(steps)


class Scene:
    """See the module. `tag` tells its names from those of other scenes in the store."""

    ours: Session

    def __init__(self, store: Store, tag: str = "") -> None:
        self.store, self.driver = store, store.driver
        self.a, self.b, self.c, self.d = (BuildId(f"{each}{tag}".encode()) for each in "abcd")
        self.npm, self.pip = CacheName(f"npm{tag}".encode()), CacheName(f"pip{tag}".encode())
        self.expected: dict[Snapshot, set[str | None]] = {}
        self.generations = {(self.pip, ""): 0, (self.pip, "first"): 1}
        self.others: list[Session] = []
        #: The rules that the cache may have, whichever version it is.
        self.rules: list[dict[str, str]] = [{}]

    # What may be found.

    def may(self, what: BuildId | CacheName, *texts: str | None) -> None:
        """From here on it may have any of these contents; None: it is not there."""
        dataset = result(what) if isinstance(what, BuildId) else cache(what)
        self.expected[Snapshot(dataset, "snap")] = set(texts)

    must = may

    def look(self, driver: Driver) -> None:
        """Compare what is there with what may be."""
        for snapshot, texts in self.expected.items():
            found = seen(driver, snapshot)
            assert found in texts, f"{snapshot} is {found!r}, not one of {texts}"
            if snapshot.dataset.group == "cache" and found is not None:
                self._look_at_cache(driver, snapshot.dataset, found)

    def _look_at_cache(self, driver: Driver, dataset: Dataset, found: str) -> None:
        assert seen(driver, dataset) == found, "the head is not the published version"
        info, name = driver.info(dataset), cache_of(dataset)
        assert info is not None
        assert name is not None
        if name == self.npm:
            assert rules(info) in self.rules, f"{dataset} has the rules of nobody: {rules(info)}"
        if (name, found) in self.generations:
            assert generation(info) == self.generations[name, found], (
                f"{dataset} has the generation of another version"
            )

    # What stands before.

    async def set(self, needs: str, others: int, *, foreign: bool = False) -> None:
        """Make what a sequence needs, with so many sessions of others, of different ages."""
        self.may(self.d, None)
        if needs == "base":
            await self._publish(BuildName(self.b))
        if needs == "builds":
            await self._builds()
        if needs == "cache":
            await self._cache(others)
        if foreign:
            mine = {result(each) for each in (self.a, self.b, self.c)} | {cache(self.npm)}
            if needs == "cache":
                mine |= {each.dataset for each in (*self.others, self.ours)}
            for dataset in sorted(mine & set(self.driver.list())):
                self.driver.snapshot(Snapshot(dataset, "daily"))
        await self.store.complete_deletes()

    async def _builds(self) -> None:
        await self._publish(BuildName(self.a))
        await self._publish(BuildName(self.b, self.a))
        info = await self.store.builds.start(BuildName(self.c, self.a), ME, 0o755)
        fill(self.driver, info.dataset, "c")
        self.may(self.c, None)

    async def _publish(self, name: BuildName) -> None:
        info = await self.store.builds.start(name, ME, 0o755)
        text = str(name.id)[:1]
        fill(self.driver, info.dataset, text)
        await self.store.builds.publish(name.id)
        self.must(name.id, text)

    async def _cache(self, others: int) -> None:
        await self.store.caches.create(self.npm, ME, 0o755)
        self.rules = [{POLICY: "on-success", PUBLISHERS: "root"}]
        for rule, value in self.rules[0].items():
            await self.store.caches.set_rule(self.npm, rule, value)
        for number in range(others):
            # The older versions live on as long as these.
            self.others.append(await self.store.caches.open(self.npm, f"{number}".encode()))
            if number < 2:
                await self.release("older", label=b"older")
        await self.release("old", label=b"old")
        self.ours = await self.store.caches.open(self.npm, None)
        self.generations[self.npm, "new"] = self.ours.generation + 1
        fill(self.driver, self.ours.dataset, "new")

    async def release(self, text: str, *, label: bytes) -> None:
        """Publish a version of the cache."""
        session = await self.store.caches.open(self.npm, label)
        fill(self.driver, session.dataset, text)
        assert await self.store.caches.release(session, changed=True) is Outcome.PUBLISHED
        self.must(self.npm, text)
        self.generations[self.npm, text] = session.generation + 1


@dataclass(frozen=True)
class Sequence:
    """What is stopped. `deletes`: foreign snapshots of what it removes go with it. `acted`: its obstacle lies above
    the driver, so that all drivers see the same calls. `within`: its calls are a part of another sequence's."""

    needs: str
    run: Callable[[Scene], Awaitable[None]]
    deletes: bool = False
    acted: bool = False
    within: bool = False

    def __str__(self) -> str:
        return self.run.__name__.replace("_", " ")


# Builds.


async def start_of_a_build(scene: Scene) -> None:
    await scene.store.builds.start(BuildName(scene.d), ME, 0o755)


async def start_of_a_build_in_a_dataset_that_was_kept_ready(scene: Scene) -> None:
    await scene.store.builds.start(BuildName(scene.d), ME, 0o755)
    await scene.store.builds.discard(scene.d)
    fresh = scene.store.builds.fresh
    await fresh.provide(trio.current_time() + QUIET)
    before = len(fresh.ready)
    assert bool(before) == scene.driver.cheap_clones
    await scene.store.builds.start(BuildName(scene.d), ME, 0o755)
    assert len(fresh.ready) == max(before - 1, 0)
    await scene.store.builds.discard(scene.d)
    await scene.store.complete_deletes()


async def build_in_a_dataset_that_gets_its_name_later(scene: Scene) -> None:
    builds = scene.store.builds
    for _ in range(2):
        await builds.start(BuildName(scene.d, scene.b), ME, 0o755)
        await builds.discard(scene.d)
    await builds.fresh.provide(trio.current_time() + QUIET)
    scene.may(scene.d, None, "d")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(builds.naming.run)
        await trio.testing.wait_all_tasks_blocked()
        build, view = await builds.begin(BuildName(scene.d, scene.b), ME, 0o755)
        try:
            write(view.fd, "d")
        finally:
            view.close()
        nursery.cancel_scope.cancel()
    await builds.publish(build.id)
    scene.must(scene.d, "d")
    await scene.store.complete_deletes()


async def start_of_a_build_with_a_base(scene: Scene) -> None:
    await scene.store.builds.start(BuildName(scene.d, scene.b), ME, 0o755)


async def start_of_a_build_over_what_a_crash_left(scene: Scene) -> None:
    # The build c runs for nobody any more.
    del scene.store.builds._running[scene.c]
    await scene.store.builds.start(BuildName(scene.c, scene.b), ME, 0o755)
    await scene.store.complete_deletes()


async def publishing_a_build(scene: Scene) -> None:
    scene.may(scene.c, None, "c")
    await scene.store.builds.publish(scene.c)
    scene.must(scene.c, "c")


async def discarding_a_build(scene: Scene) -> None:
    await scene.store.builds.discard(scene.c)
    await scene.store.complete_deletes()


async def deleting_a_result(scene: Scene) -> None:
    scene.may(scene.b, "b", None)
    await scene.store.builds.delete(scene.b)
    scene.must(scene.b, None)
    await scene.store.complete_deletes()


async def deleting_a_result_with_what_a_crash_left_of_builds_on_it(scene: Scene) -> None:
    scene.may(scene.a, "a", None)
    scene.may(scene.b, "b", None)
    del scene.store.builds._running[scene.c]
    await scene.store.builds.delete(scene.b)
    scene.must(scene.b, None)
    await scene.store.builds.delete(scene.a)
    scene.must(scene.a, None)
    await scene.store.complete_deletes()


async def keeping_a_failed_build(scene: Scene) -> None:
    await scene.store.builds.keep(scene.c, {"exit": 1}, 0.0)
    await scene.store.builds.start(BuildName(scene.c, scene.b), ME, 0o755)
    await scene.store.builds.keep(scene.c, {"exit": 2}, 1.0)
    await scene.store.complete_deletes()


async def opening_a_failed_build_again(scene: Scene) -> None:
    await scene.store.builds.keep(scene.c, {}, 0.0)
    await scene.store.builds.reopen(scene.c)
    scene.may(scene.c, None, "c")
    await scene.store.builds.publish(scene.c)
    scene.must(scene.c, "c")


async def deleting_a_failed_build(scene: Scene) -> None:
    await scene.store.builds.keep(scene.c, {}, 0.0)
    await scene.store.builds.forget(scene.c)
    await scene.store.complete_deletes()


async def deleting_a_result_with_a_failed_build_on_it(scene: Scene) -> None:
    await scene.store.builds.keep(scene.c, {}, 0.0)
    scene.may(scene.b, "b", None)
    await scene.store.builds.delete(scene.b)
    scene.must(scene.b, None)
    scene.may(scene.a, "a", None)
    await scene.store.builds.delete(scene.a)
    scene.must(scene.a, None)
    await scene.store.complete_deletes()


# Caches.


async def first_use_of_a_cache(scene: Scene) -> None:
    scene.may(scene.pip, None, "")
    await scene.store.caches.create(scene.pip, ME, 0o755)
    scene.must(scene.pip, "")
    session = await scene.store.caches.open(scene.pip, None)
    fill(scene.driver, session.dataset, "first")
    scene.may(scene.pip, "", "first")
    await scene.store.caches.release(session, changed=True)
    scene.must(scene.pip, "first")
    await scene.store.complete_deletes()


async def release_that_wins(scene: Scene) -> None:
    scene.may(scene.npm, "old", "new")
    await scene.store.caches.release(scene.ours, changed=True)
    scene.must(scene.npm, "new")
    await scene.store.complete_deletes()


async def release_that_wins_and_the_next_opens(scene: Scene) -> None:
    scene.may(scene.npm, "old", "new")
    await scene.store.caches.release(scene.ours, changed=True)
    scene.must(scene.npm, "new")
    session = await scene.store.caches.open(scene.npm, b"next")
    assert seen(scene.driver, session.dataset) == "new"


async def release_of_what_somebody_has_open(scene: Scene) -> None:
    scene.may(scene.npm, "old", "new")
    former = scene.ours.dataset
    await scene.store.caches.part(scene.ours, None)
    if scene.driver.info(former) is not None:
        fill(scene.driver, former, "later")
    await scene.store.caches.release(scene.ours, changed=True)
    scene.must(scene.npm, "new")
    await scene.store.complete_deletes()


async def release_that_loses(scene: Scene) -> None:
    late = await scene.store.caches.open(scene.npm, b"late")
    fill(scene.driver, late.dataset, "late")
    scene.may(scene.npm, "old", "new")
    await scene.store.caches.release(scene.ours, changed=True)
    scene.must(scene.npm, "new")
    assert await scene.store.caches.release(late, changed=True) is Outcome.SUPERSEDED
    await scene.store.complete_deletes()


async def release_of_an_unchanged_session(scene: Scene) -> None:
    assert await scene.store.caches.release(scene.ours, changed=False) is Outcome.UNCHANGED
    await scene.store.complete_deletes()


async def discarding_a_session(scene: Scene) -> None:
    await scene.store.caches.discard(scene.ours)
    await scene.store.complete_deletes()


async def deleting_a_cache(scene: Scene) -> None:
    # A cache with open sessions is busy; these are closed, and what they leave behind still waits.
    for session in (*scene.others, scene.ours):
        await scene.store.caches.release(session, changed=False)
    scene.may(scene.npm, "old", None)
    await scene.store.caches.delete(scene.npm)
    scene.must(scene.npm, None)
    await scene.store.complete_deletes()


async def kept_ready(scene: Scene) -> None:
    """Nobody uses the cache, and it has a clone ready, where clones are cheap."""
    for session in (*scene.others, scene.ours):
        await scene.store.caches.release(session, changed=False)
    await scene.store.caches.spares.provide(trio.current_time() + QUIET)
    info = scene.store.caches.get(scene.npm)
    assert info is not None
    assert bool(info.ready) == scene.driver.cheap_clones


async def opening_and_releasing_a_clone_that_was_kept_ready(scene: Scene) -> None:
    await kept_ready(scene)
    session = await scene.store.caches.open(scene.npm, b"next")
    view = session.take_view()
    if view is not None:
        view.close()
    assert seen(scene.driver, session.dataset) == "old"
    fill(scene.driver, session.dataset, "new")
    scene.may(scene.npm, "old", "new")
    await scene.store.caches.release(session, changed=True)
    scene.must(scene.npm, "new")
    await scene.store.complete_deletes()


async def deleting_a_cache_with_a_clone_kept_ready(scene: Scene) -> None:
    await kept_ready(scene)
    scene.may(scene.npm, "old", None)
    await scene.store.caches.delete(scene.npm)
    scene.must(scene.npm, None)
    await scene.store.complete_deletes()


async def setting_a_rule_and_releasing(scene: Scene) -> None:
    before, after = scene.rules[0], {**scene.rules[0], POLICY: "locked"}
    scene.rules = [before, after]
    await scene.store.caches.set_rule(scene.npm, POLICY, "locked")
    scene.rules = [after]
    scene.may(scene.npm, "old", "new")
    await scene.store.caches.release(scene.ours, changed=True)
    scene.must(scene.npm, "new")
    await scene.store.caches.set_rule(scene.npm, PUBLISHERS, "root")  # which completes the release first
    await scene.store.complete_deletes()


# In a full store.


async def discarding_a_build_in_a_full_store(scene: Scene) -> None:
    with no_room(scene.driver):
        await scene.store.builds.discard(scene.c)
        await scene.store.complete_deletes()


async def deleting_results_in_a_full_store(scene: Scene) -> None:
    with no_room(scene.driver):
        await deleting_a_result_with_what_a_crash_left_of_builds_on_it(scene)


async def start_of_a_build_over_what_a_crash_left_in_a_full_store(scene: Scene) -> None:
    with no_room(scene.driver):
        await start_of_a_build_over_what_a_crash_left(scene)


async def deleting_a_cache_in_a_full_store(scene: Scene) -> None:
    with no_room(scene.driver):
        await deleting_a_cache(scene)


async def release_that_waits_for_room(scene: Scene) -> None:
    scene.may(scene.npm, "old", "new")
    try:
        with no_room(scene.driver):
            await scene.store.caches.release(scene.ours, changed=True)
    except NoSpace:
        assert scene.store.caches.is_decided(scene.ours)
    await scene.store.caches.release(scene.ours, changed=True)
    scene.must(scene.npm, "new")
    await scene.store.complete_deletes()


# Starting.


async def start_up(scene: Scene) -> None:
    await Store(scene.driver).start()


async def start_up_after_obuilder_was_cut_off(scene: Scene) -> None:
    gone = cache_tmp(1000, scene.npm)
    scene.generations.clear()  # what is adopted counts anew
    scene.may(scene.npm, "old", "new")
    scene.driver.rename(cache(scene.npm), gone)
    scene.driver.promote(scene.ours.dataset)
    await Store(scene.driver).start()


SEQUENCES = (
    Sequence("", start_of_a_build, within=True),
    Sequence("", start_of_a_build_in_a_dataset_that_was_kept_ready, deletes=True),
    Sequence("base", build_in_a_dataset_that_gets_its_name_later, deletes=True),
    Sequence("base", start_of_a_build_with_a_base, within=True),
    Sequence("builds", start_of_a_build_over_what_a_crash_left, deletes=True),
    Sequence("builds", publishing_a_build, within=True),
    Sequence("builds", discarding_a_build, deletes=True, within=True),
    Sequence("builds", deleting_a_result, deletes=True, within=True),
    Sequence("builds", deleting_a_result_with_what_a_crash_left_of_builds_on_it, deletes=True),
    Sequence("builds", keeping_a_failed_build, deletes=True),
    Sequence("builds", opening_a_failed_build_again, deletes=True),
    Sequence("builds", deleting_a_failed_build, deletes=True),
    Sequence("builds", deleting_a_result_with_a_failed_build_on_it, deletes=True),
    Sequence("", first_use_of_a_cache),
    Sequence("cache", release_that_wins),
    Sequence("cache", release_that_wins_and_the_next_opens),
    Sequence("cache", release_of_what_somebody_has_open),
    Sequence("cache", release_that_loses),
    Sequence("cache", release_of_an_unchanged_session, within=True),
    Sequence("cache", setting_a_rule_and_releasing),
    Sequence("cache", discarding_a_session, deletes=True),
    Sequence("cache", deleting_a_cache, deletes=True, within=True),
    Sequence("cache", opening_and_releasing_a_clone_that_was_kept_ready),
    Sequence("cache", deleting_a_cache_with_a_clone_kept_ready, deletes=True),
    Sequence("builds", discarding_a_build_in_a_full_store, deletes=True, acted=True),
    Sequence("builds", deleting_results_in_a_full_store, deletes=True, acted=True),
    Sequence("builds", start_of_a_build_over_what_a_crash_left_in_a_full_store, deletes=True, acted=True),
    Sequence("cache", deleting_a_cache_in_a_full_store, deletes=True, acted=True),
    Sequence("cache", release_that_waits_for_room, acted=True),
    Sequence("cache", start_up),
    Sequence("cache", start_up_after_obuilder_was_cut_off),
)


async def until_cut(sequence: Sequence, scene: Scene) -> bool:
    """Carry out a sequence. Whether a power cut ended it."""
    try:
        await sequence.run(scene)
    except PowerCut:
        return True
    except BaseExceptionGroup as group:  # of several things at once
        if group.split(PowerCut)[1] is not None:
            raise
        return True
    return False


async def stopped(sequence: Sequence, scene: Scene, stop: Armed, budget: int) -> bool:
    """Carry out a sequence with so many calls. Whether it was cut."""
    stop.arm(budget)
    await until_cut(sequence, scene)
    # What a process has open is closed when it dies.
    await scene.store.keep_nothing_ready()
    await scene.store.reaper.let_go()
    return stop.cut


def foreign_snapshots(driver: Driver) -> int:
    """How many snapshots of somebody else there are."""
    return sum(each.snapshot.name.startswith("daily") for info in driver.list().values() for each in info.snapshots)


def recovered_step_by_step(driver: Driver) -> tuple[RecoveryReport, int]:
    """Recovery, stopped after each of its calls and begun again; and how often it was stopped."""
    for stops in range(1000):
        try:
            return carry_out(Stopping(driver, 1)), stops
        except PowerCut:
            continue
    raise AssertionError("recovery does not come to an end")


def settled(driver: Driver) -> None:
    """What must hold once recovery is at its end: nothing to do, nothing broken, nothing left that nobody knows."""
    report = carry_out(driver)
    assert report.done == [], "recovery was not at its end"
    assert report.warnings == []
    assert check(report.listing, known=report.postponed) == []
    for dataset, (_, reason) in report.postponed.items():
        assert "somebody else" in reason or "clone" in reason, f"{dataset} waits: {reason}"

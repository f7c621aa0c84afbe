"""What a store does, as named cases for every driver. A subclass's fixture: `driver`, untouched or prepared; the
store locks it. Every case ends at the invariant checker (see `store`)."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Sequence

import pytest
import trio
from faults import moving, no_promotion, no_room

from zfsfs.driver import DatasetInfo, Driver, Step, viewing
from zfsfs.errors import Busy, DriverError, Exists, InvalidName, Missing, NoSpace, ZfsfsError
from zfsfs.names import BuildId, BuildName, CacheName, Dataset, Snapshot, cache, result
from zfsfs.store import Outcome, Session, Store, check, leftovers, plan

ME = (os.getuid(), os.getgid())
A, B, C = BuildId(b"a"), BuildId(b"b"), BuildId(b"c")
NPM = CacheName(b"npm")
MAIN = cache(NPM)


def write(driver: Driver, dataset: Dataset, text: str) -> None:
    with viewing(driver, dataset, writable=True) as root:
        fd = os.open("file", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=root)
        os.write(fd, text.encode())
        os.close(fd)


def read(driver: Driver, target: Dataset | Snapshot) -> str:
    """What `write` has written there; '' in an empty dataset."""
    with viewing(driver, target) as root:
        try:
            fd = os.open("file", os.O_RDONLY, dir_fd=root)
        except FileNotFoundError:
            return ""
        try:
            return os.read(fd, 4096).decode()
        finally:
            os.close(fd)


def published(driver: Driver) -> str:
    """The contents of the cache; the head and @snap have the same."""
    text = read(driver, Snapshot(MAIN, "snap"))
    assert read(driver, MAIN) == text
    return text


def temporary(driver: Driver) -> list[str]:
    return sorted(str(each) for each in driver.list() if each.group == "cache-tmp" and each.leaf)


async def finish(store: Store) -> None:
    """Let all go that can, and look whether everything holds."""
    await store.complete_deletes()
    known = {each.dataset for each in store.caches.sessions()} | set(store.reaper.queue)
    assert check(store.driver.list(), known=known) == []


async def build(store: Store, name: bytes, text: str) -> BuildId:
    """Build and publish."""
    info = await store.builds.start(BuildName.parse(name), ME, 0o755)
    write(store.driver, info.dataset, text)
    await store.builds.publish(info.id)
    return info.id


async def build_with_a_bug(store: Store) -> None:
    """What a caller does whose own code fails within a build."""
    await store.builds.start(BuildName(A), ME, 0o755)
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        await store.builds.discard(A)
        raise


async def filled(store: Store, text: str) -> None:
    """The cache, published once."""
    await store.caches.create(NPM, ME, 0o755)
    session = await store.caches.open(NPM, None)
    write(store.driver, session.dataset, text)
    assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
    await store.complete_deletes()


async def bequeathed(store: Store, text: str) -> None:
    """A release that is left to the next start."""
    session = await store.caches.open(NPM, None)
    write(store.driver, session.dataset, text)
    assert await store.caches.bequeath(session)


async def restarted(store: Store, *, whole: bool = True) -> Store:
    """The same storage after a crash and a new start; not `whole`: recovery meets an obstacle."""
    await store.close()
    again = Store(store.driver)
    report = await again.start()
    assert bool(report.broken) is not whole
    assert not whole or plan(store.driver.list()) == [] or again.reaper.queue
    return again


async def failed_on_a_result(store: Store) -> None:
    """Build B has failed and is kept; it was begun on result A."""
    await build(store, b"a", "one")
    await store.builds.start(BuildName(B, A), ME, 0o755)
    await store.builds.keep(B, {}, 7.0)


class StoreSuite:
    @pytest.fixture
    async def store(self, driver: Driver) -> AsyncIterator[Store]:
        store = Store(driver, clock=lambda: 7.0)
        await store.start()
        yield store
        await finish(store)
        await store.close()

    # create, build, result

    async def test_create_makes_the_groups(self, store: Store, driver: Driver) -> None:
        assert {Dataset(group) for group in Dataset.GROUPS} <= set(driver.list())

    async def test_a_build_without_a_base_is_an_empty_dataset_of_the_caller(
        self, store: Store, driver: Driver
    ) -> None:
        info = await store.builds.start(BuildName(A), ME, 0o2750)
        assert store.builds.running() == {A: info}
        assert store.builds.result(A) is None
        with viewing(driver, info.dataset) as root:
            found = os.fstat(root)
            assert os.listdir(root) == []
        assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o2750, *ME)
        await store.builds.discard(A)

    async def test_a_published_build_is_a_result(self, store: Store, driver: Driver) -> None:
        await build(store, b"a", "one")
        found = store.builds.result(A)
        assert found is not None
        assert (store.builds.results(), store.builds.running(), found.base) == ([A], {}, None)
        assert read(driver, Snapshot(result(A), "snap")) == "one"

    async def test_a_build_with_a_base_begins_with_its_contents(self, store: Store, driver: Driver) -> None:
        await build(store, b"a", "one")
        info = await store.builds.start(BuildName(B, A), ME, 0o755)
        assert read(driver, info.dataset) == "one"
        assert (await store.builds.publish(B)).base == A

    async def test_a_base_must_be_a_result(self, store: Store) -> None:
        with pytest.raises(Missing):
            await store.builds.start(BuildName(B, A), ME, 0o755)

    async def test_an_id_is_built_once(self, store: Store) -> None:
        await store.builds.start(BuildName(A), ME, 0o755)
        with pytest.raises(Exists):
            await store.builds.start(BuildName(A), ME, 0o755)
        await store.builds.publish(A)
        with pytest.raises(Exists):
            await store.builds.start(BuildName(A), ME, 0o755)

    async def test_two_starts_of_one_id_at_once_make_one_build(self, store: Store) -> None:
        outcomes: list[str] = []

        async def start() -> None:
            try:
                await store.builds.start(BuildName(A), ME, 0o755)
                outcomes.append("started")
            except Exists:
                outcomes.append("exists")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(start)
            nursery.start_soon(start)
        assert sorted(outcomes) == ["exists", "started"]

    async def test_a_failed_build_leaves_nothing(self, store: Store, driver: Driver) -> None:
        await store.builds.start(BuildName(A), ME, 0o755)
        await store.builds.discard(A)
        assert result(A) not in driver.list()
        assert store.builds.running() == {}
        await store.builds.start(BuildName(A), ME, 0o755)

    async def test_an_uncaught_exception_in_a_build_discards_it(self, store: Store, driver: Driver) -> None:
        with pytest.raises(ZeroDivisionError):
            await build_with_a_bug(store)
        assert result(A) not in driver.list()

    async def test_a_failed_build_that_is_still_held_goes_later(self, store: Store, driver: Driver) -> None:
        info = await store.builds.start(BuildName(A), ME, 0o755)
        with viewing(driver, info.dataset):
            await store.builds.discard(A)
            await store.builds.start(BuildName(A), ME, 0o755)
            await store.complete_deletes()
            assert len(store.reaper.queue) == 1
        await store.complete_deletes()
        assert temporary(driver) == []

    async def test_a_build_cut_off_by_a_crash_is_cleared_by_the_next_start(
        self, store: Store, driver: Driver
    ) -> None:
        info = await store.builds.start(BuildName(A), ME, 0o755)
        write(driver, info.dataset, "half")
        driver.snapshot(Snapshot(info.dataset, "autosnap"))
        again = await restarted(store)
        assert leftovers(driver.list()) == [result(A)]
        assert again.builds.results() == []
        info = await again.builds.start(BuildName(A), ME, 0o755)
        assert read(driver, info.dataset) == ""
        await finish(again)
        assert temporary(driver) == []

    # delete

    async def test_delete_destroys_a_result_and_its_foreign_snapshots(self, store: Store, driver: Driver) -> None:
        await build(store, b"a", "one")
        driver.snapshot(Snapshot(result(A), "autosnap"))
        await store.builds.delete(A)
        assert store.builds.results() == []
        assert "autosnap" in store.events.recent[-1].text
        await finish(store)
        assert [each for each in driver.list() if each.leaf] == []

    async def test_delete_of_nothing_is_missing(self, store: Store) -> None:
        with pytest.raises(Missing):
            await store.builds.delete(A)

    async def test_delete_of_a_base_is_busy_and_names_what_needs_it(self, store: Store) -> None:
        await build(store, b"a", "one")
        await store.builds.start(BuildName(B, A), ME, 0o755)
        with pytest.raises(Busy, match="b"):
            await store.builds.delete(A)
        await store.builds.publish(B)
        with pytest.raises(Busy, match="b"):
            await store.builds.delete(A)
        await store.builds.delete(B)
        await store.builds.delete(A)

    async def test_delete_takes_unregistered_clones_along(self, store: Store, driver: Driver) -> None:
        await build(store, b"a", "one")
        await store.builds.start(BuildName(B, A), ME, 0o755)
        again = await restarted(store)
        await again.builds.delete(A)
        await finish(again)
        assert [each for each in driver.list() if each.leaf] == []

    async def test_a_failed_build_is_not_opened_again_while_its_base_goes(
        self, store: Store, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await failed_on_a_result(store)
        info = driver.info

        def meanwhile(dataset: Dataset) -> DatasetInfo | None:
            if dataset == result(A) and B in store.builds.failed():
                with pytest.raises(Busy):
                    trio.from_thread.run(store.builds.reopen, B)
            return info(dataset)

        monkeypatch.setattr(driver, "info", meanwhile)
        await store.builds.delete(A)
        assert (store.builds.failed(), store.builds.running()) == ({}, {})

    async def test_a_failed_build_is_gone_though_its_base_could_not_go(
        self, store: Store, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await failed_on_a_result(store)
        rename = driver.rename

        def refuse(old: Dataset, new: Dataset) -> None:
            if old == result(A):
                raise DriverError("broken")
            rename(old, new)

        monkeypatch.setattr(driver, "rename", refuse)
        with pytest.raises(DriverError):
            await store.builds.delete(A)
        assert (store.builds.failed(), store.builds.results()) == ({}, [A])

    async def test_a_failed_build_that_somebody_else_has_destroyed_can_be_deleted(
        self, store: Store, driver: Driver
    ) -> None:
        await store.builds.start(BuildName(A), ME, 0o755)
        driver.destroy((await store.builds.keep(A, {}, 7.0)).dataset)
        await store.builds.forget(A)
        assert store.builds.failed() == {}

    # caches

    async def test_the_first_use_of_a_cache_finds_it_empty(self, store: Store, driver: Driver) -> None:
        await store.caches.create(NPM, ME, 0o700)
        with pytest.raises(Exists):
            await store.caches.create(NPM, ME, 0o700)
        session = await store.caches.open(NPM, b"job")
        with viewing(driver, session.dataset) as root:
            assert (os.listdir(root), stat.S_IMODE(os.fstat(root).st_mode)) == ([], 0o700)
        assert await store.caches.release(session, changed=False) is Outcome.UNCHANGED
        info = store.caches.get(NPM)
        assert info is not None
        assert (info.generation, info.sessions) == (0, 0)

    async def test_a_cache_that_is_not_there_can_not_be_opened(self, store: Store) -> None:
        with pytest.raises(Missing):
            await store.caches.open(NPM, None)

    async def test_concurrent_users_have_contents_of_their_own(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        one, two = await store.caches.open(NPM, b"1"), await store.caches.open(NPM, b"2")
        write(driver, one.dataset, "one")
        assert (read(driver, two.dataset), published(driver)) == ("old", "old")
        await store.caches.discard(one)
        assert await store.caches.release(two, changed=False) is Outcome.UNCHANGED

    async def test_the_first_release_wins_and_the_second_is_superseded(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        one, two = await store.caches.open(NPM, b"1"), await store.caches.open(NPM, b"2")
        write(driver, one.dataset, "one")
        write(driver, two.dataset, "two")
        assert await store.caches.release(one, changed=True) is Outcome.PUBLISHED
        assert one.dataset == MAIN
        assert read(driver, two.dataset) == "two"
        assert await store.caches.release(two, changed=True) is Outcome.SUPERSEDED
        await store.complete_deletes()
        assert (published(driver), temporary(driver)) == ("one", [])
        info = store.caches.get(NPM)
        assert info is not None
        assert info.generation == 2
        with pytest.raises(Missing):
            await store.caches.release(two, changed=True)

    async def test_releases_while_others_hold_clones_of_older_snapshots(self, store: Store, driver: Driver) -> None:
        await filled(store, "v1")
        held: list[Session] = []
        for number in (2, 3, 4):
            held.append(await store.caches.open(NPM, f"held {number}".encode()))
            session = await store.caches.open(NPM, None)
            write(driver, session.dataset, f"v{number}")
            assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
        await finish(store)
        assert [read(driver, each.dataset) for each in held] == ["v1", "v2", "v3"]
        for each in held:
            assert await store.caches.release(each, changed=True) is Outcome.SUPERSEDED
        await finish(store)
        assert published(driver) == "v4"
        assert [str(each.snapshot) for each in driver.list()[MAIN].snapshots] == ["cache/c-npm@snap"]

    async def test_a_release_while_the_published_head_is_viewed(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "new")
        with viewing(driver, MAIN):
            assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
            await store.complete_deletes()
            assert len(store.reaper.queue) == 1
        await store.complete_deletes()
        assert (published(driver), temporary(driver)) == ("new", [])

    async def test_the_background_task_tidies_and_destroys(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        gone = trio.Event()
        store.events.subscribers.append(lambda event: gone.set() if event.kind == "destroyed" else None)
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda task_status: store.run(task_status=task_status))
            session = await store.caches.open(NPM, None)
            write(driver, session.dataset, "new")
            await store.caches.release(session, changed=True)
            await gone.wait()
            nursery.cancel_scope.cancel()

    async def test_a_release_that_is_cancelled_is_whole(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "new")
        store.events.subscribers.append(lambda event: scope.cancel())
        with trio.CancelScope() as scope:
            await store.caches.release(session, changed=True)
        await store.complete_deletes()
        assert published(driver) == "new"

    async def test_delete_of_a_cache_in_use_is_busy_and_names_the_sessions(
        self, store: Store, driver: Driver
    ) -> None:
        await filled(store, "old")
        session = await store.caches.open(NPM, b"job7")
        with pytest.raises(Busy, match="npm@job7"):
            await store.caches.delete(NPM)
        await store.caches.release(session, changed=False)
        await store.caches.delete(NPM)
        assert store.caches.names() == []
        await finish(store)
        assert [each for each in driver.list() if each.leaf] == []
        with pytest.raises(Missing):
            await store.caches.delete(NPM)

    async def test_a_deleted_cache_can_be_made_again(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        await store.caches.delete(NPM)
        await store.caches.create(NPM, ME, 0o755)
        assert published(driver) == ""

    # foreign snapshots

    async def test_recursive_foreign_snapshots_break_no_release(self, store: Store, driver: Driver) -> None:
        await filled(store, "v0")
        for number in range(1, 4):
            session = await store.caches.open(NPM, None)
            write(driver, session.dataset, f"v{number}")
            for dataset in (MAIN, session.dataset):
                driver.snapshot(Snapshot(dataset, f"auto-{number}"))
            assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
        await finish(store)
        assert published(driver) == "v3"
        found = {each.snapshot.name for info in driver.list().values() for each in info.snapshots}
        assert {"auto-1", "auto-2", "auto-3"} <= found
        assert all("somebody else" in each.reason for each in store.reaper.queue.values())
        again = await restarted(store)
        await finish(again)
        assert published(driver) == "v3"
        await again.caches.delete(NPM)
        await finish(again)
        assert [each for each in driver.list() if each.leaf] == []

    @pytest.mark.parametrize("name", ["backup", "snap", "next", "old-0"])
    async def test_a_foreign_snapshot_of_a_name_that_would_move(
        self, store: Store, driver: Driver, name: str
    ) -> None:
        await filled(store, "old")
        if name in ("backup", "next"):
            session = await store.caches.open(NPM, None)
            driver.snapshot(Snapshot(session.dataset, name))
            write(driver, session.dataset, "old")
            await store.caches.release(session, changed=True)
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "new")
        driver.snapshot(Snapshot(session.dataset, name))
        assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
        await finish(store)
        assert published(driver) == "new"

    async def test_a_superseded_session_waits_for_foreign_snapshots_to_go(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        one, two = await store.caches.open(NPM, None), await store.caches.open(NPM, b"2")
        driver.snapshot(Snapshot(two.dataset, "backup"))
        await store.caches.release(one, changed=True)
        assert await store.caches.release(two, changed=True) is Outcome.SUPERSEDED
        again = await restarted(store)
        await finish(again)
        assert [str(each) for each in again.reaper.queue] == temporary(driver) == [str(two.dataset)]
        driver.destroy_snapshot(Snapshot(two.dataset, "backup"), defer=False)
        await finish(again)
        assert temporary(driver) == []

    # start-up

    async def test_start_up_destroys_what_sessions_left_in_cache_tmp(self, store: Store, driver: Driver) -> None:
        await filled(store, "old")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "unpublished")
        again = await restarted(store)
        assert (published(driver), temporary(driver)) == ("old", [])
        info = again.caches.get(NPM)
        assert info is not None
        assert info.generation == 1

    async def test_start_up_gives_a_cache_its_missing_snapshot(self, store: Store, driver: Driver) -> None:
        driver.create(MAIN)
        write(driver, MAIN, "obuilder's")
        again = await restarted(store)
        assert again.caches.names() == [NPM]
        assert published(driver) == "obuilder's"

    async def test_start_up_leaves_names_alone_that_are_not_ours(self, store: Store, driver: Driver) -> None:
        stranger = Dataset("cache-tmp", "stranger")
        driver.create(stranger)
        await store.close()
        report = await Store(driver).start()
        assert any("stranger" in text for text in report.warnings)
        assert stranger in driver.list()
        driver.destroy(stranger)

    async def test_a_cache_that_is_a_clone_of_something_in_cache_tmp_is_kept(
        self, store: Store, driver: Driver
    ) -> None:
        await filled(store, "old")
        session = await store.caches.open(NPM, None)
        driver.promote(session.dataset)
        again = await restarted(store)
        assert (published(driver), temporary(driver), again.caches.names()) == ("old", [], [NPM])

    async def test_complete_deletes_ends_when_nothing_is_left_to_free(self, store: Store, driver: Driver) -> None:
        await build(store, b"a", "one")
        await store.builds.delete(A)
        await store.complete_deletes()
        assert (store.reaper.queue, driver.freeing()) == ({}, 0)

    # what can't be done at once

    @pytest.mark.parametrize("failure", [NoSpace, DriverError])
    async def test_what_is_given_up_and_can_not_move_is_destroyed(
        self, store: Store, driver: Driver, failure: type[ZfsfsError]
    ) -> None:
        await filled(store, "one")
        await build(store, b"a", "a")
        await store.builds.start(BuildName(B, A), ME, 0o755)
        with no_room(driver, failure):
            await store.builds.discard(B)
            await store.builds.delete(A)
            await store.caches.delete(NPM)
            again = await restarted(store)
            await again.complete_deletes()
        assert not [each for each in driver.list() if each.leaf]
        await again.close()
        await store.start()

    async def test_a_release_that_was_decided_waits_for_room(self, store: Store, driver: Driver) -> None:
        await filled(store, "one")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "two")
        with no_room(driver):
            with pytest.raises(NoSpace):
                await store.caches.release(session, changed=True)
            assert store.caches.is_decided(session)
            with pytest.raises(NoSpace):
                await store.caches.open(NPM, b"another")
            info = store.caches.get(NPM)
            assert info is not None
            assert read(driver, info.dataset) == "one"
            with pytest.raises(Missing):
                await store.caches.discard(session)
        # Who comes next completes it, and whose it was hears of it.
        another = await store.caches.open(NPM, b"another")
        assert read(driver, another.dataset) == "two"
        assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
        await store.caches.release(another, changed=False)

    async def test_a_release_that_others_complete_while_it_waits_for_them_is_one(
        self, store: Store, driver: Driver
    ) -> None:
        await filled(store, "one")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "two")
        with no_room(driver), pytest.raises(NoSpace):
            await store.caches.release(session, changed=True)
        view = driver.view(MAIN, writable=False)  # of what is going to be replaced: it would keep that from going
        async with trio.open_nursery() as nursery:
            with moving(driver) as begun:
                nursery.start_soon(store.caches.settle)
                await begun.wait()
                assert await store.caches.release(session, changed=True, view=view) is Outcome.PUBLISHED
        assert view.fd == -1
        assert published(driver) == "two"

    async def test_what_the_storage_says_of_a_release_is_not_passed_over(
        self, store: Store, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may say once that something was lost."""
        await filled(store, "one")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "two")
        batch, failures = driver.batch, [DriverError("something is lost")]

        def fails_once(steps: Sequence[Step]) -> None:
            if failures:
                raise failures.pop()
            batch(steps)

        monkeypatch.setattr(driver, "batch", fails_once)
        with pytest.raises(DriverError):
            await store.caches.release(session, changed=True)
        assert published(driver) == "one"
        assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED

    @pytest.mark.parametrize("failure", [Busy, InvalidName])
    async def test_what_recovery_could_not_publish_is_tried_again(
        self, store: Store, driver: Driver, failure: type[ZfsfsError]
    ) -> None:
        await filled(store, "one")
        await bequeathed(store, "two")
        with no_promotion(driver, failure):
            again = await restarted(store, whole=False)
            renewed: list[CacheName] = []
            again.caches.renewed = renewed.append
            old = await again.caches.open(NPM, None)
            assert read(driver, old.dataset) == "one"
            with pytest.raises(failure):
                await again.caches.release(old, changed=True)
        await again.caches.settle()
        assert renewed == [NPM]
        assert published(driver) == "two"
        assert await again.caches.release(old, changed=True) is Outcome.SUPERSEDED
        await finish(again)
        await again.close()
        await store.start()

    async def test_a_cache_that_recovery_could_not_name_is_there_later(self, store: Store, driver: Driver) -> None:
        await filled(store, "one")
        session = await store.caches.open(NPM, None)
        write(driver, session.dataset, "two")
        with no_room(driver):
            with pytest.raises(NoSpace):
                await store.caches.release(session, changed=True)
            again = await restarted(store, whole=False)
            assert again.caches.names() == []
            with pytest.raises(Busy):
                await again.caches.create(NPM, ME, 0o755)
        await again.caches.settle()
        assert again.caches.names() == [NPM]
        assert published(driver) == "two"
        await finish(again)
        await again.close()
        await store.start()

    async def test_a_cache_is_deleted_with_what_could_not_be_published(self, store: Store, driver: Driver) -> None:
        await filled(store, "one")
        await bequeathed(store, "two")
        with no_promotion(driver):
            again = await restarted(store, whole=False)
            await again.caches.delete(NPM)
        await finish(again)
        assert temporary(driver) == []
        await filled(again, "another of that name")
        await again.close()
        await store.start()

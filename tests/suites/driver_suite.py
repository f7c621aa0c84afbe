"""The contract of the dataset verbs, as named cases for every driver.

A subclass's fixtures: `driver` (locked and prepared), `construct` (Python that leaves a second, untouched driver of
the same storage in the variable `driver`).
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading

import pytest

from zfsfs.driver import (
    Destroy,
    DestroySnapshot,
    Driver,
    Promote,
    RenameSnapshot,
    SetProperty,
    TakeSnapshot,
    View,
    viewing,
)
from zfsfs.errors import Busy, DriverError, Exists, Locked, Missing
from zfsfs.names import Dataset, Snapshot

A, B, C = (Dataset("result", name) for name in "abc")
NEW = Dataset("cache", "c-new")
GONE = Dataset("result", "gone")


def at(dataset: Dataset, name: str = "snap") -> Snapshot:
    return Snapshot(dataset, name)


def write(driver: Driver, dataset: Dataset, text: str, name: str = "file") -> None:
    with viewing(driver, dataset, writable=True) as root:
        put(root, text, name)


def put(root: int, text: str, name: str = "file") -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644, dir_fd=root)
    os.write(fd, text.encode())
    os.close(fd)


def get(root: int, name: str = "file") -> str:
    fd = os.open(name, os.O_RDONLY, dir_fd=root)
    try:
        return os.read(fd, 4096).decode()
    finally:
        os.close(fd)


def read(driver: Driver, target: Dataset | Snapshot, name: str = "file") -> str:
    with viewing(driver, target) as root:
        return get(root, name)


def snapshots(driver: Driver, dataset: Dataset) -> list[str]:
    info = driver.info(dataset)
    assert info is not None
    return [each.snapshot.name for each in info.snapshots]


def origin(driver: Driver, dataset: Dataset) -> Snapshot | None:
    info = driver.info(dataset)
    assert info is not None
    return info.origin


def base_and_clone(driver: Driver) -> None:
    """A with contents and @snap, and B, a clone of it."""
    driver.create(A)
    write(driver, A, "of a")
    driver.snapshot(at(A))
    driver.clone(at(A), B)


class DriverSuite:
    def test_a_prepared_store_has_the_groups_and_nothing_else(self, driver: Driver) -> None:
        assert set(driver.list()) == {Dataset(group) for group in Dataset.GROUPS}
        driver.prepare()
        assert set(driver.list()) == {Dataset(group) for group in Dataset.GROUPS}

    def test_list_and_info_agree(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.set_property(B, "zfsfs:key", "value")
        listing = driver.list()
        assert {A, B} < set(listing)
        assert all(driver.info(dataset) == info for dataset, info in listing.items())
        assert driver.info(GONE) is None

    # create

    def test_a_created_dataset_is_empty_and_its_root_is_ours_with_mode_755(self, driver: Driver) -> None:
        old = os.umask(0o077)
        try:
            driver.create(A)
        finally:
            os.umask(old)
        with viewing(driver, A) as root:
            status = os.fstat(root)
            assert os.listdir(root) == []
            assert stat.S_IMODE(status.st_mode) == 0o755
            assert (status.st_uid, status.st_gid) == (os.geteuid(), os.getegid())

    def test_creating_twice_is_an_error(self, driver: Driver) -> None:
        driver.create(A)
        with pytest.raises(Exists, match="result/a"):
            driver.create(A)

    def test_guids_tell_all_apart(self, driver: Driver) -> None:
        base_and_clone(driver)
        infos = driver.list().values()
        guids = [info.guid for info in infos] + [each.guid for info in infos for each in info.snapshots]
        assert len(set(guids)) == len(guids)

    # snapshot

    def test_a_snapshot_keeps_the_contents_that_the_head_had(self, driver: Driver) -> None:
        driver.create(A)
        write(driver, A, "old")
        driver.snapshot(at(A))
        write(driver, A, "new")
        driver.snapshot(at(A, "later"))
        write(driver, A, "newest")
        assert [read(driver, each) for each in (at(A), at(A, "later"), A)] == ["old", "new", "newest"]

    def test_snapshots_are_listed_oldest_first_foreign_ones_included(self, driver: Driver) -> None:
        driver.create(A)
        for name in ("z", "autosnap_2024-05-01_00:00:00_daily", "a"):
            driver.snapshot(at(A, name))
        assert snapshots(driver, A) == ["z", "autosnap_2024-05-01_00:00:00_daily", "a"]

    def test_several_snapshots_are_taken_at_once(self, driver: Driver) -> None:
        for each in (A, B):
            driver.create(each)
            write(driver, each, str(each))
        assert list(driver.snapshot_each([at(A), at(B)])) == [None, None]
        assert [read(driver, at(each)) for each in (A, B)] == [str(A), str(B)]

    def test_a_snapshot_that_cant_be_taken_keeps_no_other_from_it(self, driver: Driver) -> None:
        for each in (A, B, C):
            driver.create(each)
        driver.snapshot(at(B))
        outcomes = driver.snapshot_each([at(A), at(GONE), at(B), at(C)])
        assert [type(each) for each in outcomes] == [type(None), Missing, Exists, type(None)]
        assert snapshots(driver, A) == snapshots(driver, B) == snapshots(driver, C) == ["snap"]
        assert not driver.snapshot_each([])

    def test_a_snapshot_needs_a_head_and_a_free_name(self, driver: Driver) -> None:
        with pytest.raises(Missing, match="result/gone"):
            driver.snapshot(at(GONE))
        driver.create(A)
        driver.snapshot(at(A))
        with pytest.raises(Exists, match="snap"):
            driver.snapshot(at(A))

    # clone

    def test_a_clone_has_the_contents_of_its_origin_and_then_goes_its_own_way(self, driver: Driver) -> None:
        base_and_clone(driver)
        assert read(driver, B) == "of a"
        write(driver, B, "of b")
        assert [read(driver, each) for each in (A, at(A), B)] == ["of a", "of a", "of b"]

    def test_a_clone_knows_its_origin_and_the_origin_counts_it(self, driver: Driver) -> None:
        base_and_clone(driver)
        assert origin(driver, B) == at(A)
        assert origin(driver, A) is None
        info = driver.info(A)
        assert info is not None
        assert [each.clones for each in info.snapshots] == [1]

    def test_a_clone_of_an_old_snapshot_has_the_old_contents(self, driver: Driver) -> None:
        driver.create(A)
        write(driver, A, "old")
        driver.snapshot(at(A))
        write(driver, A, "new")
        driver.clone(at(A), B)
        assert read(driver, B) == "old"

    def test_a_clone_needs_an_origin_and_a_free_name(self, driver: Driver) -> None:
        driver.create(A)
        for missing in (at(A), at(GONE)):
            with pytest.raises(Missing):
                driver.clone(missing, B)
        driver.snapshot(at(A))
        driver.create(B)
        with pytest.raises(Exists, match="result/b"):
            driver.clone(at(A), B)

    def test_a_clone_is_faithful_to_the_metadata_of_files(self, driver: Driver) -> None:
        driver.create(A)
        with viewing(driver, A, writable=True) as root:
            os.mkdir("dir", dir_fd=root)
            put(root, "x", "dir/one")
            os.link("dir/one", "two", src_dir_fd=root, dst_dir_fd=root)
            os.symlink("nowhere", "link", dir_fd=root)
            os.mkfifo("fifo", 0o640, dir_fd=root)
            put(root, "odd", os.fsdecode(b"odd \xff\n name"))
            fd = os.open("dir/one", os.O_RDWR, dir_fd=root)
            os.setxattr(fd, "user.colour", b"blue\0green")
            os.fchmod(fd, 0o4511)
            os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
            os.close(fd)
            os.utime("link", ns=(3_000_000_003, 4_000_000_004), dir_fd=root, follow_symlinks=False)
            os.chmod("dir", 0o1770, dir_fd=root)
            os.utime("dir", ns=(5_000_000_005, 6_000_000_006), dir_fd=root)
            os.utime(root, ns=(7_000_000_007, 8_000_000_008))
        driver.snapshot(at(A))
        driver.clone(at(A), B)
        with viewing(driver, B) as root:
            assert sorted(os.listdir(os.fsencode(f"/proc/self/fd/{root}"))) == sorted(
                [b"dir", b"two", b"link", b"fifo", b"odd \xff\n name"]
            )
            one, two = os.stat("dir/one", dir_fd=root), os.stat("two", dir_fd=root)
            assert (one.st_ino, one.st_nlink, one.st_mtime_ns) == (two.st_ino, 2, 2_000_000_002)
            assert stat.S_IMODE(one.st_mode) == 0o4511
            assert os.getxattr(f"/proc/self/fd/{root}/two", "user.colour") == b"blue\0green"
            link = os.stat("link", dir_fd=root, follow_symlinks=False)
            assert (os.readlink("link", dir_fd=root), link.st_mtime_ns) == ("nowhere", 4_000_000_004)
            assert os.stat("fifo", dir_fd=root).st_mode == stat.S_IFIFO | 0o640
            below = os.stat("dir", dir_fd=root)
            assert (stat.S_IMODE(below.st_mode), below.st_mtime_ns) == (0o1770, 6_000_000_006)
            assert os.fstat(root).st_mtime_ns == 8_000_000_008

    def test_a_clone_of_a_sparse_file_is_sparse(self, driver: Driver) -> None:
        driver.create(A)
        with viewing(driver, A, writable=True) as root:
            fd = os.open("sparse", os.O_WRONLY | os.O_CREAT, dir_fd=root)
            os.pwrite(fd, b"middle", 32 << 20)
            os.ftruncate(fd, 64 << 20)
            os.close(fd)
        driver.snapshot(at(A))
        driver.clone(at(A), B)
        with viewing(driver, B) as root:
            status = os.stat("sparse", dir_fd=root)
            fd = os.open("sparse", os.O_RDONLY, dir_fd=root)
            assert os.pread(fd, 8, 32 << 20) == b"middle\0\0"
            os.close(fd)
            assert status.st_size == 64 << 20
            assert status.st_blocks * 512 < 1 << 20

    # promote

    def test_promotion_moves_the_origin_and_older_snapshots_and_turns_the_relation_round(
        self, driver: Driver
    ) -> None:
        driver.create(A)
        for name in ("older", "snap"):
            write(driver, A, name)
            driver.snapshot(at(A, name))
        driver.clone(at(A), B)
        driver.clone(at(A), C)
        write(driver, A, "now")
        driver.snapshot(at(A, "newer"))
        driver.promote(B)
        assert snapshots(driver, B) == ["older", "snap"]
        assert snapshots(driver, A) == ["newer"]
        assert (origin(driver, A), origin(driver, B), origin(driver, C)) == (at(B), None, at(B))
        assert [read(driver, each) for each in (at(B, "older"), at(B), A, B)] == ["older", "snap", "now", "snap"]

    def test_a_promoted_clone_of_a_clone_takes_over_the_parents_origin(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.snapshot(at(B))
        driver.clone(at(B), C)
        driver.promote(C)
        assert (origin(driver, A), origin(driver, B), origin(driver, C)) == (None, at(C), at(A))

    def test_a_promoted_clone_outlives_what_it_was_cloned_from(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.promote(B)
        driver.destroy(A)
        assert [read(driver, each) for each in (B, at(B))] == ["of a", "of a"]

    def test_promotion_needs_a_clone(self, driver: Driver) -> None:
        driver.create(A)
        with pytest.raises(DriverError) as caught:
            driver.promote(A)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(Missing):
            driver.promote(GONE)

    def test_promotion_refuses_two_snapshots_of_one_name_and_changes_nothing(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.snapshot(at(B))
        before = driver.list()
        with pytest.raises(Exists, match="snap"):
            driver.promote(B)
        assert driver.list() == before

    def test_promotion_is_busy_while_a_snapshot_that_would_move_is_viewed(self, driver: Driver) -> None:
        base_and_clone(driver)
        with viewing(driver, at(A)), pytest.raises(Busy):
            driver.promote(B)
        driver.promote(B)

    def test_promotion_works_while_the_heads_are_viewed(self, driver: Driver) -> None:
        base_and_clone(driver)
        with viewing(driver, A) as a, viewing(driver, B, writable=True) as b:
            driver.promote(B)
            put(b, "written on")
            assert get(a) == "of a"
        assert read(driver, B) == "written on"

    # rename

    def test_a_rename_takes_everything_along(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.set_property(A, "zfsfs:generation", "7")
        before = driver.info(A)
        driver.rename(A, NEW)
        after = driver.info(NEW)
        assert before is not None
        assert after is not None
        assert driver.info(A) is None
        assert (after.guid, after.properties) == (before.guid, {"zfsfs:generation": "7"})
        assert snapshots(driver, NEW) == ["snap"]
        assert origin(driver, B) == at(NEW)
        assert read(driver, NEW) == "of a"

    def test_open_views_stay_good_through_a_rename_and_hold_the_new_name(self, driver: Driver) -> None:
        driver.create(A)
        with viewing(driver, A, writable=True) as root:
            driver.rename(A, NEW)
            put(root, "written after")
            assert get(root) == "written after"
            with pytest.raises(Busy):
                driver.destroy(NEW)
        assert read(driver, NEW) == "written after"

    def test_a_rename_needs_a_source_and_a_free_target(self, driver: Driver) -> None:
        with pytest.raises(Missing):
            driver.rename(GONE, B)
        driver.create(A)
        driver.create(B)
        with pytest.raises(Exists):
            driver.rename(A, B)

    # destroy

    def test_a_destroyed_dataset_is_gone_and_its_name_free(self, driver: Driver) -> None:
        driver.create(A)
        write(driver, A, "old")
        driver.destroy(A)
        assert driver.info(A) is None
        driver.create(A)
        with viewing(driver, A) as root:
            assert os.listdir(root) == []

    def test_destroying_nothing_is_an_error(self, driver: Driver) -> None:
        with pytest.raises(Missing, match="gone"):
            driver.destroy(GONE)

    def test_a_viewed_dataset_is_busy_until_the_last_view_is_closed(self, driver: Driver) -> None:
        driver.create(A)
        views: list[View] = [driver.view(A, writable=writable) for writable in (False, True)]
        for view in views:
            with pytest.raises(Busy):
                driver.destroy(A)
            view.close()
            view.close()
        driver.destroy(A)

    def test_a_dataset_with_snapshots_is_busy(self, driver: Driver) -> None:
        driver.create(A)
        driver.snapshot(at(A, "foreign"))
        with pytest.raises(Busy):
            driver.destroy(A)
        driver.destroy_snapshot(at(A, "foreign"), defer=False)
        driver.destroy(A)

    # snapshots' ends and names

    def test_a_destroyed_snapshot_is_gone_and_the_head_keeps_its_contents(self, driver: Driver) -> None:
        driver.create(A)
        write(driver, A, "kept")
        driver.snapshot(at(A))
        driver.destroy_snapshot(at(A), defer=False)
        assert snapshots(driver, A) == []
        assert read(driver, A) == "kept"

    def test_destroying_a_missing_snapshot_is_an_error(self, driver: Driver) -> None:
        driver.create(A)
        for defer in (False, True):
            with pytest.raises(Missing):
                driver.destroy_snapshot(at(A), defer=defer)

    def test_a_snapshot_with_clones_is_busy(self, driver: Driver) -> None:
        base_and_clone(driver)
        with pytest.raises(Busy):
            driver.destroy_snapshot(at(A), defer=False)
        driver.destroy(B)
        driver.destroy_snapshot(at(A), defer=False)

    def test_a_deferred_snapshot_goes_with_its_last_clone(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.clone(at(A), C)
        driver.destroy_snapshot(at(A), defer=True)
        info = driver.info(A)
        assert info is not None
        assert [each.deferred for each in info.snapshots] == [True]
        driver.destroy(B)
        assert snapshots(driver, A) == ["snap"]
        driver.destroy(C)
        assert snapshots(driver, A) == []

    def test_a_deferred_destroy_of_what_nothing_needs_is_done_at_once(self, driver: Driver) -> None:
        driver.create(A)
        driver.snapshot(at(A))
        driver.destroy_snapshot(at(A), defer=True)
        assert snapshots(driver, A) == []

    def test_a_snapshot_gets_another_name_and_stays_the_same(self, driver: Driver) -> None:
        base_and_clone(driver)
        driver.rename_snapshot(at(A), "other")
        assert snapshots(driver, A) == ["other"]
        assert origin(driver, B) == at(A, "other")
        assert read(driver, at(A, "other")) == "of a"

    def test_renaming_a_snapshot_needs_it_and_a_free_name(self, driver: Driver) -> None:
        driver.create(A)
        with pytest.raises(Missing):
            driver.rename_snapshot(at(A), "other")
        driver.snapshot(at(A))
        driver.snapshot(at(A, "other"))
        with pytest.raises(Exists):
            driver.rename_snapshot(at(A), "other")

    # properties

    def test_a_property_is_set_replaced_and_not_inherited_by_clones(self, driver: Driver) -> None:
        driver.create(A)
        driver.set_property(A, "zfsfs:key", "one")
        driver.set_property(A, "zfsfs:key", "two words, ünïcode")
        driver.snapshot(at(A))
        driver.clone(at(A), B)
        a, b = driver.info(A), driver.info(B)
        assert a is not None
        assert b is not None
        assert (a.properties, b.properties) == ({"zfsfs:key": "two words, ünïcode"}, {})
        with pytest.raises(Missing):
            driver.set_property(GONE, "zfsfs:key", "x")

    # batch

    def test_a_batch_does_its_steps_in_order(self, driver: Driver) -> None:
        base_and_clone(driver)
        write(driver, B, "of b")
        driver.batch(
            [
                TakeSnapshot(at(B, "new")),
                SetProperty(B, "zfsfs:generation", "2"),
                Promote(B),
                DestroySnapshot(at(B, "snap")),
                Destroy(A),
            ]
        )
        assert driver.info(A) is None
        info = driver.info(B)
        assert info is not None
        assert info.properties == {"zfsfs:generation": "2"}
        # `snap` was marked while A still needed it, and went with A.
        assert snapshots(driver, B) == ["new"]
        driver.batch([RenameSnapshot(at(B, "new"), "snap"), TakeSnapshot(at(B, "last"))])
        assert snapshots(driver, B) == ["snap", "last"]
        assert read(driver, at(B)) == "of b"

    def test_an_error_leaves_a_prefix_of_the_batch(self, driver: Driver) -> None:
        driver.create(A)
        with pytest.raises(Missing):
            driver.batch(
                [
                    TakeSnapshot(at(A, "1")),
                    TakeSnapshot(at(A, "2")),
                    DestroySnapshot(at(A, "missing")),
                    TakeSnapshot(at(A, "3")),
                ]
            )
        assert snapshots(driver, A) in ([], ["1"], ["1", "2"])

    def test_a_batch_is_busy_as_its_steps_are(self, driver: Driver) -> None:
        driver.create(A)
        with viewing(driver, A), pytest.raises(Busy):
            driver.batch([Destroy(A)])
        assert driver.info(A) is not None

    # view

    def test_a_view_needs_what_it_looks_into(self, driver: Driver) -> None:
        driver.create(A)
        for missing in (GONE, at(A), at(GONE)):
            with pytest.raises(Missing):
                driver.view(missing, writable=False)

    def test_a_view_is_a_directory_that_can_be_listed_and_is_closed_on_exec(self, driver: Driver) -> None:
        base_and_clone(driver)
        for target in (A, at(A), B):
            with viewing(driver, target) as root:
                assert os.listdir(root) == ["file"]
                assert not os.get_inheritable(root)

    # space

    def test_space_tells_what_a_dataset_refers_to(self, driver: Driver) -> None:
        driver.create(A)
        with viewing(driver, A, writable=True) as root:
            fd = os.open("big", os.O_WRONLY | os.O_CREAT, dir_fd=root)
            os.write(fd, os.urandom(1 << 20))
            os.close(fd)
        driver.sync()
        assert driver.space(A).referenced >= 1 << 20
        assert driver.freeing() >= 0
        with pytest.raises(Missing):
            driver.space(GONE)

    def test_what_is_written_in_a_clone_counts_where_that_can_be_told(self, driver: Driver) -> None:
        driver.create(A)
        write(driver, A, "text")
        driver.snapshot(at(A))
        driver.clone(at(A), B)
        before = driver.written(B, wait=False)
        with viewing(driver, B, writable=True) as root:
            assert get(root) == "text"
        assert driver.written(B, wait=True) == before
        write(driver, B, "other")
        after = driver.written(B, wait=True)
        assert (before is None and after is None) or before < after
        driver.snapshot(at(B))
        assert driver.written(B, wait=True) is None
        assert driver.written(A, wait=True) is None
        with pytest.raises(Missing):
            driver.written(GONE, wait=True)

    # many at once

    def test_verbs_may_be_called_by_several_threads(self, driver: Driver) -> None:
        base_and_clone(driver)
        failures: list[BaseException] = []

        def cycle(number: int) -> None:
            try:
                mine, renamed = Dataset("cache-tmp", f"{number}-c-x"), Dataset("cache", f"c-{number}")
                driver.clone(at(A), mine)
                write(driver, mine, str(number))
                driver.snapshot(at(mine))
                driver.rename(mine, renamed)
                assert read(driver, at(renamed)) == str(number)
                driver.destroy_snapshot(at(renamed), defer=False)
                driver.destroy(renamed)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=cycle, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert {each for each in driver.list() if each.leaf} == {A, B}

    # lock

    def test_a_second_lock_is_refused_and_names_who_has_it(self, driver: Driver, construct: str) -> None:
        code = f"""
from zfsfs.errors import Locked
{construct}
try:
    driver.lock()
except Locked as error:
    print(error)
"""
        child = subprocess.run([sys.executable, "-c", code], env=_env(), capture_output=True, text=True, check=True)
        assert str(os.getpid()) in child.stdout

    def test_the_lock_of_a_killed_process_is_free(self, driver: Driver, construct: str) -> None:
        driver.close()
        code = f"{construct}\ndriver.lock()\nprint('locked', flush=True)\ninput()"
        pipe = subprocess.PIPE
        with subprocess.Popen([sys.executable, "-c", code], env=_env(), stdin=pipe, stdout=pipe, text=True) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "locked\n"
            with pytest.raises(Locked, match=str(child.pid)):
                driver.lock()
            child.kill()
        driver.lock()


def _env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}

"""The directory driver: the contract of the verbs, and what is its own."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import sqlite3
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from suites.driver_suite import A, B, DriverSuite, at, base_and_clone, read, snapshots, write

from zfsfs.directory import catalogue, copying
from zfsfs.directory import driver as module
from zfsfs.directory.driver import DirectoryDriver
from zfsfs.directory.reserve import Reserve
from zfsfs.driver import TakeSnapshot, viewing
from zfsfs.errors import Busy, DriverError, Exists, Missing, NoSpace, ReadOnly, Unavailable
from zfsfs.names import Dataset


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def driver(store: Path) -> Iterator[DirectoryDriver]:
    before = set(os.listdir("/proc/self/fd"))
    driver = DirectoryDriver(str(store))
    driver.lock()
    driver.prepare()
    yield driver
    driver.close()
    assert len(os.listdir("/proc/self/fd")) == len(before), "descriptors are left"
    assert trees(store) == referred(store), "trees are left that nothing refers to"


def trees(store: Path) -> set[str]:
    return set(os.listdir(store / "trees"))


def referred(store: Path) -> set[str]:
    connection = sqlite3.connect(store / "catalogue.sqlite")
    rows = {row[0] for row in connection.execute("SELECT tree FROM dataset UNION SELECT tree FROM snapshot")}
    connection.close()
    return rows


class TestContract(DriverSuite):
    @pytest.fixture
    def construct(self, store: Path) -> str:
        return f"from zfsfs.directory.driver import DirectoryDriver\ndriver = DirectoryDriver({str(store)!r})"


def test_the_constructor_touches_nothing(store: Path) -> None:
    DirectoryDriver(str(store))
    assert not store.exists()


def test_an_empty_directory_becomes_a_store(store: Path) -> None:
    store.mkdir()
    driver = DirectoryDriver(str(store))
    driver.prepare()
    driver.close()
    assert {"catalogue.sqlite", "lock", "trees"} <= set(os.listdir(store))


@pytest.mark.parametrize("before", [None, 1 << 19, 1 << 20])
def test_the_room_that_is_kept_back_is_nobody_elses_to_write_in(tmp_path: Path, before: int | None) -> None:
    file = tmp_path / "reserve"
    mask = os.umask(0)  # the daemon's
    try:
        if before is not None:
            file.write_bytes(bytes(before))
        Reserve(str(tmp_path)).lay()
    finally:
        os.umask(mask)
    assert (file.stat().st_mode & 0o777, file.stat().st_size) == (0o600, 1 << 19)
    assert Reserve(str(tmp_path)).spend()
    assert not file.exists()


def test_a_directory_with_other_things_is_refused_and_left_alone(store: Path) -> None:
    store.mkdir()
    (store / "photo").touch()
    with pytest.raises(Unavailable, match="is not empty and holds no zfsfs store"):
        DirectoryDriver(str(store)).lock()
    assert os.listdir(store) == ["photo"]


def test_a_missing_store_is_not_made_by_looking_at_it(store: Path) -> None:
    with pytest.raises(Unavailable, match="holds no zfsfs store"):
        DirectoryDriver(str(store)).list()
    assert not store.exists()


def test_someone_elses_database_is_refused(store: Path) -> None:
    store.mkdir()
    connection = sqlite3.connect(store / "catalogue.sqlite")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    driver = DirectoryDriver(str(store))
    with pytest.raises(Unavailable, match="not zfsfs's"):
        driver.prepare()
    driver.close()


def test_a_newer_format_is_refused_with_a_sentence(driver: DirectoryDriver, store: Path) -> None:
    driver.close()
    connection = sqlite3.connect(store / "catalogue.sqlite")
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(Unavailable, match="format 99, written by a newer zfsfs"):
        driver.prepare()


def test_what_the_system_says_of_a_write_is_kept(driver: DirectoryDriver) -> None:
    """sqlite calls it an I/O error, be it a quota."""
    driver.create(A)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(DriverError) as caught:
            driver.set_property(A, "zfsfs:key", "value")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    driver.set_property(A, "zfsfs:key", "value")


def test_no_memory_is_shared_that_the_filesystem_may_have_no_room_for(driver: DirectoryDriver, store: Path) -> None:
    for _ in range(2):
        driver.create(A)
        assert not (store / "catalogue.sqlite-shm").exists()
        driver.destroy(A)
        driver.close()
        driver.prepare()


def test_who_looks_at_a_store_that_is_in_use_is_told(
    driver: DirectoryDriver, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "PATIENCE", 0.1)
    with pytest.raises(Busy, match="unmounted first"):
        DirectoryDriver(str(store)).list()


def test_a_store_without_room_can_be_served(driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise OSError(errno.EDQUOT, "injected")

    driver.close()
    monkeypatch.setattr(os, "ftruncate", refuse)
    driver.lock()
    assert driver.list()


def test_everything_is_there_again_after_a_restart(driver: DirectoryDriver) -> None:
    base_and_clone(driver)
    driver.set_property(A, "zfsfs:key", "value")
    before = driver.list()
    driver.close()
    driver.lock()
    driver.prepare()
    assert driver.list() == before
    assert read(driver, B) == "of a"


def test_trees_that_a_crash_left_are_removed_at_the_next_start(driver: DirectoryDriver, store: Path) -> None:
    (store / "trees" / "99-result-crashed" / "below").mkdir(parents=True)
    (store / "trees" / "99-result-crashed.links").mkdir()
    driver.prepare()
    driver.close()
    assert trees(store) == referred(store)


@pytest.mark.parametrize("step", ["copy_tree", "remove_tree"])
def test_a_process_that_dies_beside_a_transaction_leaves_the_old_or_the_new_state(
    driver: DirectoryDriver, store: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    base_and_clone(driver)
    driver.close()
    child = os.fork()
    if child == 0:
        try:
            monkeypatch.setattr(module, step, dying_after_a_copy)
            own = DirectoryDriver(str(store))
            own.prepare()
            own.destroy(B) if step == "remove_tree" else own.clone(at(A), Dataset("result", "c"))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    driver.lock()
    driver.prepare()
    left = {each for each in driver.list() if each.group == "result" and each.leaf}
    assert left == ({A} if step == "remove_tree" else {A, B})
    assert read(driver, A) == "of a"


def dying_after_a_copy(trees: int, *names: str) -> None:
    if len(names) == 2:
        copying.copy_tree(trees, *names)
    os._exit(7)


def test_a_person_recognises_the_tree_of_a_result(driver: DirectoryDriver, store: Path) -> None:
    driver.create(Dataset("result", "hello"))
    assert [name for name in trees(store) if name.endswith("-result-hello")] != []


def test_a_snapshot_shares_its_heads_tree_until_someone_may_write(driver: DirectoryDriver, store: Path) -> None:
    driver.create(A)
    before = trees(store)
    driver.snapshot(at(A))
    with viewing(driver, A):
        assert trees(store) == before
    with viewing(driver, A, writable=True):
        assert len(trees(store) - before) == 1


def test_a_head_whose_snapshot_is_gone_is_written_in_place(driver: DirectoryDriver, store: Path) -> None:
    driver.create(A)
    before = trees(store)
    driver.snapshot(at(A))
    driver.destroy_snapshot(at(A), defer=False)
    write(driver, A, "x")
    assert trees(store) == before


def test_a_tree_that_is_still_viewed_goes_with_the_view(driver: DirectoryDriver) -> None:
    driver.create(A)
    write(driver, A, "old")
    driver.snapshot(at(A))
    with viewing(driver, A) as old:
        write(driver, A, "new")
        driver.destroy_snapshot(at(A), defer=False)
        assert os.listdir(old) == ["file"]
    assert read(driver, A) == "new"


def test_a_batch_that_fails_changes_nothing(driver: DirectoryDriver) -> None:
    driver.create(A)
    with pytest.raises(Missing):
        driver.batch([TakeSnapshot(at(A)), TakeSnapshot(at(B))])
    assert snapshots(driver, A) == []


def loses_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk has lost something that was written, and the kernel says so to who asks first."""
    syncfs, lost = module.syscalls.syncfs, [errno.EIO]

    def once(fd: int) -> None:
        if lost:
            raise OSError(lost.pop(), "injected")
        syncfs(fd)

    monkeypatch.setattr(module.syscalls, "syncfs", once)


def test_what_the_disk_has_lost_is_said_of_all_that_it_may_have_been(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_and_clone(driver)
    loses_once(monkeypatch)
    with pytest.raises(DriverError, match="Input/output error"):
        driver.clone(at(A), Dataset("result", "c"))
    driver.create(Dataset("result", "d"))  # afterwards
    driver.snapshot(at(Dataset("result", "d")))
    with pytest.raises(DriverError, match="Input/output error"):
        driver.snapshot(at(B))
    driver.snapshot(at(B))


def test_what_the_disk_has_lost_is_said_of_each_of_several(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create(A)
    driver.create(B)
    loses_once(monkeypatch)
    assert [each and each.errno for each in driver.snapshot_each([at(A), at(B)])] == [errno.EIO, errno.EIO]
    assert driver.snapshot_each([at(A), at(B)]) == [None, None]


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, NoSpace), (errno.EDQUOT, NoSpace), (errno.EROFS, ReadOnly), (errno.EIO, DriverError)],
)
def test_a_copy_that_fails_leaves_nothing_and_keeps_its_number(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[DriverError]
) -> None:
    base_and_clone(driver)

    def fail(*_: object) -> None:
        raise OSError(number, "injected")

    monkeypatch.setattr(copying._Copy, "_file", fail)
    with pytest.raises(kind, match="result/c") as caught:
        driver.clone(at(A), Dataset("result", "c"))
    assert caught.value.errno == number
    assert driver.info(Dataset("result", "c")) is None


def test_a_clone_that_comes_second_is_refused_and_its_copy_removed(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create(A)
    driver.snapshot(at(A))

    def overtaken(*args: int | str) -> None:
        copying.copy_tree(*args)  # type: ignore[arg-type]
        driver.create(B)

    monkeypatch.setattr(module, "copy_tree", overtaken)
    with pytest.raises(Exists):
        driver.clone(at(A), B)


def test_contents_are_copied_where_the_filesystem_can_neither_share_nor_copy(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EXDEV, "injected")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(copying.syscalls, "reflink", refuse)
    base_and_clone(driver)
    assert read(driver, B) == "of a"


def test_a_file_with_as_many_links_as_there_may_be_is_copied(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"link {number}" for number in range(5)]
    driver.create(A)
    write(driver, A, "text")
    with viewing(driver, A, writable=True) as root:
        for name in names:
            os.link("file", name, src_dir_fd=root, dst_dir_fd=root)
    driver.snapshot(at(A))
    link = os.link

    def few(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int, follow_symlinks: bool) -> None:
        if os.stat(source, dir_fd=src_dir_fd).st_nlink > len(names):
            raise OSError(errno.EMLINK, "injected")
        link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "link", few)
    driver.clone(at(A), B)
    with viewing(driver, B) as root:
        found = {os.stat(name, dir_fd=root) for name in os.listdir(root)}
        assert [(len(os.listdir(root)), each.st_nlink) for each in found] == [(6, 6)]


def test_the_space_of_a_tree_is_told_though_something_goes_meanwhile(
    driver: DirectoryDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create(A)
    write(driver, A, "text")
    with viewing(driver, A, writable=True) as root:
        os.mkdir("folder", dir_fd=root)
        access = os.access

        def goes(name: str, mode: int, *, dir_fd: int) -> bool:
            readable = access(name, mode, dir_fd=dir_fd)
            if name == "folder":
                os.rmdir(name, dir_fd=dir_fd)
            return readable

        monkeypatch.setattr(os, "access", goes)
        assert driver.space(A).referenced > 0


def test_a_very_deep_tree_is_cloned_and_destroyed(driver: DirectoryDriver) -> None:
    driver.create(A)
    depth = 1200  # more than a process may have descriptors, and longer than a path may be
    with viewing(driver, A, writable=True) as root:
        fd = os.dup(root)
        for _ in range(depth):
            os.mkdir("d" * 50, dir_fd=fd)
            below = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
        os.close(fd)
    driver.snapshot(at(A))
    driver.clone(at(A), B)
    assert driver.space(B).referenced > 0
    driver.destroy(B)
    driver.destroy_snapshot(at(A), defer=False)
    driver.destroy(A)


@pytest.mark.skipif(shutil.which("setfacl") is None, reason="setfacl is not installed")
def test_acls_are_copied_and_default_ones_not_applied_twice(driver: DirectoryDriver) -> None:
    driver.create(A)
    with viewing(driver, A, writable=True) as root:
        os.mkdir("dir", dir_fd=root)
        write_plain = os.open("dir/plain", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=root)
        os.close(write_plain)
        path = f"/proc/{os.getpid()}/fd/{root}/dir"
        if subprocess.run(["setfacl", "-m", "u:12345:rx,d:u:12345:rwx", path], capture_output=True).returncode:
            pytest.skip("this filesystem has no ACLs")
        expected = {name: os.getxattr(path, name) for name in os.listxattr(path)}
    driver.snapshot(at(A))
    driver.clone(at(A), B)
    with viewing(driver, B) as root:
        path = f"/proc/self/fd/{root}/dir"
        assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == expected
        assert os.listxattr(f"{path}/plain") == []
        assert os.stat(f"{path}/plain").st_mode & 0o777 == 0o640


def use_closed_directories(store: str) -> None:
    driver = DirectoryDriver(store)
    driver.prepare()
    driver.create(A)
    with viewing(driver, A, writable=True) as root:
        os.mkdir("closed", dir_fd=root)
        os.close(os.open("closed/file", os.O_CREAT | os.O_WRONLY, 0, dir_fd=root))
        os.chmod("closed", 0, dir_fd=root)
    driver.snapshot(at(A))
    driver.clone(at(A), B)
    for each in A, B:
        with viewing(driver, each) as root:
            assert os.stat("closed", dir_fd=root).st_mode & 0o7777 == 0
    with viewing(driver, B, writable=True) as root:
        os.chmod("closed", 0o700, dir_fd=root)
        assert os.stat("closed/file", dir_fd=root).st_mode & 0o7777 == 0
        os.chmod("closed", 0, dir_fd=root)
    driver.destroy(B)
    driver.destroy_snapshot(at(A), defer=False)
    driver.destroy(A)
    driver.close()
    assert trees(Path(store)) == referred(Path(store))


def clone_closed_files_at_once(store: str) -> None:
    driver = DirectoryDriver(store)
    driver.prepare()
    driver.create(A)
    with viewing(driver, A, writable=True) as root:
        for number in range(300):
            os.close(os.open(f"{number}", os.O_CREAT | os.O_WRONLY, 0, dir_fd=root))
    driver.snapshot(at(A))
    clones = [Dataset("result", f"clone {number}") for number in range(8)]
    with ThreadPoolExecutor() as pool:
        list(pool.map(lambda clone: driver.clone(at(A), clone), clones))
    for each in clones:
        with viewing(driver, each) as root:
            assert {os.stat(name, dir_fd=root).st_mode & 0o7777 for name in os.listdir(root)} == {0}
    driver.close()


@pytest.mark.parametrize("work", [use_closed_directories, clone_closed_files_at_once])
def test_without_root_what_is_closed_is_copied_and_removed(work: Callable[[str], None]) -> None:
    """In a process without privileges, in a directory of its own: pytest's are closed to others."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        child = os.fork()
        if child == 0:
            try:
                if os.geteuid() == 0:
                    os.setgroups([])
                    os.setresgid(65534, 65534, 65534)
                    os.setresuid(65534, 65534, 65534)
                work(f"{directory}/store")
                os._exit(0)
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

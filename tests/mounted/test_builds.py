"""Builds and results by path: mkdir begins, mv publishes, rmdir discards."""

from __future__ import annotations

import errno
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from errnos import failing
from mounted_tree import until

from zfsfs.names import BuildId


def build(tree: object, name: str, **files: str) -> Path:
    folder = tree / "builds" / name  # type: ignore[operator]
    folder.mkdir()
    for file, text in files.items():
        (folder / file).write_text(text)
    return folder


def test_a_build_becomes_a_result_that_nobody_can_change(tree):
    folder = build(tree, "one", file="contents")
    assert os.listdir(tree / "results") == []
    os.rename(folder, tree / "results/one")
    result = tree / "results/one"
    assert (result / "file").read_text() == "contents"
    assert os.listdir(tree / "builds") == []
    assert os.listdir(tree / "results") == ["one"]
    with failing(errno.EROFS):
        (result / "file").write_text("other")
    with failing(errno.EROFS):
        (result / "new").mkdir()
    with failing(errno.EROFS):
        (result / "file").unlink()
    with failing(errno.EROFS):
        os.utime(result / "file")


def test_a_build_starts_from_a_copy_of_its_base(tree):
    build(tree, "base", file="from the base").rename(tree / "results/base")
    folder = build(tree, "next@base", more="new")
    assert (folder / "file").read_text() == "from the base"
    (folder / "file").write_text("changed")
    folder.rename(tree / "results/next")
    assert (tree / "results/base/file").read_text() == "from the base"
    assert (tree / "results/next/file").read_text() == "changed"
    assert os.getxattr(tree / "results/next", "user.zfsfs.base") == b"base"


def test_builds_that_get_what_was_kept_ready_are_as_any_other(unmounted, tmp_path):
    tree = unmounted
    tree.mount_changed("spares", tmp_path)
    build(tree, "base", file="from the base").rename(tree / "results/base")
    for name in ("a@base", "b@base"):
        build(tree, name).rmdir()
    kept = set(until(lambda: len(ready := tree.status()["ready"]) >= 3 and ready))
    folder = build(tree, "next@base", more="new")
    folder.rename(tree / "results/next")  # it may not have its name yet
    assert (tree / "results/next/file").read_text() == "from the base"
    assert (tree / "results/next/more").read_text() == "new"
    assert os.getxattr(tree / "results/next", "user.zfsfs.dataset") == b"result/next"
    folder = build(tree, "empty")
    assert os.listdir(folder) == []
    assert int(os.getxattr(folder, "user.zfsfs.used")) >= 0
    folder.rmdir()
    assert set(tree.status()["ready"]) < kept
    (tree / "results/next").rmdir()
    (tree / "results/base").rmdir()
    tree.closed()


def test_a_failed_build_leaves_nothing(tree):
    folder = build(tree, "bad", file="x")
    (folder / "sub").mkdir()
    subprocess.run(["rm", "-rf", folder], check=True)
    assert os.listdir(tree / "builds") == os.listdir(tree / "results") == []
    build(tree, "bad", file="again").rmdir()
    assert not (tree / "results/bad").exists()


def test_the_root_of_a_build_belongs_to_its_maker_with_the_mode_asked_for(tree):
    os.mkdir(tree / "builds/mine", 0o750)
    st = os.stat(tree / "builds/mine")
    assert (st.st_uid, st.st_mode & 0o7777) == (os.getuid(), 0o750)
    os.rmdir(tree / "builds/mine")


def test_an_id_is_taken_while_it_is_built_and_for_ever_after(tree):
    folder = build(tree, "id")
    with failing(errno.EEXIST):
        build(tree, "id")
    folder.rename(tree / "results/id")
    with failing(errno.EEXIST):
        build(tree, "id")


def test_no_such_base_and_a_base_that_is_still_built_are_missing(tree):
    with failing(errno.ENOENT):
        build(tree, "x@nothing")
    running = build(tree, "running")
    with failing(errno.ENOENT):
        build(tree, "x@running")
    running.rmdir()


def test_publishing_under_another_id_is_refused(tree):
    folder = build(tree, "one")
    with failing(errno.EINVAL):
        os.rename(folder, tree / "results/two")
    folder.rmdir()


def test_publishing_waits_for_no_writer_but_says_busy(tree):
    folder = build(tree, "one")
    with open(folder / "file", "w") as file:
        file.write("x")
        file.flush()
        with failing(errno.EBUSY):
            os.rename(folder, tree / "results/one")
    os.rename(folder, tree / "results/one")
    assert (tree / "results/one/file").read_text() == "x"


def test_a_result_that_others_are_based_on_stays(tree):
    build(tree, "base").rename(tree / "results/base")
    build(tree, "next@base").rename(tree / "results/next")
    with failing(errno.EBUSY):
        os.rmdir(tree / "results/base")
    os.rmdir(tree / "results/next")
    os.rmdir(tree / "results/base")
    assert os.listdir(tree / "results") == []


def test_results_outlive_the_daemon_and_left_overs_are_cleared(tree):
    build(tree, "kept", file="x").rename(tree / "results/kept")
    build(tree, "lost", file="x")
    tree.umount("--force")
    tree.mount()
    assert os.listdir(tree / "results") == ["kept"]
    assert (tree / "results/kept/file").read_text() == "x"
    build(tree, "lost").rmdir()


def test_moving_between_builds_is_between_filesystems(tree):
    one, two = build(tree, "one", file="x"), build(tree, "two")
    with failing(errno.EXDEV):
        os.rename(one / "file", two / "file")
    with failing(errno.EXDEV):
        os.link(one / "file", two / "file")
    subprocess.run(["mv", one / "file", two / "file"], check=True)
    assert (two / "file").read_text() == "x"
    subprocess.run(["rm", "-r", one, two], check=True)


@pytest.mark.parametrize("name", [b"a b?", b"a%b", "ä".encode(), b"new\nline", b"\xff\xfe", b"x@", b"@x", b"a@b@c"])
def test_names_that_no_dataset_can_have_are_invalid(tree, name):
    with failing(errno.EINVAL):
        os.mkdir(os.fsencode(tree / "builds") + b"/" + name)


def test_names_that_are_too_long_say_so(tree):
    for length in (255, 256) if os.environ.get("ZFSFS_TEST_POOL") else (256,):
        with failing(errno.ENAMETOOLONG):
            os.mkdir(tree / "builds" / ("x" * length))
    assert BuildId(b"-r")  # nothing here reads a name as an option
    os.mkdir(tree / "builds/-r")
    os.rmdir(tree / "builds/-r")


def test_only_builds_and_caches_can_be_made(tree):
    with failing(errno.EPERM):
        os.mkdir(tree / "results/x")
    with failing(errno.EPERM):
        os.mkdir(tree / "x")
    with failing(errno.EPERM):
        (tree / "builds/file").write_text("x")
    with failing(errno.EPERM):
        os.rename(tree / "builds", tree / "other")


def test_many_begin_and_publish_at_once_by_whole_paths_and_in_the_group_itself(tree):
    def work(number: int) -> None:
        build(tree, f"b{number}", file=str(number)).rename(tree / f"results/b{number}")

    script = "for n in 1 2 3; do mkdir $1$n && echo $n >$1$n/file && mv $1$n ../results/ || exit; done"
    shells = [subprocess.Popen(["sh", "-c", script, "sh", each], cwd=tree / "builds") for each in "xy"]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(16)))
    assert [shell.wait() for shell in shells] == [0, 0]
    there = [f"b{number}" for number in range(16)] + ["x1", "x2", "x3", "y1", "y2", "y3"]
    assert sorted(os.listdir(tree / "results")) == sorted(there)
    assert os.listdir(tree / "builds") == []
    assert (tree / "results/b7/file").read_text() == "7"


def test_of_two_who_begin_a_build_at_once_one_does(tree):
    def work(number: int) -> str:
        try:
            (tree / "builds/one").mkdir()
        except FileExistsError:
            return "taken"
        return "begun"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == ["begun", "taken", "taken", "taken"]
    (tree / "builds/one").rmdir()


def test_of_two_who_publish_a_build_at_once_one_does(tree):
    build(tree, "one")

    def work(number: int) -> str:
        try:
            (tree / "builds/one").rename(tree / "results/one")
        except FileNotFoundError:
            return "not there"
        return "published"

    with ThreadPoolExecutor(4) as pool:
        assert sorted(pool.map(work, range(4))) == ["not there", "not there", "not there", "published"]

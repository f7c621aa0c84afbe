"""Caches by path: open is clone, close is release; the first to close wins."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from errnos import failing
from mapping import mapped
from mounted_tree import GATHERS, held, until


def test_what_was_written_is_published_when_the_last_user_closes(tree, cache):
    (cache / "file").write_text("second")
    assert tree.outcome("c") == "published"
    assert (cache / "file").read_text() == "second"
    assert os.getxattr(cache, "user.zfsfs.generation") == b"2"


def test_a_session_that_only_reads_is_unchanged(tree, cache):
    assert (cache / "file").read_text() == "first"
    assert tree.outcome("c") == "unchanged"
    assert os.getxattr(cache, "user.zfsfs.generation") == b"1"


def test_a_session_that_only_reads_leaves_its_clone_to_the_next(tree, cache):
    datasets = []
    for label in "one", "two", "three":
        session = tree / f"caches/c@{label}"
        with held(session):
            datasets.append(os.getxattr(session, "user.zfsfs.dataset"))
            assert [(each, (session / each).read_text()) for each in os.listdir(session)] == [("file", "first")]
            if label == "three":
                (session / "file").write_text("third")
        assert tree.outcome(f"c@{label}") == ("published" if label == "three" else "unchanged")
    assert (cache / "file").read_text() == "third"
    if "ZFSFS_TEST_POOL" in os.environ:  # elsewhere a clone costs as much as its contents, and none is kept
        assert len(set(datasets)) == 1


def test_looking_opens_nothing(tree, cache):
    before = tree.events("opened")
    assert (cache / "file").stat().st_size == 5
    assert not (cache / "nothing").exists()
    assert tree.events("opened") == before


def test_the_first_to_close_is_published_and_the_other_superseded(tree, cache):
    one, two = tree / "caches/c@one", tree / "caches/c@two"
    with held(one):
        with held(two):
            (one / "mine").write_text("1")
            (two / "mine").write_text("2")
            assert not (cache / "mine").exists()
            assert (one / "mine").read_text() == "1"
        assert tree.outcome("c@two") == "published"
        assert (one / "mine").read_text() == "1"  # its own contents to its end
        assert (cache / "mine").read_text() == "2"
        tree.closed(1)
    assert tree.outcome("c@one") == "superseded"
    assert (one / "mine").read_text() == "2"


def test_the_kernel_forgets_what_another_session_has_replaced(tree, cache):
    with held(tree / "caches/c@x"):
        (tree / "caches/c@x/file").write_text("newer and longer")
        (tree / "caches/c@x/added").write_text("")
        assert (cache / "file").stat().st_size == 5
        assert not (cache / "added").exists()
    assert tree.outcome("c@x") == "published"
    assert (cache / "added").exists()
    assert (cache / "file").stat().st_size == 16
    assert (cache / "file").read_text() == "newer and longer"


def test_a_session_after_one_that_only_read_an_older_version_shows_the_newest(tree, cache):
    reader = tree / "caches/c@reader"
    with held(reader):
        assert (reader / "file").read_text() == "first"
        assert not (reader / "added").exists()
        with held(cache):
            (cache / "file").write_text("later")
            (cache / "added").write_text("")
        assert tree.outcome("c") == "published"
        assert (reader / "file").read_text() == "first"
    assert tree.outcome("c@reader") == "unchanged"
    with held(reader):
        assert (reader / "file").read_text() == "later"
        assert sorted(os.listdir(reader)) == ["added", "file"]
        assert (reader / "added").exists()


def test_a_removed_session_goes_nowhere(tree, cache):
    mine = tree / "caches/c@mine"
    with held(mine):
        (mine / "file").write_text("worse")
    subprocess.run(["rm", "-rf", mine], check=True)
    assert tree.outcome("c@mine") in ("discarded", "published")
    assert "c@mine" not in os.listdir(tree / "caches")


def test_rmdir_of_a_session_with_changes_discards_them(tree, cache):
    mine = tree / "caches/c@mine"
    with held(mine):
        (mine / "file").write_text("worse")
        os.rmdir(mine)
    assert tree.outcome("c@mine") == "discarded"
    assert (cache / "file").read_text() == "first"


def test_a_removed_session_is_listed_no_more_and_its_name_is_free(tree, cache):
    mine = tree / "caches/c@mine"
    with held(mine):
        os.rmdir(mine)
        assert os.listdir(tree / "caches") == ["c"]
        with held(mine):
            (mine / "file").write_text("another")
            assert sorted(os.listdir(tree / "caches")) == ["c", "c@mine"]
        until(lambda: "c@mine is published" in tree.events("released"))
    tree.closed()
    assert tree.events("released")[-1] == "c@mine is discarded"
    assert (cache / "file").read_text() == "another"


def test_a_cache_is_deleted_when_no_session_of_it_is_held(tree, cache):
    with held(tree / "caches/c@x"), failing(errno.EBUSY):
        os.rmdir(cache)
    os.rmdir(cache)
    assert os.listdir(tree / "caches") == []
    until(lambda: not os.path.exists(tree / "caches/c@x"))


@pytest.mark.parametrize(("name", "verb"), [("c", "rename"), ("c@x", "info")])
def test_what_can_not_be_removed_shows_nothing_of_the_session_that_was_to_go(unmounted, tmp_path, name, verb):
    tree, session, broken = unmounted, unmounted / "caches" / name, tmp_path / "broken"
    tree.mount_changed("broken", tmp_path, "--linger", "30")
    os.mkdir(tree / "caches/c")
    (session / "file").write_text("of a session that nobody holds")
    assert (session / "file").exists()
    broken.write_text(verb)
    with failing(errno.EIO):
        os.rmdir(session)
    broken.unlink()
    until(lambda: not (session / "file").exists())
    assert os.listdir(session) == []
    (session / "file").write_text("another")
    tree.umount()
    tree.mount()
    assert (tree / "caches/c/file").read_text() == "another"


def test_a_working_directory_holds_a_session_and_a_crash_of_its_process_closes_it(tree, cache):
    script = (
        "import os; os.chdir('caches/c@job'); open('file', 'w').write('by the job'); print('x', flush=True); input()"
    )
    job = subprocess.Popen(
        [sys.executable, "-c", script], cwd=tree.path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert job.stdout is not None
    assert job.stdin is not None
    job.stdout.read(2)  # to the end of the line: unbuffered, it is written in two pieces
    job.stdout.close()
    until_held(tree, "c@job", f"(pid {job.pid})")
    job.send_signal(signal.SIGKILL)
    job.wait()
    job.stdin.close()
    assert tree.outcome("c@job") == "published"
    assert (cache / "file").read_text() == "by the job"


def test_who_has_gone_is_not_named_as_who_holds_a_session(tree, cache):
    job = subprocess.Popen(["sh", "-c", "cd caches/c@job && ls && read x"], cwd=tree.path, stdin=subprocess.PIPE)
    until(lambda: tree.status()["sessions"])
    until_held(tree, "c@job", f"(pid {job.pid})")
    with held(tree / "caches/c@job"):
        job.communicate()
        until(lambda: [(each["open"], each["holders"]) for each in tree.status()["sessions"]] == [(1, [])])
    tree.closed()


@pytest.mark.skipif(GATHERS, reason="a mapping keeps its file open")
def test_a_mapping_keeps_a_session_open_whose_file_was_closed_and_what_it_writes_is_published(tree, cache):
    with mapped(cache / "file") as memory:
        until_held(tree, "c", "mapped")
        with failing(errno.EBUSY):
            cache.rmdir()
        memory[0:5] = b"later"
    assert tree.outcome("c") == "published"
    assert (cache / "file").read_text() == "later"


def test_and_so_is_what_it_has_written_in_a_file_that_was_opened_again_afterwards(tree, cache):
    with held(cache):
        time.sleep(0.2)  # what was changed less than that ago counts as changed anyway
        with mapped(cache / "file") as memory:
            time.sleep(0.2)
            memory[0:1] = b"F"
        time.sleep(0.2)
        with open(cache / "file", "r+"):
            pass
    assert tree.outcome("c") == "published"
    assert (cache / "file").read_text() == "First"


def until_held(tree, name, who):
    """Wait until the daemon has seen who holds a session."""

    def seen() -> bool:
        found = [each for each in tree.status()["sessions"] if each["name"] == name]
        assert found
        return any(who in " ".join(each["holders"]) for each in found)

    until(seen)


@pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts need root")
def test_a_bind_mount_in_another_namespace_holds_a_session(tree, cache, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    script = f"mount --bind '{tree.path}/caches/c@box' '{target}' && echo in > '{target}/file' && echo x && read x"
    box = subprocess.Popen(["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert box.stdout is not None
    assert box.stdin is not None
    box.stdout.read(1)
    box.stdout.close()
    until_held(tree, "c@box", f"mount at {target} of")
    box.stdin.close()
    box.wait()
    assert tree.outcome("c@box") == "published"
    assert (cache / "file").read_text() == "in\n"


@pytest.mark.parametrize("name", [b"a b", b"%2", b"-r", "ä\n".encode(), b"\xff\xfe", b"x" * 60])
def test_any_file_name_is_a_cache_name(tree, name):
    path = os.fsencode(tree / "caches") + b"/" + name
    os.mkdir(path)
    with open(path + b"/file", "w") as file:
        file.write("x")
    tree.closed()
    assert os.listdir(os.fsencode(tree / "caches")) == [name]
    assert os.listdir(path) == [b"file"]
    tree.closed()


def test_names_without_a_cache_or_label_are_refused(tree):
    with failing(errno.EINVAL):
        os.mkdir(tree / "caches/x@")
    with failing(errno.ENOENT):
        os.mkdir(tree / "caches/nothing@label")
    with failing(errno.ENAMETOOLONG):
        os.mkdir(tree / "caches" / ("x" * (255 if os.environ.get("ZFSFS_TEST_POOL") else 256)))


def test_what_is_in_use_at_the_end_is_published(tree, cache):
    with held(tree / "caches/c@last"):
        (tree / "caches/c@last/file").write_text("at the end")
        tree.umount("--force")
    tree.mount()
    assert (cache / "file").read_text() == "at the end"


def test_a_killed_daemon_loses_no_cache_and_its_mount_is_cleaned_up(tree, cache):
    with held(tree / "caches/c@x"):
        (tree / "caches/c@x/file").write_text("not published")
        os.kill(tree.pid, signal.SIGKILL)
        tree.mount()  # at once, whatever is still to be done until the other is gone
    assert (cache / "file").read_text() == "first"
    assert os.listdir(tree / "caches") == ["c"]


def test_a_cache_that_is_opened_again_has_a_clone_ready(unmounted, tmp_path):
    tree, cache = unmounted, unmounted / "caches/c"
    tree.mount_changed("spares", tmp_path)
    cache.mkdir()
    (cache / "file").write_text("first")

    def ready():
        return tree.status()["caches"][0]["ready"]

    for text in ("second", "third"):
        (clone,) = until(ready)
        with held(tree / "caches/c@next"):
            assert os.getxattr(tree / "caches/c@next", "user.zfsfs.dataset") == clone.encode()
            (tree / "caches/c@next/file").write_text(text)
        assert tree.outcome("c@next") == "published"
        assert (cache / "file").read_text() == text
    until(ready)
    assert tree.status()["sessions"] == []
    cache.rmdir()
    tree.closed()

"""Failed builds that are kept: builds/.failed/ID."""

from __future__ import annotations

import errno
import json
import os
import subprocess

import pytest
from as_user import as_user
from errnos import failing
from mounted_tree import until, zfsfs

ANN, BOB = 1234, 1235


@pytest.fixture
def keeping(unmounted, folder):
    config = folder / "config.toml"
    config.write_text("""
        [builder.sh]
        command = ["sh", "-c", "echo what is wrong; echo half > file; exit 7"]
    """)
    unmounted.mount(0.1, "--config", str(config), "--keep-failed", "2/1d")
    return unmounted


def fail(tree, name: str) -> None:
    ident = name.partition("+")[2].partition("@")[0]
    (tree / "builds" / name).mkdir()
    (tree / ".zfsfs/wait" / ident).read_bytes()


def publish_base(tree) -> None:
    (tree / "builds/base").mkdir()
    (tree / "builds/base").rename(tree / "results/base")


def attribute(path, name: str) -> str:
    return os.getxattr(path, f"user.zfsfs.{name}").decode()


def test_a_failed_build_is_kept_as_it_was(keeping):
    fail(keeping, "sh+one")
    kept = keeping / "builds/.failed/one"
    assert (kept / "file").read_text() == "half\n"
    assert (attribute(kept, "state"), attribute(kept, "exit"), attribute(kept, "signal")) == ("failed", "7", "")
    assert attribute(kept, "log") == "what is wrong\n"
    assert keeping.status()["failed"][0]["exit"] == 7
    assert os.listdir(keeping / "results") == []
    assert os.listdir(keeping / "builds") == [".failed"]
    with failing(errno.EROFS):
        (kept / "file").write_text("x")
    with failing(errno.ENOENT):
        (keeping / "builds/next@one").mkdir()
    with failing(errno.EPERM):
        kept.rename(keeping / "results/one")
    kept.rmdir()
    assert os.listdir(keeping / "builds/.failed") == []
    assert keeping.status()["failed"] == []


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")
def test_what_a_failed_build_printed_is_for_root_and_who_made_it(keeping):
    made = keeping / "builds/sh+one"
    assert as_user(ANN, made.mkdir) == ""
    (keeping / ".zfsfs/wait/one").read_bytes()
    (failed,) = keeping.status()["failed"]
    assert failed["exit"] == 7
    assert "what is wrong" not in json.dumps(failed)
    kept = keeping / "builds/.failed/one"
    assert attribute(kept, "log") == "what is wrong\n"

    def sees(listed: bool) -> None:
        assert ("user.zfsfs.log" in os.listxattr(kept)) is listed
        assert attribute(kept, "exit") == "7"

    assert as_user(ANN, lambda: sees(listed=True)) == as_user(BOB, lambda: sees(listed=False)) == ""
    assert as_user(ANN, lambda: attribute(kept, "log")) == ""
    assert as_user(BOB, lambda: attribute(kept, "log")) == "EACCES"


def test_a_failed_build_has_its_log_when_its_id_is_built_again(keeping):
    fail(keeping, "sh+one")
    (keeping / "builds/one").mkdir()
    assert os.listdir(keeping / ".zfsfs/log") == []
    (keeping / "builds/one").rename(keeping / "results/one")
    assert os.listdir(keeping / ".zfsfs/log") == []  # the result has none
    keeping.umount()
    keeping.mount(0.1, "--keep-failed", "5")
    assert attribute(keeping / "builds/.failed/one", "log") == "what is wrong\n"


def test_a_failed_build_is_opened_again_and_published(keeping):
    fail(keeping, "sh+one")
    build = keeping / "builds/one"
    with failing(errno.EINVAL):
        (keeping / "builds/.failed/one").rename(keeping / "builds/two")
    (keeping / "builds/.failed/one").rename(build)
    (build / "file").write_text("whole\n")
    build.rename(keeping / "results/one")
    assert (keeping / "results/one/file").read_text() == "whole\n"
    assert (keeping / ".zfsfs/log/one").read_text() == "what is wrong\n"
    assert os.listdir(keeping / "builds/.failed") == []


def test_no_more_are_kept_than_asked_for_and_the_oldest_go(keeping):
    for number in range(4):
        fail(keeping, f"sh+b{number}")
    until(lambda: sorted(os.listdir(keeping / "builds/.failed")) == ["b2", "b3"])


def test_the_newest_failure_of_an_id_is_kept(keeping):
    fail(keeping, "sh+one")
    fail(keeping, "sh+one")
    assert os.listdir(keeping / "builds/.failed") == ["one"]
    assert len(keeping.status()["failed"]) == 1


def test_failed_builds_outlive_the_daemon_and_go_with_their_base(keeping):
    publish_base(keeping)
    fail(keeping, "sh+one@base")
    keeping.umount()
    keeping.mount(0.1, "--keep-failed", "5")
    assert attribute(keeping / "builds/.failed/one", "exit") == "7"
    assert attribute(keeping / "builds/.failed/one", "base") == "base"
    assert (keeping / ".zfsfs/log/one").read_text() == "what is wrong\n"
    kept = keeping / "builds/.failed/one"
    inside = os.open(kept, os.O_PATH)
    with open(kept / "file") as file:
        (keeping / "results/base").rmdir()
        assert os.listdir(keeping / "builds/.failed") == []
        assert not kept.exists()
        # What is open goes on working, as in a removed directory.
        assert file.read() == "half\n"
    keeping.closed()
    with failing(errno.ESTALE):
        os.listdir(f"/proc/self/fd/{inside}")
    os.close(inside)


def test_failed_builds_that_nobody_has_looked_into_go_with_their_base(keeping):
    publish_base(keeping)
    for ident in ("one", "two"):
        fail(keeping, f"sh+{ident}@base")
    assert os.listdir(keeping / "builds/.failed/one") == ["file"]
    os.chdir(keeping / "results")  # so nothing is looked up between the two requests of the rmdir
    try:
        os.rmdir("base")
    finally:
        os.chdir("/")
    until(lambda: not (keeping / "builds/.failed/one").exists())
    assert not (keeping / "builds/.failed/two").exists()
    keeping.closed()
    publish_base(keeping)
    fail(keeping, "sh+one@base")
    assert (keeping / "builds/.failed/one/file").read_text() == "half\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="makes it native")
def test_a_base_stays_while_a_failed_build_on_it_is_native(keeping, tmp_path):
    publish_base(keeping)
    fail(keeping, "sh+one@base")
    kept, target = keeping / "builds/.failed/one", tmp_path / "target"
    target.mkdir()
    zfsfs("bind", kept, target)
    with failing(errno.EBUSY):
        (keeping / "results/base").rmdir()
    assert (target / "file").read_text() == (kept / "file").read_text() == "half\n"
    subprocess.run(["umount", target], check=True)
    (keeping / "results/base").rmdir()
    assert not kept.exists()
    keeping.closed()


def test_failed_builds_stay_as_they_were_when_their_base_can_not_be_deleted(unmounted, folder):
    (folder / "config.toml").write_text('[builder.sh]\ncommand = ["sh", "-c", "echo half > file; exit 7"]\n')
    unmounted.mount_changed("broken", folder, "--config", folder / "config.toml", "--keep-failed", "2/1d")
    publish_base(unmounted)
    fail(unmounted, "sh+one@base")
    kept = unmounted / "builds/.failed/one"
    assert os.listdir(kept) == ["file"]
    (folder / "broken").write_text("rename")
    with failing(errno.EIO):
        (unmounted / "results/base").rmdir()
    assert (kept / "file").read_text() == "half\n"
    (folder / "broken").unlink()
    (unmounted / "results/base").rmdir()
    assert not kept.exists()
    unmounted.closed()


def test_a_person_keeps_a_failed_build(tree):
    (tree / "builds/mine").mkdir()
    (tree / "builds/mine/file").write_text("x")
    with failing(errno.EINVAL):
        (tree / "builds/mine").rename(tree / "builds/.failed/other")
    (tree / "builds/mine").rename(tree / "builds/.failed/mine")
    until(lambda: os.listdir(tree / "builds/.failed") == [])  # none is kept here
    assert os.listdir(tree / "builds") == []


def test_failed_builds_that_are_too_old_go_at_the_next_start(keeping):
    fail(keeping, "sh+one")
    keeping.umount()
    keeping.mount(0.1, "--keep-failed", "5/1d")
    assert os.listdir(keeping / "builds/.failed") == ["one"]
    keeping.umount()
    keeping.mount(0.1, "--keep-failed", "5/0s")
    until(lambda: os.listdir(keeping / "builds/.failed") == [])

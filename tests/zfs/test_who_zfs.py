"""Who holds a dataset, by path: zfs holds, sends, clones and native mounts."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mounted_tree import Mounted, until, zfsfs


def zfs(*arguments: str) -> str:
    return subprocess.run(["zfs", *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def tree(pool: str, tmp_path: Path) -> Iterator[Mounted]:
    tree = Mounted(pool, tmp_path)
    tree.mount()
    yield tree
    tree.umount("--force")


def test_a_result_that_others_hold_is_deleted_and_goes_when_they_let_go(
    tree: Mounted, pool: str, tmp_path: Path
) -> None:
    (tree / "builds/b").mkdir()
    (tree / "builds/b/file").write_bytes(os.urandom(1 << 20))
    os.rename(tree / "builds/b", tree / "results/b")
    snapshot = f"{pool}/result/b@snap"
    zfs("hold", "backup", snapshot)
    zfs("clone", "-o", "mountpoint=none", snapshot, f"{pool}/elsewhere")
    target = tmp_path / "native"
    target.mkdir()
    subprocess.run(["mount", "-t", "zfs", "-o", "ro", snapshot, target], check=True)
    with subprocess.Popen(["zfs", "send", snapshot], stdout=subprocess.PIPE) as send:
        assert send.stdout is not None
        send.stdout.read(1)
        with open(target / "file"):
            told = json.loads(zfsfs("who", "--json", tree / "results/b").stdout)
            found = {each["what"]: each for each in told}
            assert found["native mount"]["at"] == str(target)
            assert found["open file"]["pid"] == os.getpid()
            assert found["zfs send"]["pid"] == send.pid
            assert found["hold"]["name"] == "backup"
            assert found["clone"]["name"] == f"{pool}/elsewhere"
            assert zfsfs("who", f"{pool}/result/b").stdout.count("\n") == len(told)
            os.rmdir(tree / "results/b")
            (event,) = until(lambda: tree.events("postponed"))
            for part in (
                "native mount",
                f"zfs send by zfs (pid {send.pid})",
                "hold backup",
                f"clone {pool}/elsewhere",
            ):
                assert part in event
            (waiting,) = tree.status()["waiting"]
            assert "hold backup" in zfsfs("who", f"{pool}/{waiting['dataset']}").stdout
        send.kill()
    subprocess.run(["umount", target], check=True)
    zfs("destroy", f"{pool}/elsewhere")
    tree.umount()
    tree.mount()
    assert [each["dataset"] for each in tree.status()["waiting"]] == [waiting["dataset"]]
    zfs("release", "backup", f"{pool}/{waiting['dataset']}@snap")
    tree.umount()
    tree.mount()
    tree.closed()


def test_a_send_delays_a_release_and_is_named(tree: Mounted, pool: str) -> None:
    cache = tree / "caches/c"
    cache.mkdir()
    (cache / "file").write_bytes(os.urandom(1 << 20))
    assert tree.outcome("c") == "published"
    with subprocess.Popen(["zfs", "send", f"{pool}/cache/c-c@snap"], stdout=subprocess.PIPE) as send:
        assert send.stdout is not None
        send.stdout.read(1)
        (cache / "more").write_text("more")
        (event,) = until(lambda: tree.events("warning"))
        assert "can't be closed yet" in event
        assert f"zfs send by zfs (pid {send.pid})" in event
        # Nobody else is held up, and what was written is there.
        assert (cache / "more").read_text() == "more"
        (tree / "builds/b").mkdir()
        os.rmdir(tree / "builds/b")
        # Not even the end is: the next mount completes it.
        tree.umount("--force")
        send.kill()
    tree.mount()
    assert (cache / "more").read_text() == "more"
    tree.closed()

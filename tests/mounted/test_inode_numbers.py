"""The inode numbers that stat shows: one for each file of the tree, and the same whenever somebody looks.

git reads every file again whose number is another than it was.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from mounted_tree import Mounted

WHAT = ["file", "folder", "folder/link", "folder/other"]


def fill(build: Path) -> None:
    os.mkdir(build)
    (build / "file").write_text("contents")
    os.mkdir(build / "folder")
    os.symlink("../file", build / "folder/link")
    os.link(build / "file", build / "folder/other")


def numbers(build: Path) -> dict[str, int]:
    return {name: os.lstat(build / name).st_ino for name in WHAT}


def forget_all() -> None:
    """What is cached of names and inodes goes."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


def publish(tree: Mounted, build: str, ident: str) -> Path:
    os.rename(tree / f"builds/{build}", tree / f"results/{ident}")
    return tree / f"results/{ident}"


@pytest.mark.skipif(os.geteuid() != 0, reason="has the kernel forget")
def test_a_number_stays_when_the_kernel_has_forgotten_the_file(tree):
    fill(tree / "builds/a")
    before = numbers(tree / "builds/a")
    for _ in range(2):
        forget_all()
        assert numbers(tree / "builds/a") == before
    listed = {each.name: each.inode() for each in os.scandir(tree / "builds/a/folder")}
    assert listed == {"link": before["folder/link"], "other": before["file"]}
    assert numbers(publish(tree, "a", "a")) == before


def test_no_two_files_of_the_tree_have_one_number(tree):
    fill(tree / "builds/a")
    base = publish(tree, "a", "a")
    os.mkdir(tree / "builds/b@a")
    os.mkdir(tree / "builds/c@a")
    found = [numbers(each) for each in (base, tree / "builds/b@a", tree / "builds/c@a")]
    assert [each["file"] == each["folder/other"] for each in found] == [True] * 3
    assert len({number for each in found for number in each.values()}) == 9
    subprocess.run(["cp", base / "file", tree / "builds/b@a/file"], check=True)  # not "the same file"
    subprocess.run(["rm", "-r", tree / "builds/b@a", tree / "builds/c@a"], check=True)

"""A disk that fails for a while: what could not be given up then is given up as soon as it works again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from errnos import errno_of, failing
from mounted_tree import Mounted, until


@pytest.fixture
def tree(unmounted: Mounted, folder: Path) -> Mounted:
    config = folder / "config.toml"
    config.write_text('[builder.sh]\ncommand = ["sh", "-c", "echo x; exec sleep 1000"]\nkill-grace = "1s"\n')
    unmounted.mount_changed("broken", folder, "--config", config)
    return unmounted


@contextmanager
def broken(folder: Path, *verbs: str) -> Iterator[None]:
    (folder / "broken").write_text(" ".join(verbs))
    yield
    (folder / "broken").unlink()


def in_time(verb: Callable[[], object]) -> None:
    """What is refused for a while."""
    until(lambda: errno_of(verb) == 0)


def warned(tree: Mounted, text: str) -> None:
    until(lambda: any(text in each for each in tree.events("warning")))


def test_a_cancelled_build(tree: Mounted, folder: Path) -> None:
    (tree / "builds/sh+one").mkdir()
    until((tree / ".zfsfs/log/one").read_text)
    with broken(folder, "rename"):
        (tree / "builds/sh+one").rmdir()
        warned(tree, "build one can't be discarded yet: ")
        with failing(errno.EEXIST):
            (tree / "builds/one").mkdir()
    assert json.loads((tree / ".zfsfs/wait/one").read_bytes())["outcome"] == "cancelled"
    in_time(lambda: (tree / "builds/one").mkdir())
    (tree / "builds/one").rmdir()
    tree.closed()


def test_a_cancelled_build_at_the_daemons_end(tree: Mounted, folder: Path) -> None:
    (tree / "builds/sh+one").mkdir()
    until((tree / ".zfsfs/log/one").read_text)
    with broken(folder, "rename"):
        (tree / "builds/sh+one").rmdir()
        warned(tree, "build one can't be discarded yet: ")
        tree.umount("--force")
    tree.mount()
    (tree / "builds/one").mkdir()
    (tree / "builds/one").rmdir()


def test_a_build_that_could_not_be_started(tree: Mounted, folder: Path) -> None:
    with broken(folder, "rename", "info"):
        with failing(errno.EEXIST):  # the second request of the same mkdir: it is there, and can't be given up
            (tree / "builds/sh+one").mkdir()
        warned(tree, "build one, which could not be started, can't be discarded yet: ")
    in_time(lambda: (tree / "builds/one").mkdir())
    (tree / "builds/one").rmdir()


def test_a_session_that_could_not_be_opened(tree: Mounted, folder: Path) -> None:
    (tree / "caches/c").mkdir()
    with broken(folder, "view", "info"):
        with failing(errno.EIO):
            os.listdir(tree / "caches/c")
        warned(tree, "c, which could not be opened, can't be discarded yet: ")
    in_time(lambda: (tree / "caches/c").rmdir())
    tree.closed()


def test_a_session_that_was_removed(tree: Mounted, folder: Path) -> None:
    (tree / "caches/c").mkdir()
    (tree / "caches/c@x/folder").mkdir()
    with broken(folder, "info"), failing(errno.EIO):
        (tree / "caches/c@x").rmdir()
    assert tree.outcome("c@x") == "discarded"
    tree.closed()
    assert os.listdir(tree / "caches/c@x") == []

"""One request that has to wait for a disk holds up no other: the disk waits until the test lets it go on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from errnos import failing
from mounted_tree import Mounted, checked
from slow_disk import SlowDisk, slow_disk

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or "ZFSFS_TEST_POOL" in os.environ, reason="makes a disk, and puts a directory store on it"
)


class Slow:
    """A tree on a slow disk, with a result to start builds on: what they begin with, nobody has looked at."""

    def __init__(self, disk: SlowDisk, tree: Mounted) -> None:
        self.disk = disk
        self.tree = tree
        base = tree / "builds/base"
        for name in ("near", "far"):
            (base / name).mkdir(parents=True)
            (base / name / "file").write_text(name)
            (base / name / "other").write_text(name)
        os.rename(base, tree / "results/base")

    def build(self, name: str) -> Path:
        build = self.tree / "builds" / f"{name}@base"
        build.mkdir()
        return build


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slow]:
    folder = tmp_path_factory.mktemp("slow")
    with ExitStack() as stack:
        disk = stack.enter_context(slow_disk(folder))
        tree = stack.enter_context(checked(str(disk.path / "store"), folder))
        tree.mount()
        stack.callback(tree.umount, "--force")
        yield Slow(disk, tree)


def forget_all() -> None:
    """What is cached of names, inodes and directories goes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def look_around(build: Path) -> None:
    """What others ask for meanwhile, all of it in memory."""
    near = build / "near"
    assert sorted(os.listdir(near)) == ["file", "other"]
    assert (near / "file").read_text() == "near"
    getattr_(near)
    getxattr(near)


def getattr_(folder: Path) -> None:
    subprocess.run(["stat", "--cached=never", folder / "file"], check=True, stdout=subprocess.DEVNULL)


def getxattr(folder: Path) -> None:
    with failing(errno.ENODATA):
        os.getxattr(folder / "file", "user.nothing")


def rename_over(folder: Path) -> None:
    os.rename(folder / "file", folder / "other")
    assert (folder / "other").stat().st_size == 3


def fsync(folder: Path) -> None:
    with open(folder / "new", "w") as file:
        file.write("new")
        file.flush()
        os.fsync(file.fileno())


OPERATIONS: dict[str, Callable[[Path], object]] = {
    "lookup": lambda folder: (folder / "never looked for").exists(),
    "getattr": getattr_,
    "getxattr": getxattr,
    "chmod": lambda folder: os.chmod(folder / "file", 0o600),
    "truncate": lambda folder: os.truncate(folder / "file", 1),
    "readdir": lambda folder: os.listdir(folder),
    "read": lambda folder: (folder / "file").read_text(),
    "write": lambda folder: (folder / "file").write_text("other"),
    "create": lambda folder: (folder / "new").write_text("new"),
    "mkdir": lambda folder: (folder / "new").mkdir(),
    "symlink": lambda folder: (folder / "new").symlink_to("file"),
    "link": lambda folder: os.link(folder / "file", folder / "new"),
    "unlink": lambda folder: (folder / "file").unlink(),
    "rename": lambda folder: os.rename(folder / "file", folder / "new"),
    "rename over": rename_over,
    "fsync": fsync,
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_others_are_answered_while_one_waits(slow, operation):
    build = slow.build(operation.replace(" ", "-"))
    with ExitStack() as stack:
        for each in ("far", "far/file", "far/other"):
            # The kernel goes on knowing it, so that we are asked for the operation at once.
            stack.callback(os.close, os.open(build / each, os.O_PATH))
        forget_all()
        look_around(build)
        pool = stack.enter_context(ThreadPoolExecutor(2))
        with slow.disk.shut():
            waiting = pool.submit(OPERATIONS[operation], build / "far")
            assert slow.disk.said() == "waits"
            pool.submit(look_around, build).result(timeout=20)
            assert not waiting.done()
        waiting.result(timeout=20)
    shutil.rmtree(build)

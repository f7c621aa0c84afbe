"""The rows of scripts/bench: what is prepared, what is timed, in a directory of its own each time.

"cold": the kernel has dropped the names and inodes that it had cached (echo 2 >/proc/sys/vm/drop_caches), of every
filesystem alike; what lies in the page cache stays there. "warm": the same work was done a moment before.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sizes:
    """How much is done: `files` small ones, `megabytes` in a big one, `tree` files in a source tree."""

    files: int = 2000
    listed: int = 10_000
    megabytes: int = 1024
    tree: int = 10_000

    @staticmethod
    def quick() -> Sizes:
        return Sizes(files=300, listed=1000, megabytes=64, tree=1000)


@dataclass(frozen=True)
class Kit:
    """What rows work with: the load program and the tarballs."""

    sizes: Sizes
    load: Path
    tree: Path
    repository: Path
    program: Path

    def run(self, row: str, folder: Path, count: int, *more: object) -> float:
        """One of load.c's rows; microseconds for an operation."""
        command = [self.load, row, folder, count, *more]
        done = subprocess.run([str(each) for each in command], check=True, capture_output=True, text=True)
        return float(done.stdout) / 1000


def sh(command: list[object], folder: Path) -> float:
    """Run a tool; seconds."""
    # Not from here: the time of fork and of Python's own pipes is the same for all, and small.
    start = time.perf_counter()
    subprocess.run([str(each) for each in command], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def forget(folder: Path, what: str = "2") -> None:
    """Drop cached names and inodes, everywhere; with "3" pages, too. What is not on disk yet can't be dropped."""
    subprocess.run(["sync", "-f", folder], check=True)
    Path("/proc/sys/vm/drop_caches").write_text(what)


Row = Callable[[Kit, Path], float]


def micro(row: str, prepare: str = "", *, cold: bool = False, warm: bool = False, many: bool = False) -> Row:
    """A row of load.c: microseconds for an operation."""

    def work(kit: Kit, folder: Path) -> float:
        count = kit.sizes.listed if many else kit.sizes.files
        if prepare:
            kit.run(prepare, folder, count)
        if warm:
            kit.run(row, folder, count)
        if cold:
            forget(folder)
        return kit.run(row, folder, count)

    return work


def write_big(kit: Kit, folder: Path) -> float:
    subprocess.run(["sync", "-f", folder], check=True)
    return kit.run("write-big", folder, kit.sizes.megabytes)


def read_big(kit: Kit, folder: Path) -> float:
    kit.run("write-big", folder, kit.sizes.megabytes)
    kit.run("read-big", folder, kit.sizes.megabytes)
    return kit.run("read-big", folder, kit.sizes.megabytes)


def read_big_cold(kit: Kit, folder: Path) -> float:
    kit.run("write-big", folder, kit.sizes.megabytes)
    forget(folder, "3")
    return kit.run("read-big", folder, kit.sizes.megabytes)


def random_reads(kit: Kit, folder: Path) -> float:
    kit.run("write-big", folder, kit.sizes.megabytes)
    forget(folder, "3")
    return kit.run("random", folder, kit.sizes.files, kit.sizes.megabytes * 256)


def untar(kit: Kit, folder: Path) -> float:
    return sh(["tar", "-xf", kit.tree, "--no-same-owner"], folder)


def remove(kit: Kit, folder: Path) -> float:
    untar(kit, folder)
    return sh(["rm", "-r", "tree"], folder)


def git_status(kit: Kit, folder: Path) -> float:
    sh(["tar", "-xf", kit.repository, "--no-same-owner"], folder)
    sh(["git", "-c", "safe.directory=*", "status", "--short"], folder / "tree")  # refreshes the index
    forget(folder)
    return sh(["git", "-c", "safe.directory=*", "status", "--short"], folder / "tree")


def git_status_warm(kit: Kit, folder: Path) -> float:
    git_status(kit, folder)
    return sh(["git", "-c", "safe.directory=*", "status", "--short"], folder / "tree")


def make(kit: Kit, folder: Path) -> float:
    sh(["tar", "-xf", kit.program, "--no-same-owner"], folder)
    return sh(["make", "-s", "-j2", "-C", "program"], folder)


#: name: (unit, work). Units are for an operation, a MiB or the whole.
ROWS: dict[str, tuple[str, Row]] = {
    "create+write+close": ("us", micro("create")),
    "stat cold": ("us", micro("stat", "create", cold=True)),
    "stat warm": ("us", micro("stat", "create", warm=True)),
    "stat of nothing warm": ("us", micro("missing", warm=True)),
    "open+read+close cold": ("us", micro("read", "create", cold=True)),
    "open+read+close warm": ("us", micro("read", "create", warm=True)),
    "readdir+stat cold": ("us", micro("list", "create", cold=True, many=True)),
    "readdir+stat warm": ("us", micro("list", "create", warm=True, many=True)),
    "unlink": ("us", micro("unlink", "create")),
    "rename": ("us", micro("rename", "create")),
    "mkdir": ("us", micro("mkdir")),
    "4 processes": ("us", micro("four")),
    "write 1 GiB": ("us", write_big),
    "read 1 GiB warm": ("us", read_big),
    "read 1 GiB cold": ("us", read_big_cold),
    "random 4 KiB reads": ("us", random_reads),
    "tar x": ("s", untar),
    "rm -r": ("s", remove),
    "git status cold": ("s", git_status),
    "git status warm": ("s", git_status_warm),
    "make -j2": ("s", make),
}

"""What the daemon runs out of: a clear errno, a sentence in the events, nothing lost, and all is well afterwards."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from errnos import errno_of, failing
from mounted_tree import Mounted, until, zfsfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="limits another process")


@contextmanager
def limited(pid: int, which: int, limit: int) -> Iterator[None]:
    before = resource.prlimit(pid, which)
    resource.prlimit(pid, which, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, which, before)


def few_descriptors(tree: Mounted, more: int) -> AbstractContextManager[None]:
    """The daemon may have only so many descriptors more than it has."""
    highest = max(int(name) for name in os.listdir(f"/proc/{tree.pid}/fd"))
    return limited(tree.pid, resource.RLIMIT_NOFILE, highest + 1 + more)


def no_memory(tree: Mounted) -> AbstractContextManager[None]:
    """The daemon gets no more memory than it has, not even for a thread's stack."""
    pages = int(Path(f"/proc/{tree.pid}/statm").read_text().split()[0])
    return limited(tree.pid, resource.RLIMIT_AS, pages * resource.getpagesize())


def in_session(tree: Mounted) -> int:
    """A changed session of the cache c; returns what holds it."""
    (tree / "caches/c").mkdir()
    session = os.open(tree / "caches/c", os.O_RDONLY)
    (tree / "caches/c/file").write_text("of the session")
    return session


def open_until_refused(stack: ExitStack, path: object) -> int:
    """Open a file again and again; returns the errno at the end."""
    for _ in range(10_000):
        try:
            stack.callback(os.close, os.open(str(path), os.O_RDONLY))
        except OSError as failure:
            return failure.errno or 0
    return 0


def test_a_daemon_out_of_descriptors_says_so_and_loses_nothing(tree: Mounted) -> None:
    (tree / "builds/b").mkdir()
    (tree / "builds/b/file").write_text("contents")
    (tree / "builds/done").mkdir()
    (tree / "builds/done/file").write_text("done")
    with ExitStack() as stack:
        session = in_session(tree)
        with few_descriptors(tree, 20):
            assert open_until_refused(stack, tree / "builds/b/file") == errno.ENFILE
            with failing(errno.ENFILE):
                (tree / "builds/b/new").write_text("x")
            with failing(errno.ENFILE):
                os.mkdir(tree / "builds/another")
            assert "another" not in os.listdir(tree / "builds")
            # What needs none goes on.
            assert tree.status()["builds"]
            (told,) = tree.events("warning")
            assert "ulimit -n" in told
            os.close(session)
            stack.close()
            assert (tree / "builds/b/file").read_text() == "contents"
    assert tree.outcome("c") == "published"
    assert (tree / "caches/c/file").read_text() == "of the session"
    os.mkdir(tree / "builds/another")
    os.rmdir(tree / "builds/another")
    for name in ("b", "done"):
        os.rename(tree / "builds" / name, tree / "results" / name)
    assert (tree / "results/b/file").read_text() == "contents"


def keeps_a_native_mount(tree: Mounted, target: Path, stack: ExitStack) -> Callable[[], object]:
    """Something that is looked at again and again; returns what tells whether that was seen to fail."""
    (tree / "builds/x").mkdir()
    (tree / "builds/x").rename(tree / "results/x")
    target.mkdir()
    zfsfs("bind", tree / "results/x", target)
    stack.callback(lambda: until(lambda: not tree.status()["native"]))
    stack.callback(lambda: subprocess.run(["umount", target], check=True))
    return lambda: "a service begins anew" in tree.log.read_text()


def waits_to_be_destroyed(tree: Mounted, target: Path, stack: ExitStack) -> Callable[[], object]:
    """The same."""
    (tree / "builds/x").mkdir()
    (tree / "builds/x/file").touch()
    fd = os.open(tree / "builds/x/file", os.O_RDONLY)
    stack.callback(tree.closed)
    stack.callback(os.close, fd)
    (tree / "builds/x/file").unlink()
    (tree / "builds/x").rmdir()
    (waiting,) = until(lambda: tree.status()["waiting"])
    return lambda: tree.status()["waiting"][0]["tries"] > waiting["tries"] + 2


@pytest.mark.parametrize("looked_at", [keeps_a_native_mount, waits_to_be_destroyed])
def test_a_look_at_all_processes_without_descriptors_is_made_later(tree: Mounted, folder: Path, looked_at) -> None:
    (tree / "builds/b").mkdir()
    (tree / "builds/b/file").write_text("contents")
    pid = tree.pid
    with ExitStack() as later:
        failed = looked_at(tree, folder / "target", later)
        with few_descriptors(tree, 5), ExitStack() as stack:
            assert open_until_refused(stack, tree / "builds/b/file") == errno.ENFILE
            assert until(failed)
    assert tree.pid == pid
    assert (tree / "builds/b/file").read_text() == "contents"
    (tree / "builds/b").rename(tree / "results/b")


def test_a_failed_build_that_could_not_be_opened_again_is_still_kept(unmounted: Mounted) -> None:
    unmounted.mount(0.1, "--keep-failed", "2")
    kept = unmounted / "builds/.failed/one"
    for name in ("one", "b"):
        (unmounted / "builds" / name).mkdir()
        (unmounted / "builds" / name / "file").write_text(name)
    (unmounted / "builds/one").rename(kept)
    assert kept.stat().st_nlink
    with few_descriptors(unmounted, 5), ExitStack() as stack:
        assert open_until_refused(stack, unmounted / "builds/b/file") == errno.ENFILE
        with failing(errno.ENFILE):
            kept.rename(unmounted / "builds/one")
    assert (kept / "file").read_text() == "one"
    kept.rename(unmounted / "builds/one")
    assert (unmounted / "builds/one/file").read_text() == "one"
    for name in ("one", "b"):
        (unmounted / "builds" / name).rename(unmounted / "results" / name)


def test_a_release_without_descriptors_is_made_later(tree: Mounted) -> None:
    (tree / "builds/b").mkdir()
    (tree / "builds/b/file").write_text("contents")
    with ExitStack() as stack:
        session = in_session(tree)
        with few_descriptors(tree, 5):
            assert open_until_refused(stack, tree / "builds/b/file") == errno.ENFILE
            os.close(session)
            assert until(lambda: tree.events("warning") or not tree.status()["sessions"])
        stack.close()
    assert tree.outcome("c") == "published"
    assert (tree / "caches/c/file").read_text() == "of the session"
    (tree / "builds/b/file").unlink()
    (tree / "builds/b").rmdir()


def test_a_daemon_out_of_memory_says_so_and_loses_nothing(tree: Mounted) -> None:
    (tree / "builds/b").mkdir()
    session = in_session(tree)
    with no_memory(tree), ThreadPoolExecutor(20) as users:
        # Starting builds side by side needs more threads than there are.
        folders = [tree / f"builds/{number}" for number in range(20)]
        seen: set[int] = set()

        def a_while() -> bool:
            seen.update(users.map(lambda each: errno_of(each.mkdir), folders))
            seen.update(users.map(lambda each: errno_of(each.rmdir), folders))
            seen.add(errno_of(lambda: (tree / "builds/b/file").write_bytes(b"x" * 100_000)))
            return errno.ENOMEM in seen

        until(a_while)
        assert seen <= {0, errno.ENOMEM, errno.ENOENT, errno.EEXIST}
        os.close(session)
        assert any("no memory left" in text for text in tree.events("warning"))
    assert tree.outcome("c") == "published"
    assert (tree / "caches/c/file").read_text() == "of the session"
    for name in set(os.listdir(tree / "builds")) - {"b"}:
        os.rmdir(tree / "builds" / name)
    (tree / "builds/b/file").write_text("contents")
    os.rename(tree / "builds/b", tree / "results/b")
    assert (tree / "results/b/file").read_text() == "contents"

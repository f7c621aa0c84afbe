"""What the daemon holds is bounded, and what it waits for holds up nobody else."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import pytest
from errnos import errno_of, failing
from mounted_tree import Mounted, arrived, until, zfsfs


def publish(tree: Mounted, name: str) -> None:
    os.mkdir(tree / f"builds/{name}")
    (tree / f"builds/{name}/file").write_text(name)
    os.rename(tree / f"builds/{name}", tree / f"results/{name}")


def write_and_sync(tree: Mounted) -> None:
    fd = os.open(tree / "builds/slow/file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x")
    os.fsync(fd)
    os.close(fd)


def read(tree: Mounted) -> None:
    with open(tree / "results/done/file") as file:
        # Where the kernel has gathered what was written, it has it still, and asks for nothing.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert file.read() == "done"


def look(tree: Mounted) -> None:
    assert (tree / "results/done/file").stat().st_size == 4


def list_all(tree: Mounted) -> None:
    assert os.listdir(tree / "results/done") == ["file"]


def publish_slow(tree: Mounted) -> None:
    os.rename(tree / "builds/slow", tree / "results/slow")


def other_work(tree: Mounted) -> None:
    other = tree / "builds/other"
    for number in range(50):
        (other / str(number)).write_text("mine")
        assert (other / str(number)).read_text() == "mine"
        os.rename(other / str(number), other / "moved")
    assert sorted(os.listdir(other)) == ["moved"]
    assert len(tree.status()["builds"]) == 2


@contextmanager
def stopped(gate: Path, action: Callable[[Mounted], None], tree: Mounted) -> Iterator[threading.Thread]:
    """`action` has come as far as the call that stops; at the end of the block it goes on."""
    (gate / "armed").touch()
    thread = threading.Thread(target=action, args=(tree,))
    thread.start()
    assert arrived(gate)
    try:
        yield thread
    finally:
        (gate / "go").write_text("")
        thread.join()


def make_gate(gate: Path) -> None:
    for name in ("entered", "go"):
        os.mkfifo(gate / name)


def prepare(tree: Mounted, call: str, gate: Path, *options: str) -> None:
    """A tree whose daemon will wait in this call: a result `done` in it, and the builds `slow` and `other`."""
    make_gate(gate)
    tree.mount_changed(call, gate, *options)
    publish(tree, "done")
    os.mkdir(tree / "builds/slow")
    os.mkdir(tree / "builds/other")


@pytest.mark.parametrize(("call", "action"), [("fsync", write_and_sync), ("pread", read), ("snapshot", publish_slow)])
def test_a_call_that_waits_delays_no_other_request(unmounted, tmp_path, call, action):
    tree = unmounted
    prepare(tree, call, tmp_path)
    with stopped(tmp_path, action, tree) as thread:
        other_work(tree)
        assert thread.is_alive()
    subprocess.run(["rm", "-r", tree / "builds/other"], check=True)
    subprocess.run(["rm", "-rf", tree / "builds/slow"], check=True)


def read_log(log: BinaryIO) -> None:
    assert log.read(100) == b"printed\n"


def look_at_log(log: BinaryIO) -> None:
    assert os.stat(log.name).st_size == 8


@pytest.mark.parametrize("action", [read_log, look_at_log])
def test_a_log_that_is_read_from_a_disk_delays_no_other_request(unmounted, tmp_path, action):
    make_gate(tmp_path)
    tree, left = unmounted, []
    tree.mount_changed("pread", tmp_path)
    zfsfs("build", tree.path, "done", "--", "echo", "printed")
    log = open(tree / ".zfsfs/log/done", buffering=0, mode="rb")  # noqa: SIM115 - only its reading is to wait
    other = threading.Thread(target=lambda: left.append(os.listdir(tree / ".zfsfs/log")), daemon=True)
    with log, stopped(tmp_path, lambda tree: action(log), tree):
        other.start()
        other.join(10)
        assert left == [["done"]]


def begin_slow(tree: Mounted) -> None:
    os.mkdir(tree / "builds/begun")


def discard_slow(tree: Mounted) -> None:
    os.rmdir(tree / "builds/slow")


def delete_done(tree: Mounted) -> None:
    os.rmdir(tree / "results/done")


VERBS = [("create", begin_slow), ("snapshot", publish_slow), ("rename", discard_slow), ("rename", delete_done)]


@pytest.mark.parametrize(("call", "action"), VERBS)
def test_a_verb_that_waits_delays_none_of_the_others_in_its_group(unmounted, tmp_path, call, action):
    tree = unmounted
    prepare(tree, call, tmp_path)
    with stopped(tmp_path, action, tree) as thread:
        publish(tree, "next")
        os.rmdir(tree / "results/next")
        os.rmdir(tree / "builds/other")
        # What is under way shows when it is at its end.
        assert os.listdir(tree / "builds") == ["slow"]
        assert os.listdir(tree / "results") == ["done"]
        assert os.stat(tree / "builds/slow").st_nlink == os.stat(tree / "results/done").st_nlink == 2
        assert thread.is_alive()
    left = {begin_slow: ["begun", "slow"], delete_done: ["slow"]}.get(action, [])
    assert sorted(os.listdir(tree / "builds")) == left
    for name in left:
        os.rmdir(tree / "builds" / name)
    done = {publish_slow: ["done", "slow"], delete_done: []}.get(action, ["done"])
    assert sorted(os.listdir(tree / "results")) == done
    tree.closed()


@pytest.mark.skipif(os.geteuid() != 0, reason="has the kernel forget")
@pytest.mark.parametrize("action", [delete_done, discard_slow])
def test_what_the_kernel_forgets_meanwhile_is_removed_all_the_same(unmounted, tmp_path, action):
    tree = unmounted
    prepare(tree, "rename", tmp_path)
    with stopped(tmp_path, action, tree):
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert os.stat(tree / "builds/slow").st_nlink == os.stat(tree / "results/done").st_nlink == 2
        Path("/proc/sys/vm/drop_caches").write_text("2")
    left = {delete_done: ["other", "slow"], discard_slow: ["done", "other"]}[action]
    assert sorted(os.listdir(tree / "builds") + os.listdir(tree / "results")) == left
    for name in set(left) - {"done"}:
        os.rmdir(tree / "builds" / name)


def test_what_can_not_be_removed_now_is_removed_later(unmounted, tmp_path):
    tree, broken = unmounted, tmp_path / "broken"
    tree.mount_changed("broken", tmp_path, "--keep-failed", "9")
    publish(tree, "done")
    for name in ("slow", "kept"):
        os.mkdir(tree / "builds" / name)
    os.rename(tree / "builds/kept", tree / "builds/.failed/kept")
    for path in ("results/done", "builds/slow", "builds/.failed/kept"):
        broken.write_text("rename")
        with failing(errno.EIO):
            os.rmdir(tree / path)
        broken.unlink()
        os.rmdir(tree / path)
    tree.closed()


def keep_slow(tree: Mounted) -> None:
    os.rename(tree / "builds/slow", tree / "builds/.failed/slow")


def reopen_kept(tree: Mounted) -> None:
    os.rename(tree / "builds/.failed/kept", tree / "builds/kept")


def forget_kept(tree: Mounted) -> None:
    os.rmdir(tree / "builds/.failed/kept")


@pytest.mark.parametrize("action", [keep_slow, reopen_kept, forget_kept])
def test_what_is_done_with_a_failed_build_delays_none_of_the_others(unmounted, tmp_path, action):
    tree = unmounted
    prepare(tree, "rename", tmp_path, "--keep-failed", "9")
    failed = tree / "builds/.failed"
    os.mkdir(tree / "builds/kept")
    os.rename(tree / "builds/kept", failed / "kept")
    with stopped(tmp_path, action, tree) as thread:
        publish(tree, "next")
        os.rename(tree / "builds/other", failed / "other")
        os.rename(failed / "other", tree / "builds/other")
        os.rename(tree / "builds/other", failed / "other")
        os.rmdir(failed / "other")
        assert sorted(os.listdir(tree / "builds")) == [".failed", "slow"]
        assert os.listdir(failed) == ["kept"]
        assert os.stat(tree / "builds/slow").st_nlink == os.stat(failed / "kept").st_nlink == 2
        assert thread.is_alive()
    running = {keep_slow: [], reopen_kept: ["kept", "slow"], forget_kept: ["slow"]}[action]
    kept = {keep_slow: ["kept", "slow"], reopen_kept: [], forget_kept: []}[action]
    assert sorted(os.listdir(tree / "builds")) == [".failed"] * bool(kept) + running
    for name in running:
        (tree / "builds" / name / "file").write_text("it is looked into again")
        subprocess.run(["rm", "-r", tree / "builds" / name], check=True)
    for name in kept:
        assert os.listdir(failed / name) == []
        os.rmdir(failed / name)
    tree.closed()


def test_who_is_refused_does_not_wait_again_with_the_kernels_locks(unmounted, tmp_path):
    tree, refused = unmounted, []
    tree.mount_changed("weary", tmp_path)
    for name in ("slow", "other"):
        os.mkdir(tree / "builds" / name)
    with open(tree / "builds/slow/file", "w"):
        mv = threading.Thread(target=lambda: refused.append(errno_of(lambda: publish_slow(tree))), daemon=True)
        mv.start()
        until(lambda: refused)
        os.rename(tree / "builds/other", tree / "results/other")
    mv.join()
    assert refused == [errno.EBUSY]
    subprocess.run(["rm", "-r", tree / "builds/slow"], check=True)


def test_a_cache_that_is_being_deleted_delays_no_other(unmounted, tmp_path):
    make_gate(tmp_path)
    tree = unmounted
    tree.mount_changed("rename", tmp_path)
    caches = tree / "caches"
    for name in ("slow", "other"):
        os.mkdir(caches / name)
    # It may not hold up who is in it either: the kernel holds locks for those that the deletion needs to end.
    inside = os.open(caches / "slow@reader", os.O_PATH)
    with stopped(tmp_path, lambda tree: os.rmdir(caches / "slow"), tree) as thread:
        os.mkdir(caches / "new")
        (caches / "other@one/file").write_text("other")
        os.rmdir(caches / "new")
        assert {"other", "slow"} <= set(os.listdir(caches)) <= {"other", "slow", "other@one"}
        assert os.stat(caches / "slow").st_nlink == os.stat(caches / "slow@never asked for").st_nlink == 2
        for begin in (os.listdir, lambda folder: os.mkdir(folder / "x")):
            for folder in (caches / "slow", caches / "slow@another", Path(f"/proc/self/fd/{inside}")):
                with failing(errno.ESTALE):
                    begin(folder)
        assert thread.is_alive()
    tree.closed()
    assert os.listdir(caches) == ["other"]
    assert (caches / "other/file").read_text() == "other"
    with failing(errno.ESTALE):
        os.listdir(f"/proc/self/fd/{inside}")
    os.close(inside)
    # The name is free, and nothing is left of what it stood for.
    os.mkdir(caches / "slow")
    (caches / "slow/file").write_text("new")
    assert tree.outcome("slow") == "published"
    assert (caches / "slow@another/file").read_text() == "new"


def test_who_deletes_a_cache_that_another_is_deleting_leaves_nothing_of_it(unmounted, tmp_path):
    make_gate(tmp_path)
    tree, caches = unmounted, unmounted / "caches"
    tree.mount_changed("rename", tmp_path)
    os.mkdir(caches / "slow")
    inside = os.open(caches / "slow@reader", os.O_PATH)
    within, refused = os.open(caches, os.O_PATH), []
    # Who is in caches/ does not ask for it again, and so waits with the kernel's lock held.
    other = threading.Thread(target=lambda: refused.append(errno_of(lambda: os.rmdir("slow", dir_fd=within))))
    with stopped(tmp_path, lambda tree: os.rmdir(caches / "slow"), tree):
        other.start()
        until(lambda: refused or is_waiting(other))
    other.join()
    assert refused[0] in (errno.EBUSY, errno.ENOENT)
    os.close(within)
    os.mkdir(caches / "slow")
    for begin in (os.listdir, lambda folder: os.mkdir(f"{folder}/x")):
        with failing(errno.ESTALE):
            begin(f"/proc/self/fd/{inside}")
    os.close(inside)
    assert tree.status()["sessions"] == []


def test_a_session_that_is_being_opened_keeps_its_cache_from_being_deleted(unmounted, tmp_path):
    make_gate(tmp_path)
    tree, cache = unmounted, unmounted / "caches/c"
    tree.mount_changed("clone", tmp_path)
    os.mkdir(cache)
    opened: list[int] = []
    with stopped(tmp_path, lambda tree: opened.append(os.open(cache, os.O_RDONLY)), tree), failing(errno.EBUSY):
        os.rmdir(cache)
    (cache / "file").write_text("kept")
    os.close(opened.pop())
    assert tree.outcome("c") == "published"
    assert (cache / "file").read_text() == "kept"


def is_waiting(thread: threading.Thread) -> bool:
    """Whether a thread waits in a system call, or has ended."""
    try:
        stat = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] in "SD"


def test_who_opens_a_session_waits_for_no_other_of_the_cache(unmounted, tmp_path):
    make_gate(tmp_path)
    tree = unmounted
    tree.mount_changed("clone", tmp_path)
    os.mkdir(tree / "caches/c")

    def names() -> list[str]:
        return [each["name"] for each in tree.status()["sessions"]]

    with stopped(tmp_path, lambda tree: os.listdir(tree / "caches/c@slow"), tree) as thread:
        os.listdir(tree / "caches/c@other")
        assert names() == ["c@other"]
        assert thread.is_alive()
        (tree / "caches/c@other/file").write_text("other")
    tree.closed()
    assert (tree / "caches/c/file").read_text() == "other"
    assert sorted(tree.events("opened"))[1:] == ["c@other is opened", "c@slow is opened"]


def test_who_comes_while_others_are_looked_for_keeps_the_session(unmounted, tmp_path):
    make_gate(tmp_path)
    tree, armed = unmounted, tmp_path / "armed"
    tree.mount_changed("holders", tmp_path)
    os.mkdir(tree / "caches/c")
    armed.touch()
    os.mkdir(tree / "caches/c/first")
    assert arrived(tmp_path)
    os.mkdir(tree / "caches/c/second")
    armed.touch()
    (tmp_path / "go").write_text("")
    until(lambda: not armed.exists() or tree.events("released"))
    assert tree.events("released") == []
    assert arrived(tmp_path)
    (tmp_path / "go").write_text("")
    assert tree.outcome("c") == "published"


@pytest.mark.parametrize("name", ["c", "c@other"])
def test_who_comes_while_holders_are_looked_for_keeps_the_cache_from_being_deleted(unmounted, tmp_path, name):
    make_gate(tmp_path)
    tree, cache, refused = unmounted, unmounted / "caches/c", []
    tree.mount_changed("holders", tmp_path, "--linger", "30")
    os.mkdir(cache)
    (cache / "file").write_text("of a session that nobody holds")
    until(lambda: [each["open"] for each in tree.status()["sessions"]] == [0])
    with stopped(tmp_path, lambda tree: refused.append(errno_of(lambda: os.rmdir(cache))), tree):
        comes = os.open(tree / "caches" / name, os.O_RDONLY)
    assert refused == [errno.EBUSY]
    with open(cache / "more", "w") as file:
        file.write("and goes on")
    assert (cache / "file").read_text() == "of a session that nobody holds"
    os.close(comes)
    tree.umount()
    tree.mount()
    assert (cache / "file").read_text() == "of a session that nobody holds"
    assert (cache / "more").read_text() == "and goes on"


@pytest.mark.skipif(os.geteuid() != 0, reason="has the kernel forget")
@pytest.mark.parametrize("action", [look, list_all])
def test_names_that_are_read_from_a_disk_delay_no_other_request(unmounted, tmp_path, action):
    make_gate(tmp_path)
    tree = unmounted
    tree.mount()
    publish(tree, "done")
    tree.umount()
    tree.mount_changed("stat", tmp_path)
    os.mkdir(tree / "builds/slow")
    os.mkdir(tree / "builds/other")
    os.listdir(tree / "results")
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    with stopped(tmp_path, action, tree) as thread:
        other_work(tree)
        assert thread.is_alive()
    subprocess.run(["rm", "-r", tree / "builds/other", tree / "builds/slow"], check=True)


@pytest.mark.parametrize("how", ["alone", "gathered"])
def test_the_tree_is_the_same_whoever_answers(unmounted, tmp_path, how):
    tree = unmounted
    tree.mount_changed(how, tmp_path)
    publish(tree, "base")
    build = tree / "builds/next@base"
    os.mkdir(build)
    data = os.urandom(3_000_000)
    (build / "big").write_bytes(data)
    with open(build / "file", "a") as file:
        file.write(" and more")
    os.mkdir(build / "folder")
    os.symlink("big", build / "folder/link")
    os.rename(build, tree / "results/next")
    result = tree / "results/next"
    assert sorted(os.listdir(result)) == ["big", "file", "folder"]
    assert (result / "big").read_bytes() == data
    assert (result / "file").read_text() == "base and more"
    assert os.readlink(result / "folder/link") == "big"
    os.mkdir(tree / "caches/c")
    (tree / "caches/c/entry").write_text("1")
    os.rmdir(result)


@pytest.mark.skipif(os.geteuid() != 0, reason="makes the files natively")
def test_what_is_held_does_not_grow_with_the_inodes_that_are_known(tree):
    """`scripts/bounded` does it with a million."""
    build = tree / "builds/many"
    os.mkdir(build)
    make = "import os\nfor d in range(40):\n os.mkdir(str(d))\n for n in range(1000): os.mknod(f'{d}/{n}')"
    zfsfs("exec", build, "--cwd", build, "--", sys.executable, "-c", make)
    before = private(tree.pid)
    known = [os.stat(os.path.join(at, name)).st_ino for at, _, names in os.walk(build) for name in names]
    assert len(set(known)) == 40_000
    assert len(os.listdir(f"/proc/{tree.pid}/fd")) < 1000
    assert private(tree.pid) - before < 600 * len(known)
    os.rmdir(build)


def test_labels_that_are_only_looked_at_take_no_memory(tree):
    cache = tree / "caches/c"
    os.mkdir(cache)
    os.stat(f"{cache}@in use")
    os.chdir(f"{cache}@in use")
    try:
        before = private(tree.pid)
        for number in range(10_000):
            os.stat(f"{cache}@{number}")
        assert private(tree.pid) - before < 12_000_000
        Path("file").write_text("one and the same")
        assert Path(f"{cache}@in use/file").read_text() == "one and the same"
    finally:
        os.chdir("/")
    tree.closed()
    assert (cache / "file").read_text() == "one and the same"


def with_few_descriptors(tree: Mounted) -> list[object]:
    """The command that mounts a tree, whose daemon may have a hundred of them."""
    few = ["sh", "-c", 'ulimit -n 100; exec "$@"', "sh", sys.executable, "-m", "zfsfs", "mount"]
    return [*few, tree.store, tree.path, "--linger", "0.1", "--log", tree.log]


def test_there_may_be_more_caches_than_descriptors(unmounted):
    tree, caches = unmounted, unmounted / "caches"
    subprocess.run(with_few_descriptors(tree), check=True)
    names = sorted(f"cache{number}" for number in range(120))
    for name in names:
        os.mkdir(caches / name)
    (caches / "cache0/folder").mkdir()
    (caches / "cache0/folder/file").write_text("first")
    assert tree.outcome("cache0") == "published"
    inside = os.open(caches / "cache0/folder", os.O_PATH)
    for name in names:
        (caches / f"{name}@label").stat()
    assert sorted(os.listdir(caches)) == names
    assert len(os.listdir(f"/proc/{tree.pid}/fd")) < 60
    # What was let go of is there again, whatever the kernel knows of it.
    assert Path(f"/proc/self/fd/{inside}/file").read_text() == "first"
    (caches / "cache0/folder/file").write_text("second")
    assert tree.outcome("cache0") == "published"
    assert Path(f"/proc/self/fd/{inside}/file").read_text() == "second"
    os.close(inside)
    tree.closed()
    for name in names:
        os.rmdir(caches / name)
    tree.closed()


def test_there_may_be_more_results_than_descriptors(unmounted):
    tree, results = unmounted, unmounted / "results"
    mount = with_few_descriptors(tree)
    subprocess.run(mount, check=True)
    names = sorted(f"result{number}" for number in range(120))
    for name in names:
        publish(tree, name)
    inside = [os.open(results / name, os.O_PATH) for name in names]
    numbers = [os.fstat(fd).st_ino for fd in inside]
    for name in names:
        assert (results / name / "file").read_text() == name
    for fd, number, name in zip(inside, numbers, names, strict=True):
        assert os.fstat(fd).st_ino == os.stat(results / name).st_ino == number
        assert Path(f"/proc/self/fd/{fd}/file").read_text() == name
        os.close(fd)
    until(lambda: len(looked_into(tree)) <= 25)
    # Nothing is looked into by who lists them.
    tree.umount()
    subprocess.run(mount, check=True)
    with os.scandir(results) as entries:
        found = {entry.name: (entry.inode(), entry.is_dir()) for entry in entries}
        assert sorted(found) == names
        assert looked_into(tree) == set()
        assert all(found[name] == (os.stat(results / name).st_ino, True) for name in names)
    # Nor, a second time, by who asks for what `ls -l` does.
    ask_for_all(results, names)
    until(lambda: len(looked_into(tree)) <= 25)
    before = looked_into(tree)
    ask_for_all(results, names[::-1])
    assert looked_into(tree) == before
    os.mkdir(tree / "builds/x@result0")
    assert (tree / "builds/x@result0/file").read_text() == "result0"
    os.rename(tree / "builds/x@result0", results / "x")
    assert (results / "x/file").read_text() == "result0"
    for name in (*names[1:], "x", names[0]):
        os.rmdir(results / name)
    assert os.listdir(results) == []
    tree.closed()


def ask_for_all(results: Path, names: list[str]) -> None:
    assert sorted(os.listdir(results)) == sorted(names)
    for name in names:
        assert os.stat(results / name).st_nlink == 2
        for attribute in ("security.selinux", "system.posix_acl_access", "system.posix_acl_default"):
            assert errno_of(lambda name=name, of=attribute: os.getxattr(results / name, of)) == errno.ENODATA


def looked_into(tree: Mounted) -> set[str]:
    """The results that the daemon looks into: on directories, the descriptors of their roots tell."""
    if "ZFSFS_TEST_POOL" in os.environ:
        return set()
    folder = f"/proc/{tree.pid}/fd"
    where = [os.path.realpath(f"{folder}/{each}") for each in os.listdir(folder)]
    return {each for each in where if "-result-" in os.path.basename(each)}


def private(pid: int) -> int:
    """Bytes that are a process's own (proc(5): smaps_rollup)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def test_a_release_that_is_decided_waits_for_room_and_holds_up_nothing_else(unmounted, tmp_path):
    tree = unmounted
    tree.mount_changed("full", tmp_path)
    os.mkdir(tree / "caches/c")
    (tree / "caches/c/file").write_text("first")
    assert tree.outcome("c") == "published"
    publish(tree, "done")
    (tmp_path / "full").touch()
    (tree / "caches/c/file").write_text("second")
    until(lambda: tree.events("warning"))
    # It is to be published, so nothing more is written in it, nor is another taken.
    for name in ("c", "c@other"):
        with failing(errno.ENOSPC):
            (tree / f"caches/{name}/file").write_text("third")
    os.mkdir(tree / "builds/other")
    os.rmdir(tree / "builds/other")
    os.rmdir(tree / "results/done")
    assert os.listdir(tree / "builds") + os.listdir(tree / "results") == []
    (tmp_path / "full").unlink()
    assert tree.outcome("c") == "published"
    for name in ("c", "c@other"):
        assert (tree / f"caches/{name}/file").read_text() == "second"
    tree.closed()

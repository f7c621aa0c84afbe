"""How a daemon ends: what it was told by SIGTERM, by umount, by umount -l, and by SIGKILL on the way."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest
from mapping import mapped
from mounted_tree import GATHERS, PATIENCE, held, until, zfsfs

from zfsfs.mountpoint import FSTYPE, mounted_type


@contextmanager
def ending(tree):
    """The block makes the daemon end, and leaving it waits for the end."""
    daemon = os.pidfd_open(tree.pid)
    try:
        yield daemon
        assert select.select([daemon], [], [], PATIENCE)[0], "the daemon does not end"
    finally:
        os.close(daemon)


def terminated(tree) -> None:
    with ending(tree) as daemon:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    assert mounted_type(str(tree.path)) is None


def test_sigterm_publishes_what_is_in_open_sessions_written_or_not_yet(tree, cache):
    with open(cache / "file", "r+b") as file, open(cache / "other", "wb", buffering=0) as other:
        mapped = mmap.mmap(file.fileno(), 5)
        mapped[:] = b"later"  # nothing but the kernel's page has it
        other.write(b"gathered")
        terminated(tree)
        with suppress(OSError):
            mapped.close()
    tree.mount()
    assert (cache / "file").read_text() == "later"
    assert (cache / "other").read_text() == "gathered"


@pytest.mark.skipif(GATHERS, reason="a mapping keeps its file open")
def test_and_what_was_written_through_a_mapping_whose_file_was_closed(tree, cache):
    tree.umount()
    tree.mount(60)
    with held(cache):
        until(lambda: time.time() - (cache / "file").stat().st_ctime > 0.2)  # what is new counts as changed anyway
    with mapped(cache / "file") as memory:
        until(lambda: [each["open"] for each in tree.status()["sessions"]] == [0])
        memory[0:5] = b"later"
        terminated(tree)
        memory[0:5] = b"after"
    tree.mount()
    assert (cache / "file").read_text() == "later"


def test_what_is_written_after_the_daemons_end_changes_nothing_that_was_published(tree, cache):
    fd = os.open(cache / "file", os.O_RDWR)
    os.pwrite(fd, b"later", 0)
    terminated(tree)
    with suppress(OSError):  # unless the kernel writes by itself
        os.pwrite(fd, b"after", 0)
    tree.mount()
    assert (cache / "file").read_text() == "later"
    with suppress(OSError):
        os.pwrite(fd, b"again", 0)
    tree.umount()
    tree.mount()
    assert (cache / "file").read_text() == "later"
    with suppress(OSError):  # as above
        os.close(fd)
    (cache / "other").touch()
    assert tree.outcome("c") == "published"
    assert (cache / "file").read_text() == "later"
    tree.closed()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_who_can_not_wait_for_the_end_does_not_cut_it_short(unmounted, number):
    words = ["mount", "--foreground", unmounted.store, unmounted.path, "--linger", "60", "--log", unmounted.log]
    daemon = subprocess.Popen([sys.executable, "-m", "zfsfs", *words])
    until(lambda: mounted_type(str(unmounted.path)) == FSTYPE and (unmounted / "caches").exists())
    (unmounted / "caches/c").mkdir()
    (unmounted / "caches/c/file").write_text("later")
    while daemon.poll() is None:
        daemon.send_signal(number)
        time.sleep(0.003)
    assert daemon.returncode == 0
    assert mounted_type(str(unmounted.path)) is None
    unmounted.mount()
    assert (unmounted / "caches/c/file").read_text() == "later"


def test_who_was_started_by_nohup_goes_on_when_the_terminal_is_closed(unmounted):
    words = ["mount", "--foreground", unmounted.store, unmounted.path, "--log", unmounted.log]
    daemon = subprocess.Popen(["nohup", sys.executable, "-m", "zfsfs", *words], stdin=subprocess.DEVNULL)
    until(lambda: mounted_type(str(unmounted.path)) == FSTYPE and (unmounted / "caches").exists())
    daemon.send_signal(signal.SIGHUP)
    (unmounted / "caches/c").mkdir()
    unmounted.umount()
    assert daemon.wait(PATIENCE) == 0


def test_sigterm_discards_running_builds_and_keeps_results(tree):
    (tree / "builds/done").mkdir()
    (tree / "builds/done/file").write_text("x")
    (tree / "builds/done").rename(tree / "results/done")
    (tree / "builds/half").mkdir()
    with open(tree / "builds/half/file", "w") as file:
        file.write("half")
        file.flush()
        terminated(tree)
        with suppress(OSError):
            file.close()
    tree.mount()
    assert os.listdir(tree / "builds") == []
    assert os.listdir(tree / "results") == ["done"]
    assert (tree / "results/done/file").read_text() == "x"
    (tree / "builds/half").mkdir()
    (tree / "builds/half").rmdir()


def test_sigterm_ends_a_daemon_whose_users_do_not_stop(tree, cache):
    """They write into two sessions of one cache, and make and remove caches: one session is superseded, and the
    kernel has locks and dirty pages when requests are no longer answered."""
    script = """
import os, sys, itertools
fds = [os.open(f"caches/c@{name}/file", os.O_RDWR | os.O_CREAT) for name in ("one", "two")]
print("x", flush=True)
try:
    for n in itertools.count():
        for fd in fds:
            os.pwrite(fd, b"x" * 5000, n % 100 * 5000)
        os.mkdir(f"caches/more{sys.argv[1]}")
        os.rmdir(f"caches/more{sys.argv[1]}")
except OSError:
    os._exit(0)
"""
    users = [
        subprocess.Popen([sys.executable, "-c", script, str(n)], cwd=tree.path, stdout=subprocess.PIPE)
        for n in range(3)
    ]
    for user in users:
        assert user.stdout is not None
        user.stdout.readline()
        user.stdout.close()
    terminated(tree)
    for user in users:
        assert user.wait(PATIENCE) == 0
    tree.mount()
    assert {each["name"]: each["generation"] for each in tree.status()["caches"]}["c"] == 2
    assert not [name for name in os.listdir(tree / "caches") if "@" in name]


@pytest.mark.parametrize("moment", ["SIGTERM: ending", "released c", "discarded b"])
def test_sigkill_on_the_way_out_is_a_crash_like_any_other(tree, cache, moment):
    (tree / "builds/b").mkdir()
    with open(cache / "file", "w") as file:
        file.write("later")
        file.flush()
        with ending(tree) as daemon:
            signal.pidfd_send_signal(daemon, signal.SIGTERM)
            until(lambda: moment in tree.log.read_text() or select.select([daemon], [], [], 0)[0])
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(daemon, signal.SIGKILL)
        with suppress(OSError):
            file.close()
    tree.mount()
    assert (cache / "file").read_text() in ("first", "later")
    assert os.listdir(tree / "caches") == ["c"]
    assert os.listdir(tree / "builds") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts natively, which needs root")
@pytest.mark.parametrize("end", ["SIGTERM", "umount"])
def test_what_was_native_until_just_now_is_published(unmounted, tmp_path, end):
    unmounted.mount_changed("incurious", tmp_path)
    (unmounted / "caches/c").mkdir()
    target = tmp_path / "target"
    target.mkdir()
    zfsfs("bind", unmounted / "caches/c", target)
    # When `bind` has ended, it was looked for the last time.
    until(lambda: str(target) in str(unmounted.status()["native"]))
    (target / "file").write_text("native")
    subprocess.run(["umount", target], check=True)
    if end == "SIGTERM":
        terminated(unmounted)
    else:
        with ending(unmounted):
            subprocess.run(["umount", unmounted.path], check=True)
    unmounted.mount()
    assert (unmounted / "caches/c/file").read_text() == "native"


def test_umount_waits_for_sessions_that_linger(unmounted):
    unmounted.mount(linger=1000.0)
    (unmounted / "caches/c").mkdir()
    (unmounted / "caches/c/file").write_text("x")
    assert len(unmounted.status()["sessions"]) == 1
    with ending(unmounted):
        unmounted.umount()
    unmounted.mount()
    assert unmounted.status()["caches"][0]["generation"] == 1
    assert (unmounted / "caches/c/file").read_text() == "x"


def test_umount_while_busy_changes_nothing_and_names_the_session(tree, cache):
    with open(cache / "file", "w") as file:
        said = zfsfs("umount", tree.path, expect=4).stderr
        assert "open sessions: c" in said
        file.write("later")
    assert tree.outcome("c") == "published"
    assert (cache / "file").read_text() == "later"


@pytest.mark.skipif(os.geteuid() != 0, reason="umount -l needs root")
def test_a_lazy_umount_ends_the_daemon_with_its_last_user(tree, cache):
    with ending(tree), open(cache / "file", "w") as file:
        subprocess.run(["umount", "-l", tree.path], check=True)
        assert mounted_type(str(tree.path)) is None
        file.write("later")
    tree.mount()
    assert (cache / "file").read_text() == "later"


@pytest.mark.skipif(os.geteuid() != 0, reason="umount -l needs root")
def test_after_a_lazy_umount_the_store_is_taken_until_the_last_user_has_gone(tree, cache):
    with ending(tree):
        pid = tree.pid
        with open(cache / "file") as file:
            subprocess.run(["umount", "-l", tree.path], check=True)
            assert str(pid) in zfsfs("mount", tree.store, tree.path, expect=5).stderr
            assert file.read() == "first"
    tree.mount()
    assert mounted_type(str(tree.path)) == FSTYPE


@pytest.mark.skipif(os.geteuid() != 0, reason="takes a descriptor of another process")
def test_a_killed_daemon_whose_connection_lives_on_lets_nobody_wait(tree, cache):
    """As when a thread of it hangs in the kernel, making it forget a name: the descriptor of /dev/fuse stays open."""
    pid = tree.pid
    fuse = next(fd for fd in os.listdir(f"/proc/{pid}/fd") if os.readlink(f"/proc/{pid}/fd/{fd}") == "/dev/fuse")
    daemon = os.pidfd_open(pid)
    copy = ctypes.CDLL(None, use_errno=True).syscall(PIDFD_GETFD, daemon, int(fuse), 0)
    assert copy >= 0
    try:
        signal.pidfd_send_signal(daemon, signal.SIGKILL)
        select.select([daemon], [], [])
        with pytest.raises(OSError, match=f"Errno ({errno.ENOTCONN}|{errno.ECONNABORTED})"):
            os.listdir(tree / "caches")
        tree.mount()
    finally:
        os.close(copy)
        os.close(daemon)
    assert (cache / "file").read_text() == "first"


PIDFD_GETFD = 438  # the same on every architecture

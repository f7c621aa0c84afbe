"""Builds that the daemon does: mkdir builds/BUILDER+ID[@BASE], and the result appears."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from errnos import failing
from mounted_tree import PATIENCE, Mounted, until

ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not ROOT, reason="becomes other users")

SCRIPT = """\
[builder.sh]
command = ["sh", "-c", "{script}"]
kill-grace = "{grace}"
{more}
"""


def configured(
    unmounted: Mounted, folder: Path, script: str, *, grace: str = "1s", more: str = "", how: str = "grouped"
) -> Mounted:
    """A mounted store with a builder `sh` that runs a script; `how` its daemon is changed, with `folder` as gate."""
    config = folder / "config.toml"
    config.write_text(SCRIPT.format(script=script, grace=grace, more=more))
    unmounted.mount_changed(how, folder, "--config", config)
    return unmounted


def waited(tree: Mounted, ident: str) -> dict:
    """How a build has ended, once it has."""
    line = subprocess.run(["cat", tree / ".zfsfs/wait" / ident], capture_output=True, check=True, timeout=60).stdout
    assert line.endswith(b"\n")
    return json.loads(line)


def gone(tree: Mounted, ident: str) -> None:
    """Nothing is left of a build that has failed."""
    assert os.listdir(tree / "builds") == []
    assert ident not in os.listdir(tree / "results")
    tree.closed()


def log_of(tree: Mounted, ident: str) -> str:
    return (tree / ".zfsfs/log" / ident).read_text()


def test_what_a_builder_makes_is_a_result(unmounted, folder):
    tree = configured(unmounted, folder, "pwd; echo $ZFSFS_ID $ZFSFS_BASE.; cat; echo made > file; ls")
    (tree / "builds/sh+one").mkdir()
    assert waited(tree, "one") | {"time": 0, "duration": 0} == {
        "id": "one", "outcome": "published", "time": 0, "builder": "sh", "exit": 0, "signal": None, "reason": "",
        "duration": 0,
    }  # fmt: skip
    assert (tree / "results/one/file").read_text() == "made\n"
    assert os.listdir(tree / "builds") == []
    assert log_of(tree, "one") == f"{tree.path}/builds/sh+one\none .\nfile\n"


def test_inotify_tells_of_a_result_that_appears(unmounted, folder):
    tree = configured(unmounted, folder, "true")
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.inotify_init1(os.O_CLOEXEC)
    assert libc.inotify_add_watch(fd, os.fsencode(tree / "results"), 0x80) > 0  # IN_MOVED_TO
    (tree / "builds/sh+one").mkdir()
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    assert poll.poll(60000)
    assert os.read(fd, 4096)[16:].rstrip(b"\0") == b"one"
    os.close(fd)


def test_a_builder_goes_on_from_a_base(unmounted, folder):
    tree = configured(unmounted, folder, "echo $ZFSFS_BASE >> file")
    (tree / "builds/base").mkdir()
    (tree / "builds/base/file").write_text("from the base\n")
    (tree / "builds/base").rename(tree / "results/base")
    (tree / "builds/sh+next@base").mkdir()
    assert waited(tree, "next")["outcome"] == "published"
    assert (tree / "results/next/file").read_text() == "from the base\nbase\n"


def test_a_builder_that_fails_leaves_its_log(unmounted, folder):
    tree = configured(unmounted, folder, "echo first; echo second >&2; touch file; exit 7")
    (tree / "builds/sh+bad").mkdir()
    line = waited(tree, "bad")
    assert (line["outcome"], line["exit"], line["signal"]) == ("failed", 7, None)
    assert log_of(tree, "bad") == "first\nsecond\n"
    assert "builder sh on bad has failed: exit code 7" in tree.events("builder-ended")
    gone(tree, "bad")


def test_a_log_goes_with_its_result_and_outlives_the_daemon(unmounted, folder):
    tree = configured(unmounted, folder, "echo kept")
    (tree / "builds/sh+one").mkdir()
    waited(tree, "one")
    tree.umount()
    tree.mount()
    assert log_of(tree, "one") == "kept\n"
    (tree / "results/one").rmdir()
    assert os.listdir(tree / ".zfsfs/log") == []


def test_one_build_of_an_id_at_a_time(unmounted, folder):
    tree = configured(unmounted, folder, "mkfifo gate; cat gate")
    (tree / "builds/sh+one").mkdir()
    with failing(errno.EEXIST):
        (tree / "builds/sh+one").mkdir()
    with failing(errno.EEXIST):
        (tree / "builds/one").mkdir()
    with failing(errno.EBUSY):
        (tree / "builds/sh+one").rename(tree / "results/one")
    until(lambda: (tree / "builds/sh+one/gate").exists())
    readers = [
        subprocess.Popen(["cat", tree / ".zfsfs/wait/one"], stdout=subprocess.PIPE, text=True) for _ in range(5)
    ]
    # A fifo is the kernel's: ours and the builder's are one where its directory is not another mount.
    until(lambda: os.path.exists(f"/proc/{readers[0].pid}"))
    (tree / "builds/sh+one").rmdir()
    for reader in readers:
        answer, _ = reader.communicate(timeout=60)
        assert json.loads(answer)["outcome"] == "cancelled"
    gone(tree, "one")
    (tree / "builds/one").mkdir()
    (tree / "builds/one").rmdir()


def test_waiting_for_a_build_that_a_person_does(tree):
    (tree / "builds/mine").mkdir()
    reader = subprocess.Popen(["cat", tree / ".zfsfs/wait/mine"], stdout=subprocess.PIPE, text=True)
    (tree / "builds/mine").rename(tree / "results/mine")
    assert json.loads(reader.communicate(timeout=60)[0])["outcome"] == "published"
    assert waited(tree, "mine")["outcome"] == "published"
    with failing(errno.ENOENT):
        os.stat(tree / ".zfsfs/wait/nothing")


def test_a_reader_that_is_interrupted_leaves_nothing_behind(tree):
    (tree / "builds/long").mkdir()
    path = tree / ".zfsfs/wait/long"
    code = f"import sys; f = open({str(path)!r}, 'rb', buffering=0); print('open', flush=True); f.read(10)"
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT):
        reader = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"open\n"
        reader.send_signal(number)
        assert reader.wait(timeout=60) == (1 if number == signal.SIGINT else -number) or number == signal.SIGINT
        reader.stdout.close()
    assert subprocess.run(["timeout", "0.2", "cat", path], timeout=60, check=False).returncode == 124
    (tree / "builds/long").rmdir()


#: System calls on the standard input, as /proc shows them.
READ, PREAD = ("63 0x0 ", "67 0x0 ") if os.uname().machine == "aarch64" else ("0 0x0 ", "17 0x0 ")


def threads_of(pid: int, call: str) -> int:
    """How many threads of a process are in a system call."""
    calls = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(OSError):
            calls.append(Path(f"/proc/{pid}/task/{thread}/syscall").read_text())
    return sum(each.startswith(call) for each in calls)


@as_root
def test_who_reads_what_another_has_opened_is_killed_at_once(tree):
    (tree / "builds/long").mkdir()
    with open(tree / ".zfsfs/wait/long", "rb") as opened, subprocess.Popen(["cat"], stdin=opened) as reader:
        until(lambda: threads_of(reader.pid, READ))
        try:
            reader.kill()
            assert reader.wait(timeout=10) == -signal.SIGKILL
        finally:
            (tree / "builds/long").rmdir()


@as_root
def test_two_hundred_threads_wait_and_the_tree_answers(tree):
    (tree / "builds/long").mkdir()
    code = """
import os, threading
def read(): os.write(1, os.pread(0, 4096, 0))
threads = [threading.Thread(target=read) for _ in range(200)]
for each in threads: each.start()
for each in threads: each.join()
"""
    command = [sys.executable, "-c", code]
    with open(tree / ".zfsfs/wait/long", "rb") as opened, open(tree / ".zfsfs/wait/long", "rb") as too:
        killed = subprocess.Popen(command, stdin=opened, stdout=subprocess.PIPE)
        told = subprocess.Popen(command, stdin=too, stdout=subprocess.PIPE)
        for each in (killed, told):
            until(lambda each=each: threads_of(each.pid, PREAD) == 200)
        os.stat(tree / "builds/long")
        assert os.listdir(tree / "results") == []
        killed.kill()
        assert killed.communicate(timeout=60)[0] == b""
        assert threads_of(told.pid, PREAD) == 200
        (tree / "builds/long").rename(tree / "results/long")
        lines = told.communicate(timeout=60)[0].splitlines()
        assert [json.loads(line)["outcome"] for line in lines] == ["published"] * 200


def test_poll_tells_of_the_end(tree):
    (tree / "builds/long").mkdir()
    fd = os.open(tree / ".zfsfs/wait/long", os.O_RDONLY | os.O_NONBLOCK)
    poll = select.epoll()
    poll.register(fd, select.EPOLLIN)
    assert poll.poll(0) == []
    with failing(errno.EAGAIN):
        os.read(fd, 1)
    (tree / "builds/long").rename(tree / "results/long")
    assert poll.poll(60) == [(fd, select.EPOLLIN)]
    assert json.loads(os.read(fd, 4096))["outcome"] == "published"
    poll.close()
    os.close(fd)


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("exec /nonexistent", "exit code 127"),
        ("kill -9 $$", "signal 9"),
        pytest.param("rm -rf $ZFSFS_BUILD", "exit code 1", marks=as_root),  # natively it is a mount point
        ("echo x > /proc/version", "exit code"),
    ],
)
def test_bad_ends(unmounted, folder, script, why):
    tree = configured(unmounted, folder, script)
    (tree / "builds/sh+bad").mkdir()
    until(lambda: any(why in text for text in tree.events("builder-ended")))
    until(lambda: os.listdir(tree / "builds") == [])
    gone(tree, "bad")


def test_a_builder_that_removes_its_own_directory_is_cancelled(unmounted, folder):
    tree = configured(unmounted, folder, "rm -rf $ZFSFS_BUILD; exec sleep 1000", more="native = false")
    (tree / "builds/sh+bad").mkdir()
    until(lambda: any("cancelled" in text for text in tree.events("builder-ended")))
    gone(tree, "bad")


def test_a_command_that_does_not_exist(unmounted):
    unmounted.mount(0.1, "--builder", "no=/nonexistent/command now")
    (unmounted / "builds/no+one").mkdir()
    line = waited(unmounted, "one")
    assert line["outcome"] == "failed"
    assert line["reason"] == "/nonexistent/command can't be started: No such file or directory"
    gone(unmounted, "one")


def test_a_builder_that_there_is_not(tree):
    with failing(errno.ENOENT):
        (tree / "builds/none+one").mkdir()
    with failing(errno.EINVAL):
        (tree / "builds/a b+one").mkdir()
    assert os.listdir(tree / "builds") == []


def test_a_builder_that_never_ends(unmounted, folder):
    tree = configured(unmounted, folder, "trap '' TERM; sleep 1000 & wait; wait", grace="0", more="time-limit = 1")
    (tree / "builds/sh+one").mkdir()
    line = waited(tree, "one")
    assert (line["outcome"], line["reason"], line["signal"]) == ("failed", "time limit", 9)
    gone(tree, "one")


def test_what_hides_from_its_process_group_is_found(unmounted, folder):
    hide = "(setsid sh -c 'echo $$ > {0}/hidden.$1; exec sleep 1000' x $i &)"
    script = f"for i in 1 2 3; do {hide.format(folder)} & done; while [ ! -s {folder}/hidden.3 ]; do :; done; exit 0"
    os.chmod(folder, 0o777)
    tree = configured(unmounted, folder, script)
    (tree / "builds/sh+one").mkdir()
    assert waited(tree, "one")["outcome"] == "published"
    for path in folder.glob("hidden.*"):
        assert not path.read_text().strip() or not os.path.exists(f"/proc/{path.read_text().strip()}")


def test_a_builder_that_prints_without_end_has_a_log_of_bounded_size(unmounted, folder):
    script = "echo begin; yes | head -c 256M; echo end"
    tree = configured(unmounted, folder, script, more="log-size = '64K'")
    (tree / "builds/sh+one").mkdir()
    assert waited(tree, "one")["outcome"] == "published"
    text = log_of(tree, "one")
    assert text.startswith("begin\ny\ny\n")
    assert text.endswith("y\ny\nend\n")
    cut = re.search(r"\[zfsfs: (\d+) bytes are cut out here\]", text)
    assert cut
    assert len("begin\nend\n") + 2**28 - int(cut[1]) == 2**16
    assert len(text) < 70000


@pytest.mark.parametrize("how", ["grouped", "gathered", "alone"])
def test_a_log_is_followed_while_it_is_written(unmounted, folder, how):
    script = f"echo one; while [ ! -e {folder}/go ]; do sleep 0.05; done; echo two"
    tree = configured(unmounted, folder, script, how=how)
    (tree / "builds/sh+one").mkdir()
    until(lambda: log_of(tree, "one") == "one\n")
    command = ["timeout", "60", "tail", "-n", "+1", "-f", tree / ".zfsfs/log/one"]
    tail = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert tail.stdout is not None
    assert tail.stdout.readline() == "one\n"
    (folder / "go").touch()
    assert tail.stdout.readline() == "two\n"
    tail.terminate()
    tail.communicate()
    waited(tree, "one")


@as_root
def test_a_builder_runs_as_who_asked_and_its_log_is_theirs(unmounted, folder):
    tree = configured(unmounted, folder, "id -u; id -G; echo x > /etc/zfsfs-was-here; touch file; ls -ln file")

    def become(uid: int):
        def do() -> None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)

        return do

    subprocess.run(["mkdir", tree / "builds/sh+one"], preexec_fn=become(4321), check=True)
    assert waited(tree, "one")["outcome"] == "published"
    assert not os.path.exists("/etc/zfsfs-was-here")
    mine = subprocess.run(["cat", tree / ".zfsfs/log/one"], preexec_fn=become(4321), capture_output=True, check=True)
    assert mine.stdout.startswith(b"4321\n4321\n")
    other = subprocess.run(
        ["cat", tree / ".zfsfs/log/one"], preexec_fn=become(4322), capture_output=True, check=False
    )
    assert b"Permission denied" in other.stderr
    (tree / "results/one").rmdir()


def test_a_builders_cache_is_published_on_success_only(unmounted, folder):
    more = """
        [[builder.sh.cache]]
        name = "c"
        variable = "CACHE"
    """
    script = "cat $CACHE/file; echo $ZFSFS_ID > $CACHE/file; [ $ZFSFS_ID != bad ]"
    tree = configured(unmounted, folder, script, more=more)
    for ident in ("good", "bad", "again"):
        (tree / f"builds/sh+{ident}").mkdir()
        waited(tree, ident)
        tree.closed()
    assert log_of(tree, "bad") == log_of(tree, "again") == "good\n"
    assert (tree / "caches/c/file").read_text() == "again\n"
    assert [text.rpartition(" ")[2] for text in tree.events("released")] == ["published", "discarded", "published"]


@as_root
def test_a_build_ends_whoever_has_its_cache(unmounted, folder):
    more = """
        native = false
        [[builder.sh.cache]]
        name = "c"
        label = "x"
        variable = "CACHE"
    """
    script = f"touch $CACHE/file; echo x > {folder}/here; while [ ! -e {folder}/go ]; do sleep 0.05; done; exit 1"
    tree = configured(unmounted, folder, script, more=more)
    os.chmod(folder, 0o777)
    (tree / "builds/sh+one").mkdir()
    until(lambda: (folder / "here").exists())
    holder = subprocess.Popen(
        [sys.executable, "-m", "zfsfs", "exec", tree / "caches/c@x", "--", "sh", "-c", "echo x; read line"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"x\n"
    (folder / "go").touch()
    assert waited(tree, "one")["outcome"] == "failed"
    assert any("caches/c@x is left by build one" in text for text in tree.events("warning"))
    (tree / "builds/one").mkdir()
    (tree / "builds/one").rmdir()
    holder.communicate(b"\n", timeout=60)
    assert tree.outcome("c@x") != "published"


def test_a_daemon_that_ends_ends_its_builders(unmounted, folder):
    tree = configured(unmounted, folder, f"echo $$ > {folder}/pid; exec sleep 1000")
    os.chmod(folder, 0o777)
    (tree / "builds/sh+one").mkdir()
    until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip())
    tree.umount("--force")
    assert not os.path.exists(f"/proc/{(folder / 'pid').read_text().strip()}")


def test_builders_that_end_need_none_of_the_threads_that_the_daemon_answers_with(unmounted, folder):
    tree = configured(unmounted, folder, "[ $ZFSFS_ID != bad ]", how="narrow")
    for ident, outcome in (("one", "published"), ("bad", "failed")):
        (tree / f"builds/sh+{ident}").mkdir()
        assert waited(tree, ident)["outcome"] == outcome


def test_a_daemon_that_ends_with_a_builder_needs_none_either(unmounted, folder):
    tree = configured(unmounted, folder, f"echo x > {folder}/here; exec sleep 1000", how="narrow")
    os.chmod(folder, 0o777)
    (tree / "builds/sh+one").mkdir()
    until(lambda: (folder / "here").exists())
    daemon = os.pidfd_open(tree.pid)
    signal.pidfd_send_signal(daemon, signal.SIGTERM)
    assert select.select([daemon], [], [], PATIENCE)[0], "the daemon does not end"
    os.close(daemon)


def test_a_daemon_that_dies_takes_its_builders_with_it(unmounted, folder):
    tree = configured(unmounted, folder, f"echo $$ > {folder}/pid; exec sleep 1000")
    os.chmod(folder, 0o777)
    (tree / "builds/sh+one").mkdir()
    until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip())
    daemon = tree.pid
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{daemon}") or "Z" in Path(f"/proc/{daemon}/stat").read_text())
    tree.mount()
    assert not os.path.exists(f"/proc/{(folder / 'pid').read_text().strip()}")
    (tree / "builds/one").mkdir()
    (tree / "builds/one").rmdir()

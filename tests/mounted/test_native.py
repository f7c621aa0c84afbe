"""Datasets mounted natively beside the tree: exec, bind, unbind, and what holds them."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from errnos import failing
from mounted_tree import plant_socket, until, zfsfs

from zfsfs.native import wire
from zfsfs.native.client import unbind

ZFS = bool(os.environ.get("ZFSFS_TEST_POOL"))
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="mounts, or becomes another user")


@pytest.fixture
def build(tree):
    """A running build with a file; whatever is left of it at the end is thrown away."""
    folder = tree / "builds/b"
    folder.mkdir()
    (folder / "file").write_text("through the tree")
    yield folder
    if folder.exists():
        until_free(tree)
        folder.rmdir()


@pytest.fixture
def target(tmp_path):
    """Where to mount; unmounted at the end, so that nothing that cleans up goes astray in it."""
    folder = tmp_path / "target"
    folder.mkdir()
    yield folder
    while os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


def until_free(tree):
    until(lambda: not tree.status()["native"])


def run(*words, **options):
    """`zfsfs exec`, as a process that a test can look at."""
    command = [sys.executable, "-m", "zfsfs", "exec", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, **options)


@contextmanager
def running(*words, end=True):
    """A command in `zfsfs exec` that says a line and waits for its input to end."""
    command = [sys.executable, "-m", "zfsfs", "exec", *map(str, words), "--", "sh", "-c", "echo in; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"in\n"
        yield process
        process.stdin.close()


LACKING = """import ctypes, os
fd = os.open(".", os.O_TMPFILE | os.O_RDWR)
os.pwrite(fd, b"x" * (1 << 20), 0)
print(ctypes.CDLL(None).fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(1 << 19)))
os.fsync(fd)
print(os.lseek(fd, 0, os.SEEK_DATA))"""


# exec: as if the command had been run directly.


def test_what_the_tree_has_no_request_for_works_natively(tree, build):
    done = run(build, "--cwd", build, "--", sys.executable, "-c", LACKING)
    assert done.stderr == ""
    assert done.stdout.split() == ["0", str(1 << 19)]


def test_the_command_works_on_the_dataset_under_the_same_path(tree, build):
    done = run(build, "--", "sh", "-c", f"cat {build}/file; echo native >{build}/made; stat -fc %T {build}")
    assert done.stderr == ""
    text, _, kind = done.stdout.partition("tree")
    assert text == "through the "
    assert "fuse" not in kind
    assert (build / "made").read_text() == "native\n"
    os.rename(build, tree / "results/b")
    assert (tree / "results/b/made").read_text() == "native\n"


def test_several_paths_at_once(tree, build, cache):
    done = run(build, f"{cache}@a", f"{cache}@a", "--", "cp", cache.parent / "c@a/file", build / "copy")
    assert (done.returncode, done.stderr) == (0, "")
    assert (build / "copy").read_text() == "first"


def test_exit_codes_are_the_commands_own_and_those_of_env(build):
    assert run(build, "--", "sh", "-c", "exit 7").returncode == 7
    assert run(build, "--", "sh", "-c", "kill -TERM $$").returncode == -signal.SIGTERM
    assert run(build, "--", "no-such-command").returncode == 127
    assert run(build, "--", build / "file").returncode == 126
    for words in ([build.parent], ["/"], ["/nowhere"], ["--cwd", "/nowhere", build]):
        done = run(*words, "--", "true")
        assert (done.returncode, done.stderr.count("\n")) == (125, 1)
    assert run(build, "true").returncode == run("--", "true").returncode == run(build, "--").returncode == 2


def test_too_few_descriptors_are_one_line(build):
    """Five are enough for the directory and the connection, and too few for the mount."""
    command = [sys.executable, "-m", "zfsfs", "exec", build, "--", "true"]
    limited = ["sh", "-c", 'ulimit -n 5; exec "$@"', "sh", *map(str, command)]
    done = subprocess.run(limited, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (125, 1), done.stderr
    assert "no descriptors left" in done.stderr


def test_environment_input_and_working_directory_are_the_callers(build):
    (build / "sub").mkdir()
    script = "pwd; /bin/pwd; echo $MARK; cat; ls ..; grep SigIgn /proc/self/status"
    done = run(build, "--", "sh", "-c", script, cwd=build / "sub", input="typed\n", env={**os.environ, "MARK": "m"})
    assert done.stdout.split() == [f"{build}/sub"] * 2 + ["m", "typed", "file", "sub", "SigIgn:", "0" * 16]
    done = run("--cwd", build / "sub", build, "--", "touch", "here", cwd="/")
    assert (build / "sub/here").exists()


@pytest.mark.parametrize("locale", [{}, {"LC_CTYPE": "C"}, {"LC_CTYPE": "C.UTF-8"}, {"LC_ALL": "C"}])
def test_the_locale_is_the_callers_too(build, locale):
    environment = {"PATH": os.environ["PATH"], **locale}
    done = run(build, "--", "env", env=environment)
    assert sorted(done.stdout.splitlines()) == sorted(f"{name}={value}" for name, value in environment.items())


@pytest.mark.parametrize(("closed", "left"), [("<&-", ["1", "2"]), (">&-", ["0", "2"]), ("<&- >&-", ["2"])])
def test_streams_that_are_closed_are_so_for_the_command(build, closed, left):
    see = "for each in 0 1 2; do test -e /proc/$$/fd/$each && echo $each >&2; done"
    words = [sys.executable, "-m", "zfsfs", "exec", build, "--", "sh", "-c", see]
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", *map(str, words)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert done.stderr.split() == left


def test_signals_reach_the_command_itself(build):
    command = [sys.executable, "-m", "zfsfs", "exec", build, "--", "sh", "-c", "trap 'exit 9' TERM; echo in; read x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 9


def test_nothing_of_it_shows_outside(tree, build):
    with running(build):
        assert str(build) not in Path("/proc/self/mountinfo").read_text()


def test_a_result_is_read_only(tree, build):
    os.rename(build, tree / "results/b")
    done = run(tree / "results/b", "--", "sh", "-c", f"cd {tree.path}/results/b && cat file && touch file")
    assert done.stdout == "through the tree"
    assert "Read-only file system" in done.stderr
    line = run(tree / "results/b", "--", "grep", "results/b", "/proc/self/mountinfo").stdout
    assert {"ro", "nosuid", "nodev"} <= set(line.split()[5].split(","))


def test_only_the_whole_of_something_can_be_native(tree, build):
    (build / "sub").mkdir()
    assert "not a directory in it" in run(build / "sub", "--", "true").stderr
    assert "only builds, results and caches" in run(tree / "builds", "--", "true").stderr


def test_within_itself_it_is_native_already(tree, build):
    inner = [sys.executable, "-m", "zfsfs", "exec", build, "--", "sh", "-c", f"grep -c {build} /proc/self/mountinfo"]
    done = run(build, "--", *inner)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("kind", ["link", "fifo", "file"])
def test_what_a_build_says_of_a_daemon_is_not_looked_at(tree, build, tmp_path, target, kind):
    (tmp_path / "secret").write_text("secret\n" * 100)
    plant_socket(build, kind, tmp_path / "secret")
    done = run(build, "--", "cat", build / "file")
    assert (done.stdout, done.stderr) == ("through the tree", "")
    if os.geteuid() == 0:
        # A part of a tree is none: it may be anybody's.
        subprocess.run(["mount", "--bind", build, target], check=True)
        assert run(target, "--", "true").stderr == f"zfsfs: {target} is in no zfsfs\n"


# Who holds it.


def test_a_build_that_is_native_is_neither_published_nor_removed(tree, build):
    with running(build) as process:
        with failing(errno.EBUSY):
            os.rename(build, tree / "results/b")
        with failing(errno.EBUSY):
            os.rmdir(build)
        held = tree.status()["native"]
        assert [each["path"] for each in held] == ["builds/b"]
        assert f"(pid {process.pid})" in held[0]["holders"][0]
    os.rename(build, tree / "results/b")


def test_a_result_that_is_native_is_not_deleted(tree, build):
    result = tree / "results/b"
    os.rename(build, result)
    with running(result):
        with failing(errno.EBUSY):
            os.rmdir(result)
        assert (result / "file").read_text() == "through the tree"
    os.rmdir(result)


def test_a_session_stays_open_while_it_is_native_and_is_published_afterwards(tree, cache):
    with running(f"{cache}@job"):
        assert tree.status()["sessions"][0]["name"] == "c@job"
    run(f"{cache}@job", "--", "sh", "-c", f"echo second >{cache}@job/file")
    assert tree.outcome("c@job") == "published"
    assert (cache / "file").read_text() == "second\n"


def test_a_session_in_which_nothing_was_written_natively_is_unchanged_where_that_can_be_told(tree, cache):
    session = f"{cache}@job"
    run(session, "--", "sh", "-c", f"cat {session}/file; ls -l {session}; exec 3<>{session}/file")
    assert tree.outcome("c@job") == ("unchanged" if ZFS else "published")
    code = "import mmap, sys; f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0:1] = b'F'"
    run(session, "--", sys.executable, "-c", code, f"{session}/file")
    assert tree.outcome("c@job") == "published"
    assert (cache / "file").read_text() == "First"


def test_a_process_that_outlives_the_command_holds_it(tree, cache):
    script = "(setsid sh -c 'read x; echo late >late' <&3 3<&- >&- 2>&- &) ; echo started"
    reader, writer = os.pipe()
    session = f"{cache}@job"
    command = [sys.executable, "-m", "zfsfs", "exec", session, "--", "sh", "-c", f"cd {session}; exec 3<&0; {script}"]
    subprocess.run(command, stdin=reader, stdout=subprocess.DEVNULL, check=True)
    os.close(reader)
    until(lambda: any("sh (pid" in " ".join(each["holders"]) for each in tree.status()["native"]))
    assert [each["name"] for each in tree.status()["sessions"]] == ["c@job"]
    os.close(writer)
    assert tree.outcome("c@job") == "published"
    assert (cache / "late").read_text() == "late\n"


@pytest.mark.parametrize("whom", ["command", "all"])
def test_killing_it_ends_the_hold(tree, cache, whom):
    with running(f"{cache}@job") as process:
        os.kill(process.pid, signal.SIGKILL)
    until_free(tree)
    assert tree.outcome("c@job") in ("published", "unchanged")


def test_a_client_that_dies_before_it_has_mounted_holds_nothing(tree, build):
    code = (
        f"import os, sys; from zfsfs.native.client import Natives;Natives([{str(build)!r}]); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    until_free(tree)
    os.rename(build, tree / "results/b")


def test_what_could_not_be_given_out_holds_nothing(unmounted, tmp_path):
    tree = unmounted
    tree.mount_changed("nowhere", tmp_path)
    folder = tree / "builds/b"
    folder.mkdir()
    (tmp_path / "nowhere").touch()
    done = run(folder, "--", "true")
    assert (done.returncode, done.stderr) == (125, "zfsfs: it lies on no mount that can be seen\n")
    until_free(tree)
    folder.rmdir()


def test_unmounting_the_tree_is_refused_while_something_is_native(tree, build):
    os.rename(build, tree / "results/b")
    with running(tree / "results/b"):
        assert "results/b" in zfsfs("umount", tree.path, expect=4).stderr


def dies(tree):
    """The daemon is killed."""
    pidfd = os.pidfd_open(tree.pid)
    os.kill(tree.pid, signal.SIGKILL)
    select.select([pidfd], [], [])
    os.close(pidfd)


@pytest.mark.parametrize("end", [lambda tree: tree.umount("--force"), dies], ids=["forced", "killed"])
def test_what_is_native_when_the_daemon_ends_is_never_published_half(tree, cache, end):
    session = f"{cache}@job"
    # A dataset is there until nobody is in it; a directory is removed from under who is.
    script = f"cd {session}; echo half >file; echo in; read x; exec 2>&-; echo more >>file"
    command = [sys.executable, "-m", "zfsfs", "exec", session, "--", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        end(tree)
        tree.mount()
        assert (cache / "file").read_text() == "first"
        process.communicate("\n")
    assert (cache / "file").read_text() == "first"
    tree.closed()


# bind.


@root_only
def test_bind_holds_until_it_is_unmounted(tree, cache, target):
    zfsfs("bind", f"{cache}@box", target)
    assert (target / "file").read_text() == "first"
    (target / "file").write_text("bound")
    assert str(target) in tree.status()["native"][0]["holders"][0]
    zfsfs("unbind", target)
    assert os.listdir(target) == []
    assert tree.outcome("c@box") == "published"
    assert (cache / "file").read_text() == "bound"


@root_only
def test_a_bound_mount_in_another_namespace_holds_after_unbind(tree, cache, target):
    zfsfs("bind", f"{cache}@box", target)
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo in; read x"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as box:
        assert box.stdout is not None
        assert box.stdin is not None
        box.stdout.readline()
        zfsfs("unbind", target)
        until(lambda: f"(pid {box.pid})" in str(tree.status()["native"]))
        assert [each["name"] for each in tree.status()["sessions"]] == ["c@box"]
        box.kill()
    until_free(tree)
    tree.closed()


@root_only
def test_what_is_lazily_unmounted_is_held_while_somebody_is_in_it(tree, cache, target):
    zfsfs("bind", f"{cache}@box", target)
    with subprocess.Popen(["sh", "-c", "echo in; read x"], cwd=target, stdin=-1, stdout=-1) as inside:
        assert inside.stdout is not None
        assert inside.stdin is not None
        inside.stdout.readline()
        assert "can't be unmounted" in zfsfs("unbind", target, expect=4).stderr
        subprocess.run(["umount", "-l", target], check=True)
        until(lambda: "working directory of sh" in str(tree.status()["native"]))
        inside.stdin.close()
    until_free(tree)
    tree.closed()


@root_only
def test_a_link_in_a_build_does_not_make_holders_of_those_who_are_where_it_leads(tree, build, tmp_path):
    (build / tmp_path.parts[1]).symlink_to(f"/{tmp_path.parts[1]}")
    with (tmp_path / "file").open("x"):
        assert run(build, "--", "true").returncode == 0
        until_free(tree)


@root_only
def test_a_daemon_that_is_stopped_keeps_nobody_from_unmounting_what_is_anothers(tree, build, target, monkeypatch):
    monkeypatch.setattr("zfsfs.native.client._PATIENCE", 0.2)
    zfsfs("bind", build, target)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as other:
        place = os.path.join(wire.folder(), "0-stopped.sock")
        other.bind(place)
        try:
            other.listen()
            assert unbind(str(target))
            assert not unbind(str(target)), "nobody's, and all were asked"
        finally:
            os.unlink(place)


@root_only
def test_unbind_unmounts_nothing_else(tree, tmp_path):
    assert "no native mount" in zfsfs("unbind", tmp_path, expect=6).stderr
    assert "no native mount" in zfsfs("unbind", tree.path, expect=6).stderr


@root_only
def test_users_can_be_mapped(tree, build, target):
    os.chown(build / "file", 5, 6)
    done = subprocess.run(
        [sys.executable, "-m", "zfsfs", "bind", "--map-users", "0:100000:65536", build, target],
        capture_output=True,
        text=True,
        check=False,
    )
    if "the filesystem can't do it" in done.stderr:
        pytest.skip("this filesystem knows no mapped mounts")
    assert done.stderr == ""
    st = (target / "file").stat()
    assert (st.st_uid, st.st_gid) == (100005, 100006)
    os.chown(target, 100000, 100000)
    zfsfs("unbind", target)
    until_free(tree)
    assert (build / "file").stat().st_uid == 5


def test_a_bad_mapping_is_one_line(build, tmp_path):
    for text in ("1", "0:0:0", "a:b:c", "0:0:5000000000", "4294967295:0:2"):
        assert "--map-users" in zfsfs("bind", "--map-users", text, build, tmp_path, expect=2).stderr

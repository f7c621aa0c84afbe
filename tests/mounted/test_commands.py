"""The command line: what it says, and how it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from mounted_tree import until, zfsfs

from zfsfs import mountpoint
from zfsfs.cli import _parser, mounted
from zfsfs.errors import MountError
from zfsfs.mountpoint import FSTYPE, is_dead, mounted_type, trees


def one_line(*arguments: object, expect: int) -> str:
    """A command that fails says why in one line."""
    done = zfsfs(*arguments, expect=expect)
    assert done.stderr.startswith("zfsfs: ")
    assert done.stderr.count("\n") == 1
    return done.stderr


def test_bad_usage_is_exit_code_2(tmp_path):
    one_line(expect=2)
    one_line("frobnicate", expect=2)
    one_line("mount", "x", expect=2)
    one_line("mount", tmp_path, tmp_path, "-o", "frobnicate", expect=2)
    one_line("mount", tmp_path, tmp_path, "--linger", "-1", expect=2)


@pytest.mark.parametrize("way", [[], ["-f"]])
def test_a_log_that_cannot_be_written_is_named(tmp_path, way):
    (tmp_path / "mnt").mkdir()
    log = tmp_path / "nothing/log"
    said = one_line("mount", *way, tmp_path / "store", tmp_path / "mnt", "--log", log, expect=2)
    assert said == f"zfsfs: the log {log} can't be written: No such file or directory\n"


def test_a_store_that_cannot_be_reached_is_exit_code_3(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "mnt").mkdir()
    assert "holds no zfsfs store" in one_line("mount", tmp_path, tmp_path / "mnt", expect=3)


def test_a_second_daemon_is_refused_with_the_pid_of_the_first(tree, tmp_path):
    (tmp_path / "other").mkdir()
    assert str(tree.pid) in one_line("mount", tree.store, tmp_path / "other", expect=5)


def test_a_mountpoint_must_be_an_empty_directory(tree, tmp_path):
    (tmp_path / "full/x").mkdir(parents=True)
    assert "not empty" in one_line("mount", tree.store, tmp_path / "full", expect=6)
    assert "does not exist" in one_line("mount", tree.store, tmp_path / "nothing", expect=6)
    assert "already" in one_line("mount", tree.store, tree.path, expect=6)
    one_line("umount", tmp_path / "full", expect=6)
    one_line("status", tmp_path / "full", expect=6)


def test_unmounting_ends_no_process_that_does_not_serve_the_tree(tree, monkeypatch):
    """Anybody may mount what calls itself a zfsfs, and say what he likes of himself."""
    with subprocess.Popen(["sleep", "60"]) as other:
        monkeypatch.setattr(mounted, "read_status", lambda path: tree.status() | {"pid": other.pid})
        for arguments in (["umount", "--force", tree.path], ["umount", tree.path]):
            with pytest.raises(MountError, match=f"process {other.pid} does not serve"):
                unmount(arguments)
        monkeypatch.setattr(mountpoint, "owner", lambda path: 1234)
        with pytest.raises(MountError, match="mounted by user 1234"):
            unmount(["umount", "--force", tree.path])
        assert other.poll() is None
        other.kill()
    monkeypatch.undo()
    assert mountpoint.owner(str(tree.path)) == os.geteuid()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes mount namespaces")
def test_unmounting_names_those_who_have_the_tree_in_a_namespace_of_their_own(tree, monkeypatch, capsys):
    monkeypatch.setattr(mounted, "_SILENCE", 0.2)
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo in; read x"]
    with subprocess.Popen(command, stdin=-1, stdout=-1) as other, ThreadPoolExecutor() as pool:
        assert other.stdout is not None
        other.stdout.readline()
        ended = pool.submit(unmount, ["umount", tree.path])
        said = until(lambda: capsys.readouterr().err)
        assert f"waiting for mount at {tree.path} of sh (pid {other.pid})\n" in said
        assert not ended.done()
        other.communicate()
        ended.result(60)


def unmount(arguments: list[object]) -> None:
    options = _parser("umount").parse_args(list(map(str, arguments)))
    options.run(options)


def test_a_mountpoint_may_be_a_link(unmounted, folder):
    tree, link = unmounted, folder / "link"
    os.symlink("second", link)
    os.symlink(tree.path, folder / "second")

    def mount() -> int:
        zfsfs("mount", tree.store, link, "--linger", "0.1", "--log", tree.log)
        pid: int = json.loads(zfsfs("status", "--json", link).stdout)["pid"]
        assert pid == tree.pid
        return pid

    pid = mount()
    assert "already" in one_line("mount", tree.store, link, expect=6)
    zfsfs("build", link, "one", "--", "touch", "made")
    assert (tree / "results/one/made").exists()
    for number in (signal.SIGTERM, signal.SIGKILL):
        ended = os.pidfd_open(pid)
        os.kill(pid, number)
        assert select.select([ended], [], [], 60)[0]
        os.close(ended)
        assert (mounted_type(str(tree.path)) == FSTYPE) is (number == signal.SIGKILL)
        if number == signal.SIGKILL:
            assert "its daemon had died" in zfsfs("umount", link).stdout
        pid = mount()
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_dead(str(link)))
    mount()
    zfsfs("umount", link)
    assert mounted_type(str(tree.path)) is None


@pytest.mark.skipif(bool(os.environ.get("ZFSFS_TEST_POOL")), reason="a dataset has no such name")
def test_a_store_may_have_any_path(folder):
    def run(*words: object) -> tuple[int, str]:
        command = [sys.executable, "-m", "zfsfs", *map(str, words)]
        done = subprocess.run(
            command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "utf-8"}, check=False
        )
        return done.returncode, (done.stdout + done.stderr).decode()

    store = folder / os.fsdecode(b"st\xc3\xb6re \xff,\\\n")
    for each in (folder / "mnt", folder / "other"):
        each.mkdir()
    shown = f"{folder}/st\u00f6re \\udcff,\\"
    assert run("mount", store, folder / "mnt", "--log", folder / "log") == (0, "")
    assert (str(store), str(folder / "mnt")) in trees()
    code, said = run("mount", store, folder / "other", "--log", folder / "log")
    assert (code, said.count("\n")) == (5, 1)
    assert shown in said
    for words in (
        ["status", folder / "mnt"],
        ["umount", folder / "mnt"],
        ["check", store],
        ["recover", "--dry-run", store],
    ):
        code, said = run(*words)
        assert code == 0
        assert said.startswith(shown if said else "")


def test_unmounting_what_is_in_use_says_so_and_drops_nothing(tree):
    (tree / "builds/b").mkdir()
    assert "builds are running: b" in one_line("umount", tree.path, expect=4)
    (tree / "builds/b").rmdir()
    (tree / "caches/c").mkdir()
    fd = os.open(tree / "caches/c", os.O_RDONLY)
    assert "c" in one_line("umount", tree.path, expect=4)
    assert tree.status()["sessions"][0]["open"] == 1
    os.close(fd)


def test_an_older_daemon_is_looked_at_and_unmounted(unmounted, tmp_path):
    tree = unmounted
    tree.mount_changed("older", tmp_path)
    (tree / "builds/b").mkdir()
    assert "build    b" in zfsfs("status", tree.path).stdout
    assert "b" in one_line("umount", tree.path, expect=4)
    (tree / "builds/b").rmdir()
    zfsfs("umount", tree.path)


@pytest.mark.parametrize(("to", "code"), [("/dev/full", 1), ("&-", 0)])
def test_an_output_that_can_not_be_written_is_a_line_and_a_code(tree, to, code):
    command = f'exec "$0" -m zfsfs status "$1" >{to}'
    words = ["sh", "-c", command, sys.executable, str(tree.path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (code, code), done.stderr


def test_streams_that_are_closed_keep_nothing_from_being_mounted(unmounted):
    words = ["mount", unmounted.store, unmounted.path, "--log", unmounted.log]
    command = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-m", "zfsfs", *map(str, words)]
    subprocess.run(command, check=True)
    assert unmounted.status()["builds"] == []


def test_status_check_and_recover_tell(tree):
    (tree / "caches/c").mkdir()
    (tree / "builds/b").mkdir()
    told = zfsfs("status", tree.path).stdout
    assert "cache    c generation 0" in told
    assert "build    b" in told
    (tree / "builds/b").rmdir()
    tree.umount()
    assert "all is well" in zfsfs("check", tree.store).stdout
    assert "nothing to do" in zfsfs("recover", "--dry-run", tree.store).stdout
    tree.mount()


def test_a_foreground_daemon_ends_with_a_signal(unmounted):
    command = [sys.executable, "-m", "zfsfs", "mount", "-f", unmounted.store, unmounted.path, "--log", unmounted.log]
    with subprocess.Popen(list(map(str, command))) as daemon:
        while not (unmounted / "caches").exists():
            assert daemon.poll() is None
        daemon.terminate()
        assert daemon.wait() == 0


@pytest.mark.parametrize("how", ["ignored", "blocked"])
def test_a_daemon_hears_signals_whoever_has_started_it(unmounted, how):
    def begin() -> None:
        if how == "ignored":
            signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        else:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD, signal.SIGTERM])

    words = [unmounted.store, unmounted.path, "--log", unmounted.log, "--builder", "t=true"]
    command = [sys.executable, "-m", "zfsfs", "mount", *map(str, words)]
    subprocess.run(command, preexec_fn=begin, check=True)
    daemon = os.pidfd_open(unmounted.pid)
    try:
        (unmounted / "builds/t+b").mkdir()
        until((unmounted / "results/b").exists)
    finally:
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
        ended = select.select([daemon], [], [], 60)[0]
        if not ended:
            signal.pidfd_send_signal(daemon, signal.SIGKILL)
        os.close(daemon)
    assert ended


def test_a_service_manager_that_can_not_be_told_keeps_nothing_from_being_mounted(unmounted):
    command = [sys.executable, "-m", "zfsfs", "mount", "-f", unmounted.store, unmounted.path, "--log", unmounted.log]
    environment = {**os.environ, "NOTIFY_SOCKET": "vsock:2:1234"}
    unmounted.log.touch()
    with subprocess.Popen(list(map(str, command)), env=environment) as daemon:
        until(lambda: daemon.poll() is not None or "can't be told" in unmounted.log.read_text())
        assert (unmounted / "caches").exists()
        daemon.terminate()
        assert daemon.wait() == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user")
@pytest.mark.skipif(bool(os.environ.get("ZFSFS_TEST_POOL")), reason="a pool needs root")
def test_an_ordinary_user_mounts_a_directory_for_itself(tmp_path_factory):
    import shutil
    import tempfile

    folder = tempfile.mkdtemp(prefix="zfsfs-")
    try:
        os.chown(folder, 1234, 1234)
        user = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "env", "HOME=/"]
        program = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from zfsfs.cli import main; main()"
        # The environment of the tests may lie where an ordinary user can't look.
        if subprocess.run([*user, sys.executable, "-c", "import pyfuse3, trio"], check=False).returncode:
            pytest.skip("an ordinary user can't read this Python environment")
        # There may be a /dev/fuse for root only, and fusermount3 serves users that have a name.
        os.mknod(f"{folder}/fuse", 0o600 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(f"{folder}/fuse", 0o666)
        Path(folder, "passwd").write_text(Path("/etc/passwd").read_text() + "anna:x:1234:1234::/:/bin/sh\n")
        script = f"""
            set -e
            cd {folder}; mkdir mnt
            z() {{ {sys.executable} -c "{program}" "{os.getcwd()}" "$@"; }}
            z mount ./st\u00f6re,x mnt --linger 0
            mkdir mnt/builds/b; echo x > mnt/builds/b/f
            mkdir mnt/builds/b/listed; touch mnt/builds/b/listed/name; chmod 444 mnt/builds/b/listed
            ls mnt/builds/b/listed
            mv mnt/builds/b mnt/results/b; cat mnt/results/b/f
            z umount mnt
        """
        there = 'mount --bind "$0/fuse" /dev/fuse; mount --bind "$0/passwd" /etc/passwd; exec "$@"'
        command = ["unshare", "-m", "sh", "-ec", there, folder, *user, "sh", "-c", script]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.stdout, done.stderr) == ("name\nx\n", "")
    finally:
        shutil.rmtree(folder)

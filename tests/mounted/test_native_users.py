"""Who may have what natively: root, others beside it, and an ordinary user with a daemon of its own."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from mounted_tree import until

import zfsfs

ZFS = bool(os.environ.get("ZFSFS_TEST_POOL"))
#: Somebody whom fusermount3 knows by name.
UID = 1
USER = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "env", "HOME=/"]
PROGRAM = "import sys; sys.path[:0] = sys.argv.pop(1).split(':'); from zfsfs.cli import main; main()"

#: As `zfsfs exec`, by somebody who becomes root of his user namespace, and may there what root may.
AS_ROOT = """
import os, sys
sys.path[:0] = sys.argv.pop(1).split(':')
from zfsfs import syscalls
from zfsfs.native.client import Natives
from zfsfs.native.mounts import attach
path, kind, *command = sys.argv[1:]
uid, gid = os.getuid(), os.getgid()
with Natives([path], read_only=kind == "read-only") as natives:
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    syscalls.receive_mounts_only()
    for layer in natives.layers:
        attach(layer.native, layer.spot)
os.chdir(path)
os.execvp(command[0], command)
"""


@pytest.fixture(scope="module")
def program() -> Iterator[list[str]]:
    """zfsfs as an ordinary user can run it: a copy of it, as ours may lie in root's home."""
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with tempfile.TemporaryDirectory(prefix="zfsfs-") as copy:
        os.chmod(copy, 0o755)
        shutil.copytree(Path(zfsfs.__file__).parent, f"{copy}/zfsfs", ignore=shutil.ignore_patterns("__pycache__"))
        paths = ":".join([copy, *site.getsitepackages()])
        for each in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
            words = [each, "-c", PROGRAM, paths]
            if not subprocess.run([*USER, *words, "--help"], capture_output=True, check=False, cwd="/").returncode:
                yield words
                return
    pytest.skip("needs a Python that ordinary users can run")


@pytest.fixture(scope="module")
def as_user(program: list[str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs zfsfs as that user."""

    def run(*words, cwd="/"):
        command = [*USER, *program, *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, timeout=60)

    return run


zfs_only = pytest.mark.skipif(not ZFS, reason="a directory store is native for its own user only")


@pytest.fixture
def build(tree):
    """A build of the ordinary user's."""
    folder = tree / "builds/mine"
    folder.mkdir(mode=0o750)
    (folder / "file").write_text("mine")
    os.chown(folder / "file", UID, UID)
    os.chown(folder, UID, UID)
    yield folder
    until(lambda: not tree.status()["native"])
    if folder.exists():
        folder.rmdir()


@zfs_only
def test_an_ordinary_user_has_its_own_build_natively(tree, build, as_user):
    script = f"id -u; cat file; echo made >made; grep {build} /proc/self/mountinfo"
    done = as_user("exec", "--cwd", build, build, "--", "sh", "-c", script)
    assert done.stderr == ""
    uid, text, *_ = done.stdout.split()
    assert (uid, text[:4]) == (str(UID), "mine")
    assert "nosuid,nodev" in done.stdout
    assert (build / "made").stat().st_uid == UID
    os.rename(build, tree / "results/mine")
    done = as_user("exec", tree / "results/mine", "--", "cat", tree / "results/mine/made")
    assert done.stdout == "made\n"


@zfs_only
def test_what_one_may_not_write_is_not_native_for_him(tree, build, as_user):
    other = tree / "builds/other"
    other.mkdir(mode=0o755)
    done = as_user("exec", other, "--", "true")
    assert done.returncode == 125
    assert "not yours to write" in done.stderr
    other.chmod(0o700)
    assert "Permission denied" in as_user("exec", other, "--", "true").stderr
    other.rmdir()
    assert tree.status()["native"] == []


@zfs_only
@pytest.mark.parametrize("kind", ["read-only", "result", "writable"])
def test_a_user_clears_no_flags_of_what_he_gets(tree, build, program, kind):
    """Whoever has something natively to read keeps nobody else from writing, so he may not come to write either."""
    path, flags = build, ["ro,nosuid,dev", "ro,suid,nodev", "rw,nosuid,nodev"]
    if kind == "result":
        path = tree / "results/mine"
        os.rename(build, path)
    elif kind == "writable":
        flags = ["rw,nosuid,dev", "rw,suid,nodev"]
    tries = "; ".join(f"mount -o remount,bind,{each} . 2>/dev/null && echo {each}" for each in flags)
    command = [*USER, *program[:2], AS_ROOT, program[3], str(path), kind]
    done = subprocess.run(
        [*command, "sh", "-c", f"cat file; {tries}; echo , written >>file; cat file"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stdout == ("minemine, written\n" if kind == "writable" else "minemine"), done.stderr
    assert kind == "writable" or "Read-only file system" in done.stderr
    until(lambda: not tree.status()["native"])
    assert (path / "file").read_text() == done.stdout.removeprefix("mine")


@pytest.mark.skipif(ZFS, reason="of directory stores")
def test_a_directory_store_of_roots_is_native_for_nobody_else(tree, build, as_user):
    done = as_user("exec", build, "--", "true")
    assert done.returncode == 125
    assert "for root and for the user who has mounted it" in done.stderr


def test_only_root_may_map_users(tree, build, as_user, tmp_path):
    done = as_user("bind", "--map-users", f"{UID}:{UID}:1", build, "/tmp")
    assert done.returncode != 0
    assert "only root may map users" in done.stderr or "can't be mapped" in done.stderr
    assert done.stderr.count("\n") == 1


@zfs_only
def test_bind_without_the_privilege_to_mount_is_refused(tree, build, as_user):
    with tempfile.TemporaryDirectory() as target:
        os.chown(target, UID, UID)
        done = as_user("bind", build, target)
        assert done.returncode != 0
        assert "you may not mount there" in done.stderr
    until(lambda: not tree.status()["native"])


@pytest.mark.skipif(
    subprocess.run([*USER, "test", "-w", "/dev/fuse"], check=False).returncode != 0,
    reason="/dev/fuse is not open to all, as udev has it",
)
def test_without_root_the_same_in_a_user_namespace(as_user, program):
    with tempfile.TemporaryDirectory(prefix="zfsfs-") as name:
        folder = Path(name)
        os.chown(folder, UID, UID)
        mnt = folder / "mnt"

        def ok(*words):
            done = as_user(*words, cwd=folder)
            assert (done.returncode, done.stderr) == (0, ""), done
            return done.stdout

        subprocess.run([*USER, "mkdir", mnt], check=True)
        ok("mount", "./store", "mnt", "--linger", "0.1", "--log", folder / "log")
        try:
            script = (
                f"set -e; cd {mnt}; mkdir builds/b caches/c; echo tree >builds/b/file; exec 9<caches/c; echo 1 >&2"
            )
            subprocess.run([*USER, "sh", "-c", script], check=True, stderr=subprocess.DEVNULL)
            script = f"id -u; cat file; echo native >file; echo hot >{mnt}/caches/c/hot"
            out = ok("exec", "--cwd", mnt / "builds/b", "mnt/builds/b", "mnt/caches/c", "--", "sh", "-c", script)
            assert out.startswith(f"{UID}\ntree\n")
            script = f"set -e; cd {mnt}; cat builds/b/file; mv builds/b results/b"
            done = subprocess.run([*USER, "sh", "-c", script], check=True, capture_output=True, text=True)
            assert done.stdout == "native\n"
            done = as_user("exec", mnt / "results/b", "--", "touch", mnt / "results/b/file")
            assert "Read-only file system" in done.stderr
            hot = [*USER, "cat", mnt / "caches/c/hot"]
            until(lambda: subprocess.run(hot, capture_output=True, check=False).stdout == b"hot\n")
            done = as_user("build", mnt, "made", "--native", "--", "sh", "-c", "echo 1 >one")
            assert done.returncode == 0, done.stderr
            # A mount of its own somewhere else, in a namespace of its own.
            subprocess.run([*USER, "mkdir", folder / "target"], check=True)
            script = '"$@" && cat target/one && touch target/one'
            words = [*program, "bind", mnt / "results/made", "target"]
            done = subprocess.run(
                [*USER, "unshare", "-Urm", "sh", "-c", script, "sh", *words],
                capture_output=True,
                text=True,
                check=False,
                cwd=folder,
            )
            assert done.stdout == "1\n", done.stderr
            assert "Read-only file system" in done.stderr
        finally:
            done = as_user("umount", mnt)
            if done.returncode:
                as_user("umount", "--force", mnt)
        assert done.returncode == 0, done.stderr
        assert " ERROR " not in (folder / "log").read_text()

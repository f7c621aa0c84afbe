"""Mounts that are given to users whom nothing is to be trusted with: their flags stay."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from zfsfs import syscalls
from zfsfs.errors import Refused
from zfsfs.native import locked
from zfsfs.native.watching import look, where

CAN_UNSHARE = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0
pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not CAN_UNSHARE, reason="needs root and user namespaces")

UID = 1
#: Mounts a descriptor at a directory, as root of a user namespace, says what can be cleared there, and unmounts it.
CLEARING = """
import os, subprocess, sys
sys.path.insert(0, sys.argv[2])
from zfsfs import syscalls
fd = os.open(sys.argv[1], os.O_PATH)
syscalls.move_mount(int(sys.argv[3]), fd)
os.chdir(sys.argv[1])
for flags in sys.argv[4:]:
    done = subprocess.run(["mount", "-o", f"remount,bind,{flags}", "."], capture_output=True)
    print(flags, done.returncode == 0)
try:
    open("made", "w")
    print("written")
except OSError as failure:
    print(failure.errno)
os.chdir("/")
subprocess.run(["umount", "-l", sys.argv[1]], check=True)  # the test has it open
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="zfsfs-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def detached(*, read_only: bool) -> int:
    flags = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    # Its own user's, so that only the flags are in the way.
    mount = syscalls.detached_mount("tmpfs", "zfsfs-test", flags)
    ours = os.open(".", os.O_RDONLY, dir_fd=mount)
    os.chmod(ours, 0o777)
    os.close(ours)
    if read_only:
        syscalls.set_mount_attributes(mount, flags | syscalls.MOUNT_ATTR_RDONLY)
    return mount


def cleared(mount: int, folder: Path, *flags: str) -> list[str]:
    """What an ordinary user clears of the flags of a mount, and what comes of writing in it."""
    package = folder / "package"
    package.mkdir()
    subprocess.run(["cp", "-r", Path(syscalls.__file__).parent, package], check=True)
    (folder / "place").mkdir()
    user = ["setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "unshare", "-Urm"]
    words = ["/usr/bin/python3", "-c", CLEARING, str(folder / "place"), str(package), str(mount), *flags]
    done = subprocess.run([*user, *words], pass_fds=(mount,), capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


FLAGS = ("ro,nosuid,dev", "ro,suid,nodev", "rw,nosuid,nodev")


def test_what_is_not_locked_is_cleared_by_who_gets_it(folder):
    """Else the next test would show nothing."""
    mount = detached(read_only=True)
    try:
        assert cleared(mount, folder, *FLAGS) == [f"{each} True" for each in FLAGS] + ["written"]
    finally:
        os.close(mount)


@pytest.mark.parametrize(
    ("read_only", "flags", "writing"),
    [(True, FLAGS, str(errno.EROFS)), (False, ("rw,nosuid,dev", "rw,suid,nodev"), "written")],
    ids=["read-only", "writable"],
)
def test_what_is_locked_stays_and_what_may_be_written_can_still_be(folder, read_only, flags, writing):
    given = detached(read_only=read_only)
    mount = locked.lock(given)
    os.close(given)
    try:
        assert not os.get_inheritable(mount)
        assert cleared(mount, folder, *flags) == [f"{each} False" for each in flags] + [writing]
    finally:
        os.close(mount)


def test_nothing_of_it_is_left(folder):
    """Else the daemon would take it for somebody who has it natively."""
    before = sorted(os.listdir("/proc/self/fd"))
    given = detached(read_only=True)
    place = where(given, own_filesystem=True)
    mount = locked.lock(given)
    assert where(mount, own_filesystem=True) == place
    os.close(given)
    assert look({place: mount}, thoroughly=True) == {place: []}
    os.close(mount)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_where_it_can_not_be_done_the_user_is_told(monkeypatch):
    folder = os.open("/", os.O_RDONLY)  # which is no mount that could be moved
    try:
        with pytest.raises(Refused, match="Invalid argument"):
            locked.lock(folder)
        monkeypatch.setattr(sys, "executable", "/bin/false")
        with pytest.raises(Refused, match="has ended with 1"):
            locked.lock(folder)
        monkeypatch.setattr(sys, "executable", "/no/such/program")
        with pytest.raises(Refused, match="No such file"):
            locked.lock(folder)
    finally:
        os.close(folder)


def test_without_user_namespaces_the_user_is_told():
    code = """
import sys
sys.path.insert(0, sys.argv[1])
from zfsfs import errors, syscalls
from zfsfs.native import locked
with open("/proc/sys/user/max_user_namespaces", "w") as file:
    file.write("0")
try:
    locked.lock(syscalls.detached_mount("tmpfs", "zfsfs-test", 0))
except errors.Refused as failure:
    print(failure)
"""
    package = Path(syscalls.__file__).parent.parent
    # A user namespace has limits of its own.
    words = ["unshare", "-Urm", sys.executable, "-c", code, package]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert "there is no user namespace (unshare: No space left on device)" in done.stdout

"""What is read and written through the mount behaves as on the filesystem beneath."""

from __future__ import annotations

import errno
import mmap
import os
import stat
import subprocess

import pytest
from errnos import failing

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as several users")


@pytest.fixture
def build(tree):
    folder = tree / "builds/x"
    os.mkdir(folder, 0o777)
    os.chmod(folder, 0o1777)
    yield folder
    subprocess.run(["rm", "-rf", folder], check=True)


def test_an_unlinked_file_lives_while_it_is_open(build):
    with open(build / "f", "w+") as file:
        file.write("x" * 10000)
        os.unlink(build / "f")
        file.flush()
        os.ftruncate(file.fileno(), 5000)
        os.fchmod(file.fileno(), 0o600)
        assert os.fstat(file.fileno()).st_nlink == 0
        file.seek(0)
        assert file.read() == "x" * 5000


def cut_by_descriptor(path):
    with open(path, "r+b") as file:
        file.truncate(5)


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        (lambda path: os.truncate(path, 5), b"xxxxx"),
        (cut_by_descriptor, b"xxxxx"),
        (lambda path: open(path, "wb").close(), b""),
    ],
    ids=["truncate", "ftruncate", "O_TRUNC"],
)
def test_a_large_file_is_cut_off(build, cut, left):
    path = build / "f"
    path.write_bytes(b"x" * (16 << 20))
    with open(path, "rb") as file:
        os.fsync(file.fileno())  # only then does ZFS count its blocks
    before = os.stat(path)
    cut(path)
    after = os.stat(path)
    assert (after.st_size, path.read_bytes()) == (len(left), left)
    assert after.st_mtime_ns >= before.st_mtime_ns
    os.truncate(path, 8 << 20)
    assert path.read_bytes() == left.ljust(8 << 20, b"\0")


def test_hard_links_are_one_file(build):
    (build / "a").write_text("x")
    os.link(build / "a", build / "b")
    assert os.path.samefile(build / "a", build / "b")
    os.unlink(build / "a")
    (build / "b").write_text("longer")
    os.mkdir(build / "d")
    os.rename(build / "b", build / "d/c")
    assert (build / "d/c").read_text() == "longer"
    assert os.stat(build / "d/c").st_nlink == 1


def test_rename_replaces_and_a_directory_moves_with_all_beneath(build):
    os.makedirs(build / "a/b/c")
    (build / "a/b/c/f").write_text("deep")
    (build / "g").write_text("old")
    with open(build / "a/b/c/f") as file:
        os.rename(build / "a", build / "z")
        assert (build / "z/b/c/f").read_text() == "deep"
        os.rename(build / "z/b/c/f", build / "g")
        assert file.read() == "deep"
    assert (build / "g").read_text() == "deep"
    with failing(errno.ENOTEMPTY):
        os.rmdir(build / "z")


def test_shared_mappings_and_files_agree(build):
    (build / "f").write_bytes(bytes(8192))
    with open(build / "f", "r+b") as file, mmap.mmap(file.fileno(), 8192) as mapped:
        mapped[5000:5005] = b"hello"
        mapped.flush()
        assert os.pread(file.fileno(), 5, 5000) == b"hello"
    assert (build / "f").read_bytes()[5000:5005] == b"hello"


def test_append_truncate_and_sparse_files(build):
    with open(build / "f", "ab") as one, open(build / "f", "ab") as two:
        for _ in range(10):
            one.write(b"1")
            one.flush()
            two.write(b"2")
            two.flush()
    assert (build / "f").read_bytes() == b"12" * 10
    os.truncate(build / "f", 1 << 32)
    assert (build / "f").stat().st_size == 1 << 32
    assert (build / "f").stat().st_blocks < 1000
    os.truncate(build / "f", 3)
    assert (build / "f").read_bytes() == b"121"


def test_times_have_nanoseconds_and_links_have_their_own(build):
    (build / "f").touch()
    os.symlink("f", build / "l")
    os.utime(build / "f", ns=(123, 1_000_000_001))
    os.utime(build / "l", ns=(5, 7), follow_symlinks=False)
    assert (build / "f").stat().st_mtime_ns == 1_000_000_001
    assert (build / "l").lstat().st_mtime_ns == 7
    assert os.readlink(build / "l") == "f"


def test_extended_attributes(build):
    (build / "f").touch()
    os.setxattr(build / "f", "user.mine", b"value")
    assert os.getxattr(build / "f", "user.mine") == b"value"
    assert os.listxattr(build / "f") == ["user.mine"]
    os.removexattr(build / "f", "user.mine")
    with failing(errno.ENODATA):
        os.getxattr(build / "f", "user.mine")
    assert os.getxattr(build, "user.zfsfs.state") == b"building"
    with failing(errno.EPERM):
        os.setxattr(build, "user.zfsfs.state", b"x")


def test_directories_are_listed_once_each_while_they_change(build):
    names = {f"file {number}" for number in range(3000)}
    for name in names:
        (build / name).touch()
    seen = []
    with os.scandir(build) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(build / entry.name)
            (build / f"new {len(seen)}").touch() if len(seen) < 100 else None
    assert len(seen) == len(set(seen))
    assert names <= set(seen)


def test_a_name_of_255_bytes_and_a_long_link(build):
    (build / ("x" * 255)).write_text("x")
    with failing(errno.ENAMETOOLONG):
        (build / ("x" * 256)).touch()
    os.symlink("y" * 4095, build / "link")
    assert os.readlink(build / "link") == "y" * 4095


@as_root
def test_what_a_user_makes_belongs_to_the_user(build):
    script = f"cd '{build}' && umask 027 && touch f && mkdir d && ln -s f l && mkfifo p && id -g"
    command = ["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups", "sh", "-c", script]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "2345\n"
    for name in "fdlp":
        st = os.lstat(build / name)
        assert (st.st_uid, st.st_gid) == (1234, 2345)
    assert stat.S_IMODE((build / "f").stat().st_mode) == 0o640
    assert stat.S_IMODE((build / "d").stat().st_mode) == 0o750


@as_root
def test_users_cannot_change_what_is_another_s(build, tree):
    (build / "f").write_text("mine")
    (build / "f").chmod(0o600)
    (build / "d").mkdir(mode=0o700)
    for script in (f"cat '{build}/f'", f"touch '{build}/d/x'", f"rm -f '{build}/f'", f"rmdir '{build}'",
                   f"chmod 666 '{build}/f'", f"mv '{build}' '{tree.path}/results/x'"):  # fmt: skip
        command = ["setpriv", "--reuid=1234", "--regid=1234", "--clear-groups", "sh", "-c", script]
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0, script
    assert (build / "f").read_text() == "mine"


@as_root
def test_a_set_gid_directory_gives_its_group(build):
    (build / "d").mkdir()
    os.chown(build / "d", 0, 777)
    (build / "d").chmod(0o2777)
    command = ["setpriv", "--reuid=1234", "--regid=2345", "--clear-groups", "mkdir", build / "d/e"]
    subprocess.run(command, check=True)
    st = (build / "d/e").stat()
    assert (st.st_uid, st.st_gid, bool(st.st_mode & stat.S_ISGID)) == (1234, 777, True)


def test_space_is_told(tree):
    found = os.statvfs(tree.path)
    assert found.f_blocks > 0
    assert 0 < found.f_bavail <= found.f_blocks

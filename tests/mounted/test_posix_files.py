"""Contents of files: opening, reading, writing, truncating, mapping, holes, times."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import resource
import signal
import subprocess

import pytest
from comparing import ANNA, acting, compared, look, moved, opened, read, tick, tried, write

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)

_FS_IOC_GETFLAGS, _FICLONE = 0x80086601, 0x40049409
_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # fallocate(2)


def flags_told(name: str, flags: int) -> object:
    """What fcntl tells of a file opened with these flags."""
    with opened(name, flags) as fd:
        return fcntl.fcntl(fd, fcntl.F_GETFL) & ~0o100000


@compared()
def test_open_of_everything_with_every_flag():
    write("f", b"x")
    os.mkdir("d")
    os.symlink("f", "l")
    os.symlink("missing", "dangling")
    for name in ("f", "d", "l", "dangling", "new", "f/x", "d/.", "f/"):
        for access in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR, 3):
            for more in (0, os.O_TRUNC, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_EXCL, os.O_APPEND, os.O_NOFOLLOW,
                         os.O_DIRECTORY, os.O_CREAT | os.O_DIRECTORY, os.O_PATH, os.O_CREAT | os.O_NOFOLLOW,
                         os.O_CREAT | os.O_TRUNC, os.O_NONBLOCK, os.O_SYNC, os.O_NOATIME, os.O_ASYNC):  # fmt: skip
                yield name, access, oct(more), tried(flags_told, name, access | more), look(name)
                if name == "new":
                    tried(os.unlink, name)


@compared()
def test_modes_in_which_one_may_not_read_one_s_own_new_file():
    for mode in (0, 0o200, 0o400, 0o111):
        with opened(f"{mode:o}", os.O_RDWR | os.O_CREAT | os.O_EXCL, mode) as fd:
            yield os.write(fd, b"through"), os.pread(fd, 10, 0), look(fd)
        fd = tried(os.open, f"{mode:o}", os.O_RDWR)
        yield isinstance(fd, int) or fd


@compared()
def test_descriptors_do_what_they_were_opened_for():
    write("f", b"contents")
    with opened("f", os.O_WRONLY) as fd:
        yield tried(os.read, fd, 1), tried(os.pwrite, fd, b"x", 3), tried(os.ftruncate, fd, 5)
    with opened("f", os.O_RDONLY) as fd:
        yield tried(os.write, fd, b"x"), tried(os.ftruncate, fd, 1), os.read(fd, 20), os.read(fd, 20)
    os.mkdir("d")
    with opened("d", os.O_RDONLY) as fd:
        yield tried(os.read, fd, 1), tried(os.ftruncate, fd, 1), tried(os.pwrite, fd, b"x", 0)


@compared()
def test_truncation_up_and_down():
    write("f", b"0123456789" * 1000)
    for size in (10_000, 9_999, 4096, 4097, 0, 1, 100_000, 5, 1 << 32, 8192, 12_288, 3):
        os.truncate("f", size)
        data = read("f") if size < 200_000 else b""
        yield look("f"), len(data), data[:10], data.rstrip(b"\0")[-10:]
    for size in (-1, -(1 << 40), (1 << 63) - 1):
        yield tried(os.truncate, "f", size), look("f")
    yield tried(os.truncate, "missing", 0), tried(os.truncate, ".", 0), tried(os.truncate, "f/x", 0)


@compared()
def test_what_lies_beyond_a_cut_is_zero_when_the_file_grows_again():
    write("f", b"x" * 10_000)
    with opened("f", os.O_RDWR) as fd:
        for cut, grow in ((5_000, 9_000), (100, 5_000), (4_096, 4_097), (1, 20_000)):
            os.pwrite(fd, b"y" * 20, grow - 20)
            os.ftruncate(fd, cut)
            os.ftruncate(fd, grow)
            yield os.pread(fd, 30_000, 0)
            with mmap.mmap(fd, grow) as mapped:
                yield mapped[:] == os.pread(fd, 30_000, 0)


@compared()
def test_appends_of_several_processes_do_not_mix():
    write("f")
    children = [os.fork() for _ in range(1)]
    lines = b"child\n" if children == [0] else b"parent\n"
    with opened("f", os.O_WRONLY | os.O_APPEND) as fd:
        for _ in range(300):
            os.write(fd, lines)
    if children == [0]:
        os._exit(0)
    os.waitpid(children[0], 0)
    yield sorted(read("f").splitlines()) == [b"child"] * 300 + [b"parent"] * 300
    with opened("f", os.O_RDWR | os.O_APPEND) as fd:
        os.pwrite(fd, b"end", 0)  # appends all the same, see pwrite(2)
        yield read("f")[-3:], os.lseek(fd, 0, os.SEEK_CUR)


@compared()
def test_exclusive_creation_has_one_winner():
    for number in range(10):
        reading, writing = os.pipe()
        children = []
        for _ in range(2):
            child = os.fork()
            if child == 0:
                won = isinstance(tried(os.open, f"f{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY), int)
                os.write(writing, b"1" if won else b"0")
                os._exit(0)
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        yield sorted(os.read(reading, 2))
        os.close(reading)
        os.close(writing)


@compared()
def test_sparse_files_stay_sparse():
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"end", 5 << 30)
        os.fsync(fd)
        yield look(fd), os.pread(fd, 10, 5 << 30), os.pread(fd, 10, 1 << 30), os.fstat(fd).st_blocks < 1000
        os.pwrite(fd, b"middle", (4 << 30) - 3)
        yield os.pread(fd, 10, (4 << 30) - 5)
        os.ftruncate(fd, 4 << 30)
        yield look(fd), os.pread(fd, 10, (4 << 30) - 5)


@compared()
def test_tools_copy_holes_as_holes():
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * 4096, 8 << 20)
        os.ftruncate(fd, 16 << 20)
        os.fsync(fd)  # ZFS finds holes in what has been synced
    subprocess.run(["cp", "--sparse=always", "f", "g"], check=True)
    subprocess.run(["sh", "-c", "tar -cSf t f; mkdir x; tar -C x -xf t; rsync -S f s"], check=True)
    subprocess.run(["sync", "g", "x/f", "s"], check=True)
    for name in ("g", "x/f", "s"):
        yield read(name) == read("f"), os.stat(name).st_blocks < 1000
    yield os.stat("t").st_size < 1_000_000


@compared()
def test_holes_are_found_or_passed_over():
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        os.pwrite(fd, b"x" * 4096, 1 << 20)
        os.fsync(fd)
        end = (1 << 20) + 4096
        data, hole = os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 1 << 20, os.SEEK_HOLE)
        yield data <= 1 << 20, hole, tried(os.lseek, fd, end, os.SEEK_DATA), tried(os.lseek, fd, end, os.SEEK_HOLE)
        yield tried(os.lseek, fd, -1, os.SEEK_SET), os.lseek(fd, 10, os.SEEK_END) - end, tried(os.lseek, fd, 0, 99)
        yield os.lseek(fd, 1 << 40, os.SEEK_SET), os.read(fd, 1)


@compared()
def test_space_can_be_asked_for():
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        yield tried(os.posix_fallocate, fd, 0, 100_000), look(fd)
        os.pwrite(fd, b"kept", 10)
        yield tried(os.posix_fallocate, fd, 0, 200_000), look(fd), os.pread(fd, 4, 10)


@pytest.mark.parametrize("place", ["build", "cache"])
def test_what_has_no_request_fails_such_that_callers_fall_back(places, place):
    folder = places.roots[place]
    with opened(str(folder / "lacking"), os.O_RDWR | os.O_CREAT) as fd:
        for mode in (0, _KEEP_SIZE, _KEEP_SIZE | _PUNCH_HOLE):
            assert _libc.fallocate(fd, mode, 0, 4096) == -1
            assert ctypes.get_errno() == errno.EOPNOTSUPP
        assert tried(fcntl.ioctl, fd, _FS_IOC_GETFLAGS, bytes(8)) == "ENOTTY"
        with opened(str(folder / "other"), os.O_RDWR | os.O_CREAT) as other:
            assert tried(fcntl.ioctl, fd, _FICLONE, other) == "ENOTSUP"
    assert tried(os.open, folder, os.O_TMPFILE | os.O_RDWR) == "ENOTSUP"


@compared()
def test_shared_mappings_are_the_file():
    write("f", bytes(20_000))
    with opened("f", os.O_RDWR) as fd:
        shared = mmap.mmap(fd, 20_000)
        private = mmap.mmap(fd, 20_000, mmap.MAP_PRIVATE)
        child = os.fork()
        if child == 0:
            with opened("f", os.O_RDWR) as again, mmap.mmap(again, 20_000) as mine:
                mine[10_000:10_005] = b"child"
            os._exit(0)
        os.waitpid(child, 0)
        yield shared[10_000:10_005], os.pread(fd, 5, 10_000), private[10_000:10_005]
        private[0:7] = b"private"
        shared[5_000:5_006] = b"shared"
        os.pwrite(fd, b"written", 15_000)
        yield shared[0:7], os.pread(fd, 6, 5_000), shared[15_000:15_007], read("f")[5_000:5_006]
        shared.flush()
    os.rename("f", "g")
    shared[19_990:] = b"0123456789"
    yield read("g")[19_980:]
    os.unlink("g")
    shared[0:4] = b"late"
    yield shared[0:10], look("g")


@compared()
def test_mappings_need_what_they_are_for():
    write("f", bytes(4096))
    for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
        with opened("f", flags) as fd:
            for kind in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                for protection in (mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_READ | mmap.PROT_WRITE):
                    try:
                        mmap.mmap(fd, 4096, kind, protection).close()
                        yield True
                    except OSError as failure:
                        yield failure.errno


@compared()
def test_a_program_runs_from_a_mapping():
    write("run", b"#!/bin/sh\necho ran $0\n", 0o755)
    yield subprocess.run(["./run"], capture_output=True, check=True).stdout
    subprocess.run(["cp", "/bin/true", "true"], check=True)
    yield subprocess.run(["./true"], check=False).returncode
    subprocess.run(["cp", "/bin/sleep", "sleep"], check=True)
    child = subprocess.Popen(["./sleep", "60"])  # which returns once the program has been executed
    yield tried(os.open, "sleep", os.O_WRONLY), tried(os.truncate, "sleep", 0)
    child.kill()
    child.wait()
    with opened("true", os.O_WRONLY):
        yield tried(os.execv, "./true", ["true"])


@compared()
def test_times_that_move():
    write("f", b"x" * 5000)
    fd = os.open("f", os.O_RDWR)
    for call in ((os.pwrite, fd, b"y", 0), (os.pwrite, fd, b"", 0), (os.ftruncate, fd, 5000), (os.ftruncate, fd, 10),
                 (os.truncate, "f", 20), (os.chmod, "f", 0o600), (os.chmod, "f", 0o600),
                 (os.chown, "f", -1, -1), (os.chown, "f", os.getuid(), os.getgid()), (os.utime, "f"),
                 (os.pread, fd, 10, 0), (os.setxattr, "f", "user.x", b"1"), (os.removexattr, "f", "user.x"),
                 (os.fsync, fd), (write, "f", b""), (os.ftruncate, fd, 0), (write, "f", b"z"), (write, "new"),
                 (os.unlink, "new"), (os.link, "f", "g"), (os.rename, "f", "h")):  # fmt: skip
        yield call[0].__name__, moved(["f", ".", "h"], *call)
    os.close(fd)


@compared()
def test_times_written_last_as_they_are_read_back():
    write("f", b"x")
    os.utime("f", ns=(10, 20))
    yield os.stat("f").st_mtime_ns
    with opened("f", os.O_WRONLY) as fd:
        os.utime(fd, ns=(30, 40))
        yield os.stat("f").st_mtime_ns, os.stat("f").st_atime_ns
        os.write(fd, b"y")
        os.utime(fd, ns=(50, 60))
        yield os.stat("f").st_mtime_ns, os.stat("f").st_atime_ns
    yield os.stat("f").st_mtime_ns, os.stat("f").st_atime_ns
    subprocess.run(["touch", "-d", "2001-02-03 04:05:06.789012345 UTC", "f"], check=True)
    subprocess.run(["touch", "-a", "-d", "2002-02-03 04:05:06.789012345 UTC", "f"], check=True)
    yield os.stat("f").st_mtime_ns, os.stat("f").st_atime_ns
    for seconds in (0, -1, -2_000_000_000, 2_147_483_647, 4_294_967_296):
        yield tried(os.utime, "f", (seconds, seconds)), os.stat("f").st_mtime, os.stat("f").st_atime
    before = os.stat("f")
    tick()
    os.utime("f")
    after = os.stat("f")
    yield after.st_mtime_ns > before.st_mtime_ns, abs(after.st_atime_ns - after.st_mtime_ns) < 1_000_000_000
    yield after.st_ctime_ns > before.st_ctime_ns
    os.symlink("f", "l")
    os.utime("l", ns=(7, 8), follow_symlinks=False)
    yield os.lstat("l").st_mtime_ns, os.lstat("l").st_atime_ns
    os.mkdir("d")
    os.utime("d", ns=(7_000_000_001, 8_000_000_002))
    yield os.stat("d").st_mtime_ns, os.stat("d").st_atime_ns


@compared()
def test_data_in_the_page_cache_and_direct_data_agree():
    write("f", b"a" * 65536)
    with (
        opened("f", os.O_RDWR | os.O_DIRECT) as direct,
        opened("f", os.O_RDWR) as cached,
        mmap.mmap(-1, 8192) as page,
    ):
        os.pwrite(cached, b"b" * 4096, 4096)
        yield os.preadv(direct, [page], 0), page[4090:4100]
        page[:] = b"c" * 8192
        yield os.pwritev(direct, [page], 8192), os.pread(cached, 8, 8188), os.pread(cached, 8, 16380)
        yield os.pwritev(direct, [page], 65536), look(cached), os.pread(cached, 4, 73724)
        yield os.preadv(direct, [page], 73728), os.preadv(direct, [page], 1 << 20)


@compared()
def test_synchronous_writes():
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(f"f{flag}", os.O_WRONLY | os.O_CREAT | flag) as fd:
            yield os.write(fd, b"x" * 5000), tried(os.fsync, fd), tried(os.fdatasync, fd)
        yield look(f"f{flag}")
    with opened(".", os.O_RDONLY) as fd:
        yield tried(os.fsync, fd), tried(os.fdatasync, fd)


@compared()
def test_copies_within_the_kernel():
    write("f", os.urandom(1) * 300_000)
    with opened("f", os.O_RDONLY) as source, opened("g", os.O_RDWR | os.O_CREAT) as target:
        yield tried(os.copy_file_range, source, target, 100_000, 50, 10), look(target)
        yield os.sendfile(target, source, 0, 300_000) > 0, read("g")[:5] == read("f")[:5]
        yield (
            tried(os.copy_file_range, source, target, 10, 300_000, 0),
            tried(os.copy_file_range, source, source, 10, 0, 5),
        )
        yield tried(os.copy_file_range, target, source, 10)
    subprocess.run(["cp", "--reflink=auto", "f", "h"], check=True)
    yield read("h") == read("f")


@compared()
def test_limits_of_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        yield tried(os.pwrite, fd, b"x" * 20_000, 0), tried(os.pwrite, fd, b"x", 10_000), look(fd)
        yield tried(os.ftruncate, fd, 10_001), tried(os.ftruncate, fd, 10_000), look(fd)


@compared()
def test_vectors_and_positions():
    with opened("f", os.O_RDWR | os.O_CREAT) as fd:
        yield (
            os.writev(fd, [b"one", b"", b"two" * 2000]),
            os.lseek(fd, 0, os.SEEK_CUR),
            os.pwritev(fd, [b"x", b"y"], 5),
        )
        yield tried(os.pread, fd, 10, 6000), tried(os.pread, fd, 10, -1), tried(os.pwrite, fd, b"x", -1)
        copy = os.dup(fd)
        os.lseek(copy, 3, os.SEEK_SET)
        yield os.read(fd, 4), os.lseek(copy, 0, os.SEEK_CUR)
        os.close(copy)


@compared("root")
def test_a_file_made_unreadable_stays_readable_for_who_has_it_open():
    write("f", b"contents", 0o644)
    os.chown("f", ANNA.uid, ANNA.gid)
    with acting(ANNA), opened("f", os.O_RDWR) as fd:
        os.fchmod(fd, 0)
        yield os.pread(fd, 20, 0), os.pwrite(fd, b"more", 8), tried(os.ftruncate, fd, 10), look(fd)
        yield tried(os.open, "f", os.O_RDONLY), tried(os.truncate, "f", 0)

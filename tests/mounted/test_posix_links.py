"""Names: hard and symbolic links, rename in all forms, removal of what is open, names and paths of every length."""

from __future__ import annotations

import os
import socket
import stat

from comparing import ANNA, BERT, acting, compared, look, moved, opened, read, tried, write

from zfsfs.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

#: One of each kind, by a letter.
KINDS = "fdelps"


def make(kind: str, name: str) -> None:
    """Make a file, an empty directory, a full one (e), a link, a fifo or a socket."""
    if kind == "f":
        write(name, name.encode())
    elif kind in "de":
        os.mkdir(name)
        if kind == "e":
            write(f"{name}/in")
    elif kind == "l":
        os.symlink("target", name)
    elif kind == "p":
        os.mkfifo(name)
    else:
        os.mknod(name, stat.S_IFSOCK | 0o600)


def swap(old: str, new: str) -> None:
    renameat2(-100, old.encode(), -100, new.encode(), RENAME_EXCHANGE)


def move_only(old: str, new: str) -> None:
    renameat2(-100, old.encode(), -100, new.encode(), RENAME_NOREPLACE)


@compared()
def test_rename_of_everything_over_everything():
    for call in (os.rename, move_only, swap):
        for old in KINDS:
            yield call.__name__, old, tried(call, f"{old}missing", "x"), look("x")
            for new in KINDS:
                one, two = f"{call.__name__}{old}{new}1", f"{call.__name__}{old}{new}2"
                make(old, one)
                make(new, two)
                yield one, tried(call, one, two), look(one), look(two)
            one = f"{call.__name__}{old}"
            make(old, one)
            yield one, tried(call, one, f"{one}-new"), look(one), look(f"{one}-new")
    yield sorted(os.listdir("."))


@compared()
def test_rename_of_a_directory_into_itself_and_over_its_parents():
    os.makedirs("a/b/c")
    write("a/f")
    for old, new in (("a", "a/b/x"), ("a", "a/b"), ("a/b/c", "a"), ("a/b", "a/f"), ("a/f", "a/b"), ("a", "a"),
                     ("a/b/c", "a/b/c"), ("a/b/.", "x"), ("a/b/..", "x"), ("a/b", "a/b/."), ("a/f/", "x"),
                     ("a/f", "x/"), ("a/b/c/", "y/"), ("a", "missing/x"), ("a/f/x", "x"), (".", "x"),
                     ("..", "x")):  # fmt: skip
        yield old, new, tried(os.rename, old, new), tried(swap, old, new)
    yield sorted((top, sorted(folders), sorted(files)) for top, folders, files in os.walk("."))


@compared()
def test_rename_with_unknown_flags():
    write("a")
    for flags in (4, 8, 3, 7, 1 << 31):
        yield tried(renameat2, -100, b"a", -100, b"b", flags)


@compared()
def test_hard_links_share_everything():
    write("a", b"x")
    os.mkdir("d")
    for name in ("b", "d/c"):
        os.link("a", name)
        yield [look(each) for each in ("a", "b", "d/c")]
    os.chmod("b", 0o4711)
    yield [look(each) for each in ("a", "b", "d/c")]
    write("d/c", b"longer")
    yield read("a"), read("b"), [look(each) for each in ("a", "b", "d/c")]
    yield os.stat("a").st_ino == os.stat("b").st_ino == os.stat("d/c").st_ino
    os.utime("a", ns=(1, 2))
    yield os.stat("d/c").st_mtime_ns
    for name in ("a", "d/c", "b"):
        os.unlink(name)
        yield [look(each) for each in ("a", "b", "d/c")]


@compared()
def test_rename_between_names_of_one_file_does_nothing():
    write("a")
    os.link("a", "b")
    yield tried(os.rename, "a", "b"), look("a"), look("b")
    yield tried(swap, "a", "b"), look("a"), look("b")
    yield tried(move_only, "a", "b"), tried(os.rename, "a", "c"), sorted(os.listdir("."))
    os.unlink("b")
    yield look("c")


@compared()
def test_links_to_everything():
    for kind in KINDS:
        make(kind, kind)
        yield kind, tried(os.link, kind, f"{kind}2", follow_symlinks=False), look(kind), look(f"{kind}2")
        yield kind, tried(os.link, kind, "f"), tried(os.symlink, "x", kind), tried(os.mkdir, kind)
        yield kind, tried(os.link, f"{kind}/x", "y"), tried(os.link, "f", f"{kind}/x")
    yield tried(os.link, "missing", "y"), tried(os.link, "f", "missing/y"), sorted(os.listdir("."))


@compared()
def test_symbolic_links_of_every_length():
    for length in (1, 2, 59, 60, 61, 155, 254, 255, 1000, 2047, 4094, 4095):
        target = ("x" * 99 + "/") * 50
        os.symlink(target[:length], f"l{length}")
        yield look(f"l{length}"), os.readlink(f"l{length}") == target[:length]
    yield tried(os.symlink, "y" * 4096, "long"), tried(os.symlink, "", "empty"), look("long")
    yield tried(os.readlink, "missing"), tried(os.readlink, ".")
    os.symlink("loop", "loop")
    yield tried(os.stat, "loop"), tried(os.open, "loop", os.O_RDONLY)
    yield tried(os.open, "l1", os.O_RDONLY | os.O_NOFOLLOW), tried(os.open, "new", os.O_CREAT | os.O_NOFOLLOW) != ""
    os.symlink(os.fsdecode(b"\xff\xfe\x01"), "bytes")
    yield os.readlink(b"bytes")


@compared()
def test_open_through_dangling_links():
    os.symlink("later", "l")
    yield tried(os.open, "l", os.O_RDONLY), tried(os.open, "l", os.O_WRONLY | os.O_CREAT | os.O_EXCL), look("later")
    with opened("l", os.O_WRONLY | os.O_CREAT) as fd:
        yield look(fd)
    yield look("later"), look("l"), tried(os.mkdir, "l"), tried(os.rmdir, "l")


@compared()
def test_names_of_every_length():
    for make_it in (write, os.mkdir, os.mkfifo, lambda name: os.symlink("x", name)):
        for length in (1, 254, 255, 256, 300):
            name = "n" * length
            yield length, tried(make_it, name), look(name), tried(os.rename, name, name[::-1].replace("n", "m"))
    for length in (255, 256):
        yield tried(os.link, "m", "k" * length), tried(os.unlink, "k" * length), tried(os.rmdir, "k" * length)
    for name in (b"\xff\xfe", b"\n", b" ", b"a\\b", "\u00e4\u2603".encode(), b"-rf", b"..."):
        write(name)
        yield name, os.path.lexists(name), name in os.listdir(b".")


@compared()
def test_paths_of_every_length():
    depth = 0
    top = os.open(".", os.O_RDONLY)
    while depth < 40:
        os.mkdir("d" * 200)
        os.chdir("d" * 200)
        depth += 1
    write("deep", b"deep")
    yield read("deep"), len(os.getcwd()) > 8000 if depth > 50 else depth
    os.fchdir(top)
    for steps in (19, 20, 21):
        yield steps, tried(os.stat, "/".join(["d" * 200] * steps)) == "ENAMETOOLONG"
    path = "/".join(["d" * 200] * 20)
    yield tried(os.stat, path + "/" * (4095 - len(path))) == "ENAMETOOLONG"
    yield tried(os.stat, path + "/" * (4096 - len(path))) == "ENAMETOOLONG"


@compared()
def test_what_is_open_lives_on_without_a_name():
    write("f", b"contents")
    with opened("f", os.O_RDWR) as fd, opened("f", os.O_RDONLY) as other:
        os.unlink("f")
        yield look("f"), look(fd), look(other)
        os.pwrite(fd, b"CON", 0)
        yield os.pread(other, 20, 0), tried(os.ftruncate, fd, 3), look(other)
        yield tried(os.fchmod, fd, 0o600), tried(os.utime, fd, (1, 1)), look(fd), os.fstat(other).st_mtime
        yield tried(os.setxattr, fd, "user.x", b"y"), tried(os.getxattr, other, "user.x")
        yield tried(os.fsync, fd), tried(os.link, f"/proc/self/fd/{fd}", "g", follow_symlinks=True)
        write("f", b"another")
        yield look(fd), os.pread(fd, 20, 0), read("f")
    with opened("f", os.O_RDONLY) as fd:
        write("g", b"newer")
        os.rename("g", "f")
        yield os.pread(fd, 20, 0), look(fd), read("f")


@compared()
def test_a_directory_that_is_open_lives_on_without_a_name():
    os.mkdir("d")
    write("d/f")
    with opened("d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        yield tried(os.rmdir, "d")
        os.unlink("d/f")
        yield os.listdir(fd), tried(os.rmdir, "d"), look("d"), look(fd)
        yield os.listdir(fd), tried(os.open, "x", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
        yield tried(os.mkdir, "x", dir_fd=fd), tried(os.stat, ".", dir_fd=fd) == "ENOENT", tried(os.fchmod, fd, 0o700)
        os.mkdir("d")
        yield look("d"), look(fd)
    os.mkdir("e")
    os.chdir("e")
    os.rmdir("../e")
    yield tried(os.listdir, "."), tried(os.mkdir, "x"), tried(write, "x"), tried(os.stat, "x"), tried(os.getcwd)


@compared()
def test_removal_of_everything_by_the_right_and_the_wrong_call():
    for kind in KINDS:
        make(kind, kind)
        yield kind, tried(os.rmdir, kind), tried(os.unlink, kind), look(kind)
    for name in ("missing", "f/x", ".", "..", "e/.", "e/..", "n" * 256, "missing/x"):
        yield name, tried(os.unlink, name), tried(os.rmdir, name)
    os.symlink("e", "to-e")
    yield tried(os.rmdir, "to-e"), tried(os.rmdir, "to-e/"), tried(os.unlink, "to-e/"), tried(os.unlink, "to-e")


@compared()
def test_times_that_move():
    os.mkdir("one")
    os.mkdir("two")
    for kind in "fdlps":
        yield kind, moved(["."], make, kind, kind)
        if kind != "d":
            yield kind, moved(["one", kind], os.link, kind, f"one/{kind}", follow_symlinks=False)
            yield kind, moved(["one", kind], os.unlink, f"one/{kind}")
        yield kind, moved(["one", ".", kind], os.rename, kind, f"one/{kind}")
        yield kind, moved(["one", "two", f"one/{kind}"], os.rename, f"one/{kind}", f"two/{kind}")
        yield kind, moved(["two", f"two/{kind}"], os.rename, f"two/{kind}", f"two/{kind}2")
        make(kind, kind)
        yield kind, moved(["two", ".", kind, f"two/{kind}2"], swap, kind, f"two/{kind}2")
        yield kind, moved([".", "two", kind], os.rename, kind, f"two/{kind}2")
        yield kind, moved(["two"], os.rmdir if kind == "d" else os.unlink, f"two/{kind}2")
    os.mkdir("d")
    write("a")
    os.link("a", "b")
    os.link("a", "c")
    write("x")
    yield moved(["a", "c", "."], os.unlink, "b")
    yield moved(["a", "."], os.rename, "x", "c")
    yield look("a"), look("c")
    for failing in ((os.mkdir, "d"), (os.unlink, "missing"), (os.rmdir, "a"), (os.rename, "missing", "x"),
                    (os.link, "a", "d"), (os.symlink, "x", "a"), (os.mkfifo, "a")):  # fmt: skip
        yield failing[0].__name__, moved([".", "a", "d"], *failing)


@compared()
def test_link_counts_of_directories():
    os.mkdir("d")
    yield look("d"), look(".")
    for number in range(3):
        os.mkdir(f"d/{number}")
        yield look("d")
    write("d/f")
    os.rename("d/0", "0")
    yield look("d"), look("."), look("0")
    os.rename("d/1", "0")
    yield look("d"), look("."), look("0")
    os.mkdir("d/x")
    yield tried(swap, "d/x", "0"), look("d"), look("."), tried(swap, "d/f", "0"), look("d"), look(".")
    os.rmdir("d/2")
    yield look("d")


@compared("root")
def test_users_link_and_rename_what_they_may():
    write("root", b"x", 0o600)
    write("open", b"x", 0o666)
    os.mkdir("d")
    os.chmod("d", 0o777)
    os.mkdir("own")
    os.chown("own", ANNA.uid, ANNA.gid)
    with acting(ANNA):
        write("own/f")
        os.mkdir("own/d")
        os.mkdir("own/ro", 0o555)
        yield tried(os.link, "root", "d/1"), tried(os.link, "open", "d/2"), tried(os.link, "own/f", "d/3")
        yield tried(os.rename, "root", "d/x"), tried(os.rename, "own/f", "d/f"), tried(os.rename, "d/f", "own/ro/f")
        yield tried(os.rename, "own/ro", "d/ro"), tried(os.rename, "own/d", "d/d"), sorted(os.listdir("d"))
    with acting(BERT):
        yield tried(os.rename, "d/d", "d/e"), tried(os.unlink, "d/3"), tried(os.unlink, "own/x")
        yield tried(os.rename, "d/e", "own/e"), sorted(os.listdir("d"))


@compared()
def test_sockets_and_fifos_work():
    server = socket.socket(socket.AF_UNIX)
    server.bind("s")
    server.listen()
    client = socket.socket(socket.AF_UNIX)
    client.connect("s")
    yield stat.S_ISSOCK(os.stat("s").st_mode), tried(os.open, "s", os.O_RDONLY)
    os.mkfifo("p")
    reader = os.open("p", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open("p", os.O_WRONLY)
    os.write(writer, b"through")
    yield os.read(reader, 20), look("p"), tried(os.truncate, "p", 0), tried(os.rename, "p", "q"), look("q")
    yield tried(os.open, "q", os.O_WRONLY | os.O_NONBLOCK) != "ENXIO"

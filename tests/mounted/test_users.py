"""Two ordinary users and a tree: what is one's, the other can't read, change, publish, delete or hold up."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from as_user import as_user
from errnos import failing
from mounted_tree import Mounted, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

ANNE, BERT = 7001, 7002
anne, bert = partial(as_user, ANNE), partial(as_user, BERT)


def filled(folder: Path, mode: int = 0o755) -> None:
    """A build or cache of its maker, with a file for everybody and one for nobody else."""
    os.mkdir(folder, mode)
    (folder / "file").write_text("contents")
    (folder / "secret").write_text("secret")
    os.chmod(folder / "secret", 0o600)


@contextmanager
def opened_by(uid: int, path: Path) -> Iterator[Callable[[], None]]:
    """A process of that user that has a directory open, until the function is called or the block ends."""
    reader, writer = os.pipe()
    hold, let_go = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(let_go)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        os.open(path, os.O_RDONLY)
        os.write(writer, b"x")
        os.read(hold, 1)
        os._exit(0)
    os.close(hold)
    assert os.read(reader, 1) == b"x"
    for fd in (reader, writer):
        os.close(fd)
    done = False

    def end() -> None:
        nonlocal done
        if not done:
            done = True
            os.close(let_go)
            os.waitpid(pid, 0)

    try:
        yield end
    finally:
        end()


@contextmanager
def running(command: list[str]) -> Iterator[Callable[[], None]]:
    """A command that prints a line when it is ready and ends with its input; the function ends it."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == b"x\n"

        def end() -> None:
            assert process.stdin is not None
            process.stdin.close()
            process.wait()

        yield end


@pytest.fixture
def build(tree: Mounted) -> Iterator[Path]:
    """A running build of Anne's."""
    folder = tree / "builds/b"
    assert anne(lambda: filled(folder)) == ""
    yield folder
    if folder.exists():
        shutil.rmtree(folder)


@pytest.fixture
def result(tree: Mounted, build: Path) -> Path:
    """A result of Anne's."""
    published = tree / "results/b"
    assert anne(lambda: os.rename(build, published)) == ""
    return published


@pytest.fixture
def cache(tree: Mounted) -> Path:
    """A cache of Anne's."""
    folder = tree / "caches/c"
    assert anne(lambda: filled(folder)) == ""
    assert tree.outcome("c") == "published"
    return folder


def refused(tree: Mounted, folder: Path) -> dict[str, str]:
    """What Bert tries with a directory of Anne's, and how it ends."""
    tries: dict[str, Callable[[], object]] = {
        "read the secret": lambda: (folder / "secret").read_bytes(),
        "write": lambda: (folder / "file").write_text("other"),
        "make": lambda: (folder / "mine").mkdir(),
        "remove": lambda: (folder / "file").unlink(),
        "rename": lambda: os.rename(folder / "file", folder / "other"),
        "link": lambda: os.link(folder / "secret", folder / "mine"),
        "chmod": lambda: os.chmod(folder / "secret", 0o777),
        "chmod the root": lambda: os.chmod(folder, 0o777),
        "chown": lambda: os.chown(folder / "file", BERT, BERT),
        "times": lambda: os.utime(folder / "file", (1, 1)),
        "truncate": lambda: os.truncate(folder / "file", 0),
        "xattr": lambda: os.setxattr(folder / "file", "user.x", b""),
        "xattr of the root": lambda: os.setxattr(folder, "user.zfsfs.state", b""),
        "acl": lambda: os.setxattr(folder, "system.posix_acl_access", acl(BERT)),
        "an attribute of no kind": lambda: os.setxattr(folder, "system.x", b""),
        "rmdir": lambda: os.rmdir(folder),
        "publish": lambda: os.rename(folder, tree / "results" / folder.name.partition("@")[0]),
        "publish as another": lambda: os.rename(folder, tree / "results/other"),
        "rename the directory": lambda: os.rename(folder, folder.parent / "other"),
    }
    if folder.parent.name == "results":
        del tries["publish"]  # to itself: the kernel has nothing to do
    return {name: bert(action) for name, action in tries.items()}


def acl(uid: int) -> bytes:
    import struct

    entries = [(1, 7, -1), (2, 7, uid), (4, 7, -1), (16, 7, -1), (32, 7, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *each) for each in entries)


def untouched(folder: Path) -> None:
    assert sorted(os.listdir(folder)) == ["file", "secret"]
    assert (folder / "file").read_text() == "contents"
    for path, mode in ((folder, 0o755), (folder / "file", 0o644), (folder / "secret", 0o600)):
        found = os.stat(path)
        assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (ANNE, ANNE, mode)


@pytest.mark.parametrize("kind", ["build", "result", "cache"])
def test_what_is_one_users_the_other_can_not_touch(tree, kind, request):
    folder = request.getfixturevalue(kind)
    tried = refused(tree, folder)
    allowed = {"EACCES", "EPERM", "EROFS", "ENOTSUP", "EXDEV"}
    assert {name: outcome for name, outcome in tried.items() if outcome not in allowed} == {}
    untouched(folder)
    # rm -rf, as an ordinary user runs it, gets nowhere.
    rm = ["setpriv", f"--reuid={BERT}", f"--regid={BERT}", "--clear-groups", "rm", "-rf", folder]
    assert subprocess.run(rm, capture_output=True, check=False).returncode == 1
    untouched(folder)
    # Its owner and root can.
    if kind == "build":
        assert anne(lambda: os.rename(folder, tree / "results/b")) == ""
        folder = tree / "results/b"
    assert anne(lambda: os.rmdir(folder)) == ""


def test_another_labels_of_a_cache_are_its_owners(tree, cache):
    mine = tree / "caches/c@job"
    tried = refused(tree, mine)
    assert {name: outcome for name, outcome in tried.items() if outcome == ""} == {}
    untouched(mine)
    tree.closed()
    assert "published" not in tree.events("released")[1:]


def test_a_directory_that_is_closed_to_others_stays_closed(tree, build):
    os.chmod(build, 0o700)
    assert bert(lambda: os.listdir(build)) == "EACCES"
    assert bert(lambda: (build / "file").read_text()) == "EACCES"
    assert bert(lambda: os.getxattr(build, "user.zfsfs.state")) == "EACCES"
    assert bert(lambda: os.open(build, os.O_RDONLY)) == "EACCES"
    assert anne(lambda: os.rename(build, tree / "results/b")) == ""
    assert bert(lambda: os.listdir(tree / "results/b")) == "EACCES"
    # Nor is it a base for whoever may not read it: that would keep its owner from deleting it.
    assert bert(lambda: os.mkdir(tree / "builds/mine@b")) == "EACCES"
    assert anne(lambda: os.mkdir(tree / "builds/hers@b")) == ""
    assert anne(lambda: os.rmdir(tree / "builds/hers@b")) == ""
    assert anne(lambda: os.rmdir(tree / "results/b")) == ""


def test_a_build_on_anothers_result_is_its_makers(tree, result):
    mine = tree / "builds/mine@b"
    assert bert(lambda: os.mkdir(mine)) == ""
    found = os.stat(mine)
    assert (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (BERT, ANNE, 0o755)
    assert anne(lambda: os.rmdir(mine)) == "EPERM"
    assert anne(lambda: os.rename(mine, tree / "results/mine")) == "EPERM"
    assert bert(lambda: (mine / "secret").read_text()) == "EACCES"
    assert bert(lambda: (mine / "file").write_text("x")) == "EACCES"
    assert bert(lambda: (mine / "new").write_text("x")) == ""
    assert bert(lambda: os.rename(mine, tree / "results/mine")) == ""
    untouched(result)
    assert bert(lambda: os.rmdir(tree / "results/mine")) == ""


def test_a_build_of_roots_keeps_the_owner_of_its_base(tree, result):
    os.mkdir(tree / "builds/next@b")
    assert os.stat(tree / "builds/next@b").st_uid == ANNE
    os.rmdir(tree / "builds/next@b")


def test_who_reads_holds_up_no_removal(tree, result):
    with opened_by(BERT, result) as end:
        assert anne(lambda: os.rmdir(result)) == ""
        assert not result.exists()
        end()
    tree.closed()


@pytest.mark.parametrize("how", ["a handle", "a working directory", "a mount"])
def test_who_may_only_read_a_cache_keeps_nobody_from_publishing_or_deleting(tree, cache, how):
    """Bert keeps the shared session open, and sees his version to its end."""
    if how == "a handle":
        holding = opened_by(BERT, cache)
    else:
        script = "cd" if how == "a working directory" else "mount --bind"
        box = [] if script == "cd" else ["unshare", "-Urm"]
        command = ["setpriv", f"--reuid={BERT}", f"--regid={BERT}", "--clear-groups", *box]
        target = "" if script == "cd" else "/mnt"
        holding = running([*command, "sh", "-c", f"{script} '{cache}' {target} && echo x && read x"])
    with holding as end:
        assert anne(lambda: (cache / "file").write_text("second")) == ""
        assert tree.outcome("c") == "published"
        assert (cache / "file").read_text() == "second"
        assert anne(lambda: os.rmdir(cache)) == ""
        assert os.listdir(tree / "caches") == []
        end()
    tree.closed()


def test_what_a_reader_keeps_open_is_not_what_the_next_session_writes(tree, cache):
    """Bert has a file open over two releases; he goes on reading what it was, and Anne finds what she has written."""
    script = f"exec 8<'{cache}/file' && echo x && read x; cat <&8"
    command = ["setpriv", f"--reuid={BERT}", f"--regid={BERT}", "--clear-groups", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"x\n"
        assert anne(lambda: (cache / "more").write_text("more")) == ""
        assert tree.outcome("c") == "published"
        for text in ("second", "a third"):
            assert anne(lambda text=text: (cache / "file").write_text(text)) == ""
            assert (cache / "file").stat().st_size == len(text)
            assert (cache / "file").read_text() == text
            assert tree.outcome("c") == "published"
            assert (cache / "file").read_text() == text
        reader.stdin.close()
        assert reader.stdout.read() == b"contents"
    tree.closed()
    assert (cache / "file").read_text() == "a third"


def test_who_may_write_keeps_a_session_open(tree, cache):
    os.chmod(cache, 0o757)
    with opened_by(BERT, cache):
        assert anne(lambda: (cache / "file").write_text("second")) == ""
        with failing(errno.EBUSY):
            os.rmdir(cache)
        tree.closed(1)
        assert len(tree.status()["sessions"]) == 1
    assert tree.outcome("c") == "published"


def test_a_user_has_so_many_builds_and_sessions(unmounted):
    tree = unmounted
    tree.mount(0.1, "--max-builds", "2", "--max-sessions", "1")
    os.mkdir(tree / "caches/c")
    names = [tree / f"builds/{number}" for number in range(3)]
    assert [anne(lambda name=name: os.mkdir(name)) for name in names] == ["", "", "EDQUOT"]
    (event,) = tree.events("warning")
    assert "2 builds that run" in event
    assert "--max-builds" in event
    assert bert(lambda: os.mkdir(names[2])) == ""
    for name in names:
        os.rmdir(name)
    assert anne(lambda: os.mkdir(names[0])) == ""
    os.rmdir(names[0])
    with opened_by(ANNE, tree / "caches/c@1"), opened_by(BERT, tree / "caches/c@2"):
        assert anne(lambda: os.listdir(tree / "caches/c@3")) == "EDQUOT"
        assert anne(lambda: os.listdir(tree / "caches/c@1")) == ""
        assert len(os.listdir(tree / "caches/c@4")) == 0
    tree.closed()
    assert anne(lambda: os.listdir(tree / "caches/c@3")) == ""
    assert "1 open sessions" in tree.events("warning")[-1]


def test_whatever_a_user_opens_others_are_served(unmounted):
    tree = unmounted
    command = [sys.executable, "-m", "zfsfs", "mount", tree.store, tree.path, "--linger", "0.1", "--log", tree.log]
    # The limit is the daemon's from its start.
    subprocess.run(["prlimit", "--nofile=400:400", *map(str, command)], check=True)
    (tree / "builds/b").mkdir()
    (tree / "builds/b/file").write_text("contents")

    def open_all(path: Path, most: int) -> None:
        fds = []
        try:
            for _ in range(most + 10):
                fds.append(os.open(path, os.O_RDONLY))
        finally:
            assert len(fds) == most
            assert (tree / "builds/b/file").read_text() == "contents" if path.name == "status.json" else True

    assert anne(lambda: open_all(tree / "builds/b/file", 100)) == "EMFILE"
    assert anne(lambda: open_all(tree / ".zfsfs/status.json", 256)) == "EMFILE"
    assert bert(lambda: (tree / "builds/b/file").read_text()) == ""
    until(lambda: bert(lambda: os.listdir(tree / "caches")) == "")
    assert any("100 open files" in each for each in tree.events("warning"))
    os.unlink(tree / "builds/b/file")
    os.rmdir(tree / "builds/b")


def test_whatever_a_user_keeps_of_what_is_removed_others_are_served(unmounted):
    tree = unmounted
    command = [sys.executable, "-m", "zfsfs", "mount", tree.store, tree.path, "--linger", "0.1", "--log", tree.log]
    subprocess.run(["prlimit", "--nofile=400:400", *map(str, command)], check=True)
    (tree / "builds/b").mkdir()
    os.chmod(tree / "builds/b", 0o777)

    def keep() -> None:
        kept = []
        for number in range(500):
            folder = tree / f"builds/b/{number}"
            os.mkdir(folder)
            kept.append(os.open(folder, os.O_PATH))  # of which the daemon isn't told
            os.rmdir(folder)
        assert os.stat(kept[-1]).st_nlink == 0
        with failing(errno.ESTALE):
            os.chmod(f"/proc/self/fd/{kept[0]}", 0o700)
        (tree / "builds/b/file").write_text("contents")

    assert anne(keep) == ""
    assert bert(lambda: (tree / "builds/b/file").read_text()) == ""
    os.rmdir(tree / "builds/b")


def test_planted_links_lead_nowhere(tree, build, tmp_path):
    """What root copies, walks and removes for a user: links, '..' and names that look like something else."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("precious")
    os.chmod(tmp_path, 0o755)

    def plant() -> None:
        os.symlink(outside, build / "link")
        os.symlink("..", build / "up")
        os.symlink("/", build / "root")
        os.mkdir(build / ("x" * 200))
        os.symlink("../../../../../../../../etc", build / ("x" * 200) / "etc")
        os.mkdir(build / ".links")
        os.mkfifo(build / "fifo")
        os.setxattr(build, "user.zfsfs:generation", b"99")
        os.setxattr(build / ".links", "user.zfsfs.state", b"published")

    assert anne(plant) == ""
    assert anne(lambda: os.setxattr(build, "user.zfsfs.x", b"")) == "EPERM"
    assert anne(lambda: os.rename(build, tree / "results/b")) == ""
    assert anne(lambda: os.mkdir(tree / "builds/n@b")) == ""
    assert os.readlink(tree / "builds/n@b/link") == str(outside)
    assert os.getxattr(tree / "builds/n@b", "user.zfsfs.state") == b"building"
    shutil.rmtree(tree / "builds/n@b")
    assert anne(lambda: os.rmdir(tree / "results/b")) == ""
    tree.closed()
    assert (outside / "precious").read_text() == "precious"


def test_a_user_can_not_hide_an_event_behind_another(tree):
    """What a user chose (names of caches) stands on one line, in events, log and status."""
    name = os.fsencode(tree / "caches") + b"/c\n1 CRITICAL \x1b[2J"
    assert anne(lambda: os.mkdir(name)) == ""
    assert "\x1b" not in (tree / ".zfsfs/events").read_text()
    assert "\x1b" not in tree.log.read_text()
    assert not any(line.startswith("1 CRITICAL") for line in tree.log.read_text().splitlines())
    with failing(errno.EEXIST):
        os.mkdir(name)
    os.rmdir(name)

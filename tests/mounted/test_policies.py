"""What becomes of caches' sessions, and whose are published: the rules, each with two users."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from as_user import as_user
from errnos import failing
from mounted_tree import Mounted, until, zfsfs

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users")

ANN, BOB, GROUP = 4321, 4322, 4400


@pytest.fixture
def cache(tree: Mounted) -> Path:
    """A cache of Ann's in which everybody may write, with a file."""
    path = tree / "caches/c"

    def make() -> None:
        path.mkdir()
        path.chmod(0o777)
        (path / "file").write_text("first")
        (path / "file").chmod(0o666)

    assert as_user(ANN, make) == ""
    assert outcome(tree, "c") == "published"
    return path


def rule(path: Path, name: str, value: str) -> None:
    os.setxattr(path, f"user.zfsfs.{name}", value.encode())


def attribute(path: Path, name: str) -> str:
    return os.getxattr(path, f"user.zfsfs.{name}").decode()


def outcome(tree: Mounted, name: str) -> str:
    """How the last session of this name ended, once it has."""
    until(lambda: not any(each["name"] == name for each in tree.status()["sessions"]))
    return [text for text in tree.events("released") if text.startswith(f"{name} is ")][-1].rpartition(" ")[2]


def writes(tree: Mounted, user: int, path: Path, text: str, groups: tuple[int, ...] = ()) -> str:
    """A user writes a file in a session, which then closes; how it ended."""
    assert as_user(user, lambda: (path / "file").write_text(text) and None, groups) == ""
    ended = outcome(tree, path.name)
    assert attribute(path, "outcome") == ended
    return ended


class Holding:
    """A process of a user's that opens a directory and holds it. It may do more in it."""

    SCRIPT = 'exec 9<"$1" && echo in && while read -r line; do eval "$line" 2>&1; echo done; done'

    def __init__(self, path: Path, user: int) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(
            ["sh", "-c", self.SCRIPT, "sh", path], stdin=pipe, stdout=pipe, stderr=pipe, text=True, user=user,
            group=user, extra_groups=[], cwd="/",
        )  # fmt: skip
        self.pid = self._process.pid

    def is_in(self) -> None:
        """Wait until it has the directory open."""
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "in\n"

    def do(self, command: str) -> str:
        """Have its shell carry out a command; what that has printed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(command + "\n")
        stdin.flush()
        said = ""
        while (line := stdout.readline()) != "done\n":
            assert line, "it has ended"
            said += line
        return said

    def interrupt(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(60)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


@pytest.fixture
def holding() -> Iterator[Callable[[Path, int], Holding]]:
    with ExitStack() as stack:

        def hold(path: Path, user: int) -> Holding:
            held = Holding(path, user)
            stack.callback(held.end)
            return held

        yield hold


def waiting(tree: Mounted, count: int) -> None:
    until(lambda: tree.status()["caches"][0]["waiting"] == count)


def test_always_is_what_caches_are(tree, cache):
    assert (attribute(cache, "policy"), attribute(cache, "publishers")) == ("always", "*")
    assert writes(tree, BOB, cache, "of Bob's") == "published"
    assert (cache / "file").read_text() == "of Bob's"


def test_on_success_a_session_is_published_if_that_was_said(tree, cache):
    rule(cache, "policy", "on-success")
    assert writes(tree, BOB, tree / "caches/c@bob", "half") == "unsuccessful"
    assert (cache / "file").read_text() == "first"
    mine = tree / "caches/c@ann"

    def succeeds() -> None:
        held = os.open(mine, os.O_RDONLY)
        (mine / "file").write_text("whole")
        rule(mine, "success", "yes")
        os.close(held)

    assert as_user(ANN, succeeds) == ""
    assert outcome(tree, "c@ann") == "published"
    assert (cache / "file").read_text() == "whole"


def test_a_failure_that_was_said_stands(tree, cache):
    rule(cache, "policy", "on-success")
    with failing(errno.EINVAL):
        rule(tree / "caches/c@x", "success", "yes")  # there is no session
    held = os.open(cache, os.O_RDONLY)
    (cache / "file").write_text("of two")
    with failing(errno.EINVAL):
        rule(cache, "success", "perhaps")
    assert as_user(ANN, lambda: rule(cache, "success", "no")) == ""
    assert as_user(BOB, lambda: rule(cache, "success", "yes")) == ""
    assert attribute(cache, "success") == "no"
    os.close(held)
    assert outcome(tree, "c") == "unsuccessful"
    assert attribute(cache, "success") == ""


def test_never_leaves_each_a_private_copy(tree, cache, holding):
    rule(cache, "policy", "never")
    ann, bob = holding(tree / "caches/c@ann", ANN), holding(tree / "caches/c@bob", BOB)
    for user in (ann, bob):
        user.is_in()
        assert user.do('echo of $$ >"$1/file"') == ""
        assert user.do('cat "$1/file"') == f"of {user.pid}\n"
    assert attribute(tree / "caches/c@bob", "state") == "private"
    ann.end()
    assert outcome(tree, "c@ann") == "private"
    bob.end()
    assert outcome(tree, "c@bob") == "private"
    assert (cache / "file").read_text() == "first"
    assert 'zfsfs_events_total{kind="outcome-private"} 2' in (tree / ".zfsfs/metrics").read_text()


def test_in_a_read_only_cache_nobody_changes_anything(tree, cache):
    rule(cache, "policy", "read-only")
    for user in (0, ANN, BOB):
        for path in (cache, tree / "caches/c@x"):
            assert as_user(user, lambda path=path: (path / "file").write_text("x") and None) == "EROFS"
            assert as_user(user, lambda path=path: (path / "new").mkdir()) == "EROFS"
            assert as_user(user, lambda path=path: (path / "file").read_text() and None) == ""
    done = zfsfs("exec", cache, "--", "sh", "-c", f"echo x > {cache}/file", expect=2)
    assert "Read-only" in done.stderr
    tree.closed()
    assert as_user(ANN, lambda: rule(cache, "policy", "always")) == ""
    assert writes(tree, BOB, cache, "of Bob's") == "published"


def test_what_others_than_publishers_change_is_never_published(tree, cache):
    rule(cache, "publishers", f"{ANN},@{GROUP}")
    assert writes(tree, BOB, cache, "of Bob's") == "private"
    assert writes(tree, 0, tree / "caches/c@root", "of root's") == "private"
    assert (cache / "file").read_text() == "first"
    assert writes(tree, ANN, tree / "caches/c@ann", "of Ann's") == "published"
    assert (cache / "file").read_text() == "of Ann's"
    assert writes(tree, BOB, cache, "of the group's", (GROUP,)) == "published"


def test_a_publishers_session_is_not_for_others_nor_theirs_for_one(tree, cache, holding):
    rule(cache, "publishers", str(ANN))
    ann, bob = holding(cache, ANN), holding(cache, BOB)
    ann.is_in()
    bob.is_in()
    assert ann.do('echo by Ann >"$1/file"') == ""
    assert "busy" in bob.do('echo x >"$1/file"')
    assert "busy" in bob.do('mkdir "$1/new"')
    assert bob.do('cat "$1/file"') == "by Ann\n"
    bob.end()
    ann.end()
    assert outcome(tree, "c") == "published"
    bob = holding(cache, BOB)
    bob.is_in()
    assert bob.do('mkdir "$1/new"') == ""
    assert attribute(cache, "state") == "private"
    assert as_user(ANN, (cache / "file").unlink) == "EBUSY"
    bob.end()
    assert outcome(tree, "c") == "private"
    assert sorted(os.listdir(cache)) == ["file"]


def test_who_sets_the_rules(tree, cache):
    assert as_user(BOB, lambda: rule(cache, "policy", "never")) == "EPERM"
    assert as_user(BOB, lambda: rule(cache, "publishers", str(BOB))) == "EPERM"
    assert as_user(ANN, lambda: rule(cache, "policy", "never")) == ""
    assert as_user(0, lambda: rule(cache, "publishers", f"root, {ANN}")) == ""
    assert attribute(cache, "publishers") == f"root,{ANN}"
    for name, value in (("policy", "sometimes"), ("policy", ""), ("publishers", ""), ("publishers", "no-such-user")):
        with failing(errno.EINVAL):
            rule(cache, name, value)
    for path, name in ((tree / "caches/c@x", "policy"), (cache, "generation"), (tree / "caches", "policy")):
        with failing(errno.EPERM):
            rule(path, name, "never")
    assert as_user(BOB, lambda: os.removexattr(cache, "user.zfsfs.policy")) == "EPERM"
    os.removexattr(cache, "user.zfsfs.policy")
    os.removexattr(cache, "user.zfsfs.publishers")
    assert (attribute(cache, "policy"), attribute(cache, "publishers")) == ("always", "*")
    assert tree.status()["caches"][0]["policy"] == "always"
    assert len(tree.events("cache-rules")) == 4


def test_rules_outlive_releases_and_daemons(tree, cache):
    rule(cache, "publishers", str(ANN))
    rule(cache, "policy", "locked")
    assert writes(tree, ANN, cache, "second") == "published"
    tree.closed()
    daemon = tree.pid
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{daemon}/exe"))
    tree.mount()
    assert (attribute(cache, "policy"), attribute(cache, "publishers")) == ("locked", str(ANN))
    assert writes(tree, ANN, cache, "third") == "published"
    tree.umount()
    tree.mount()
    assert writes(tree, BOB, cache, "of Bob's") == "private"
    assert (cache / "file").read_text() == "third"


def test_the_configuration_counts_before_the_attributes(tree, cache, folder):
    rule(cache, "policy", "always")
    tree.umount()
    config = folder / "config.toml"
    config.write_text('[cache.c]\npolicy = "never"\n')
    tree.mount(0.1, "--config", str(config))
    assert attribute(cache, "policy") == "never"
    with failing(errno.EPERM):
        rule(cache, "policy", "always")
    rule(cache, "publishers", "root")
    assert writes(tree, ANN, cache, "of Ann's") == "private"
    tree.umount()
    tree.mount()
    assert (attribute(cache, "policy"), attribute(cache, "publishers")) == ("always", "root")


# Locked.


def test_the_second_who_opens_a_locked_cache_waits_and_stops_nobody(tree, cache, holding):
    rule(cache, "policy", "locked")
    ann = holding(cache, ANN)
    ann.is_in()
    bob = holding(cache, BOB)
    waiting(tree, 1)
    # Ann, and what she starts, go on as if there was nobody else.
    assert ann.do('echo by Ann >"$1/file"; mkdir "$1/new"; sh -c "touch $1/new/file; ls $1"') == "file\nnew\n"
    assert os.listdir(tree / "caches") == ["c"]
    # Who would change something does not wait: the kernel would keep Ann from the directory meanwhile.
    assert as_user(BOB, (cache / "other").mkdir) == "EBUSY"
    assert as_user(BOB, lambda: (cache / "other").write_text("x") and None) == "EBUSY"
    ann.end()
    bob.is_in()
    assert tree.events("released")[-1] == "c is published"
    assert bob.do('cat "$1/file"; ls "$1"') == "by Ann\nfile\nnew\n"
    bob.end()
    assert outcome(tree, "c") == "unchanged"


def test_one_command_after_another_changes_something_in_a_locked_cache(tree, cache):
    rule(cache, "policy", "locked")
    tree.umount()
    tree.mount(30)
    for session in (cache, tree / "caches/c@one"):
        subprocess.run(["mkdir", session / f"of {session.name}"], check=True)
        subprocess.run(["touch", session / f"of {session.name}/file"], check=True)
    assert as_user(BOB, lambda: (cache / "file").write_text("of Bob's") and None) == ""
    tree.umount()
    tree.mount()
    assert (cache / "file").read_text() == "of Bob's"
    assert [os.listdir(cache / name) for name in ("of c", "of c@one")] == [["file"]] * 2


def test_one_session_at_a_time_by_whichever_path(tree, cache, holding):
    rule(cache, "policy", "locked")
    ann = holding(tree / "caches/c@ann", ANN)
    ann.is_in()
    others = [holding(tree / "caches/c@bob", BOB), holding(cache, BOB)]
    waiting(tree, 2)
    assert ann.do('echo by Ann >"$1/file"') == ""
    ann.end()
    waiting(tree, 1)
    for each in others:
        each.end()
    tree.closed()
    assert (cache / "file").read_text() == "by Ann\n"


def test_who_waits_for_a_locked_cache_waits_no_longer_when_it_is_locked_no_more(tree, cache, holding):
    rule(cache, "policy", "locked")
    ann = holding(cache, ANN)
    ann.is_in()
    bob = holding(tree / "caches/c@bob", BOB)
    waiting(tree, 1)
    assert as_user(ANN, lambda: rule(cache, "policy", "always")) == ""
    waiting(tree, 0)
    bob.is_in()
    assert sorted(each["name"] for each in tree.status()["sessions"]) == ["c", "c@bob"]


def test_who_waits_for_a_locked_cache_can_be_interrupted(tree, cache, holding):
    rule(cache, "policy", "locked")
    ann = holding(cache, ANN)
    ann.is_in()
    bob = holding(cache, BOB)
    waiting(tree, 1)
    assert bob.interrupt() == -signal.SIGTERM
    waiting(tree, 0)
    bob = holding(cache, BOB)
    waiting(tree, 1)
    bob.end()  # SIGKILL
    waiting(tree, 0)
    # Who holds a session would wait for himself.
    assert "deadlock" in ann.do(f"ls {tree / 'caches/c@other'}")
    assert ann.do('echo by Ann >"$1/file"') == ""
    ann.end()
    assert outcome(tree, "c") == "published"


def test_who_has_left_a_locked_cache_waits_for_no_session_of_his_own(tree, cache, holding):
    rule(cache, "policy", "locked")
    ann = holding(cache, ANN)
    ann.is_in()
    assert ann.do('exec 9<&-; ls "$1@other"; ls "$1@third"; ls "$1"') == "file\n" * 3
    ann.end()
    tree.closed()


def test_whoever_is_in_a_locked_cache_or_comes_of_who_is_may_come_again(tree, cache, holding):
    rule(cache, "policy", "locked")
    ann = holding(cache, ANN)
    ann.is_in()
    # An orphan with an inherited descriptor, and one that is only there.
    assert ann.do('(cd "$1"; setsid sh -c "exec 9<&-; sleep 0.1; ls" 8<&- &) | cat') == "file\n"
    assert ann.do('(setsid sh -c "sleep 0.1; ls $1" &) | cat') == "file\n"
    ann.end()
    assert outcome(tree, "c") == "unchanged"


# Builders.

BUILDERS = """
[cache.c]
policy = "{policy}"
publishers = "{publishers}"
[builder.sh]
command = ["sh", "-c", "{script}"]
user = {user}
[[builder.sh.cache]]
name = "c"
variable = "C"
publish = "always"
"""


def built(tree: Mounted, cache: Path, folder: Path, ids: tuple[str, ...], **facts: object) -> list[str]:
    """Have some builds done at once, with a configuration; how their sessions of the cache ended."""
    tree.umount()
    config = folder / "config.toml"
    config.write_text(BUILDERS.format(**{"policy": "always", "publishers": "*", "user": ANN, **facts}))
    tree.mount(0.1, "--config", str(config))
    for ident in ids:
        (tree / f"builds/sh+{ident}").mkdir()
    for ident in ids:
        (tree / f".zfsfs/wait/{ident}").read_bytes()
    tree.closed()
    return [text.rpartition(" ")[2] for text in tree.events("released")]


def test_a_builders_exit_code_says_whether_it_was_successful(tree, cache, folder):
    script = "echo of $ZFSFS_ID > $C/file; [ $ZFSFS_ID != bad ]"
    assert built(tree, cache, folder, ("bad",), policy="on-success", script=script) == ["unsuccessful"]
    assert built(tree, cache, folder, ("good",), policy="on-success", script=script) == ["published"]
    assert (cache / "file").read_text() == "of good\n"


def test_a_builder_publishes_if_its_user_may(tree, cache, folder):
    script = "echo of $ZFSFS_ID > $C/file"
    assert built(tree, cache, folder, ("one",), publishers="root", script=script) == ["private"]
    assert built(tree, cache, folder, ("two",), publishers=f"{ANN}", script=script) == ["published"]
    assert (cache / "file").read_text() == "of two\n"


def test_builders_take_turns_in_a_locked_cache(tree, cache, folder):
    script = "echo of $ZFSFS_ID >> $C/file; cat $C/file"
    ids = ("one", "two", "three")
    assert built(tree, cache, folder, ids, policy="locked", script=script) == ["published"] * 3
    assert sorted((cache / "file").read_text().removeprefix("first").split("\n")) == [
        "", "of one", "of three", "of two",
    ]  # fmt: skip


def test_a_builder_that_waits_for_its_turn_can_be_cancelled(tree, cache, folder, holding):
    assert built(tree, cache, folder, (), policy="locked", script="true") == []
    ann = holding(cache, ANN)
    ann.is_in()
    (tree / "builds/sh+one").mkdir()
    waiting(tree, 1)
    (tree / "builds/sh+one").rmdir()
    until(lambda: "build one is discarded" in tree.events("discarded"))
    ann.end()
    tree.closed()


def test_zfsfs_build_says_whether_it_was_successful(tree, cache):
    rule(cache, "policy", "on-success")
    for ident, code in (("bad", 7), ("good", 0)):
        script = f"echo of {ident} > $C/file; exit {code}"
        zfsfs("build", tree.path, ident, "--cache", f"c@{ident}:C", "--", "sh", "-c", script, expect=code)
        assert outcome(tree, f"c@{ident}") == ("unsuccessful" if code else "published")
    assert (cache / "file").read_text() == "of good\n"

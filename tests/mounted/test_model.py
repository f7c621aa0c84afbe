"""Random users of a mounted tree against a model in memory: what a name shows, what an open file shows, what closing
a session does, whoever else has files open.

Root changes caches and builds; Bert, who may only read, opens files in them and keeps them over releases, publishing
and removal. A file in the model is an object: a clone has copies, and who has one open sees that one to its end.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from mounted_tree import Mounted, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")

EXAMPLES = int(os.environ.get("ZFSFS_EXAMPLES", "12"))
#: Making a failing case smaller takes minutes: by hand.
PHASES = [phase for phase in Phase if phase is not Phase.shrink or "ZFSFS_SHRINK" in os.environ]
BERT = 7002
NAMES = ("a", "b")

names = st.sampled_from(NAMES)
labels = st.sampled_from(["", "", "@x"])
contents = st.binary(max_size=20)

READER = """
import os, sys
for line in sys.stdin:
    verb, _, word = line.rstrip("\\n").partition(" ")
    if verb == "open":
        print(os.open(word, os.O_RDONLY), flush=True)
    elif verb == "read":
        size = os.fstat(int(word)).st_size
        print(size, os.pread(int(word), 100, 0).hex(), flush=True)
    else:
        os.close(int(word))
        print("closed", flush=True)
"""


class Reader:
    """Bert: a process that opens, reads and closes files."""

    def __init__(self) -> None:
        # The system's own Python: ours may lie where Bert can't go.
        command = [
            "setpriv",
            f"--reuid={BERT}",
            f"--regid={BERT}",
            "--clear-groups",
            "/usr/bin/python3",
            "-c",
            READER,
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd="/", env={}
        )

    def ask(self, verb: str, word: object) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{verb} {word}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().rstrip("\n")

    def end(self) -> None:
        with self.process:
            assert self.process.stdin is not None
            self.process.stdin.close()


@dataclass(eq=False)
class File:
    data: bytes


Files = dict[str, File]


def clone(files: Files) -> Files:
    return {name: File(file.data) for name, file in files.items()}


@dataclass(eq=False)
class Session:
    """An open session; `fd` is root's directory, None when only Bert keeps it open."""

    files: Files
    generation: int
    fd: int | None = None
    changed: bool = False
    readers: int = 0


@dataclass(eq=False)
class Handle:
    """A file that Bert has open; `kept` is the session that was open then."""

    number: str
    file: File
    kept: Session | None = None


class Users(RuleBasedStateMachine):
    """One store for all examples, in which each has names of its own."""

    tree: Mounted
    reader: Reader
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.mine = str(next(self.numbers))
        self.cache = f"cache{self.mine}"
        self.published: Files = {}
        self.generation = 0
        self.sessions: dict[str, Session] = {}  # by the name of their directory
        self.builds: dict[str, Files] = {}  # by the name of their directory
        self.results: dict[str, Files] = {}
        self.handles: list[Handle] = []

    # Caches.

    def path(self, session: str, name: str = "") -> Path:
        return self.tree / f"caches/{session}" / name

    def entered(self) -> list[str]:
        """The sessions that root is in."""
        return [name for name, each in self.sessions.items() if each.fd is not None]

    @initialize()
    def make_a_cache(self) -> None:
        self.path(self.cache).mkdir()
        self.go_in("")
        self.put(self.cache, "a", b"first")
        self.go_out(self.cache)

    @rule(label=labels)
    def go_in(self, label: str) -> None:
        where = self.cache + label
        if where not in self.sessions:
            self.sessions[where] = Session(clone(self.published), self.generation)
        session = self.sessions[where]
        if session.fd is None:
            session.fd = os.open(self.path(where), os.O_RDONLY)

    @precondition(lambda self: self.entered())
    @rule(name=names, content=contents, data=st.data())
    def write(self, name: str, content: bytes, data: Any) -> None:
        self.put(data.draw(st.sampled_from(self.entered())), name, content)

    def put(self, where: str, name: str, content: bytes) -> None:
        self.path(where, name).write_bytes(content)
        session = self.sessions[where]
        session.files.setdefault(name, File(b"")).data = content
        session.changed = True

    @precondition(lambda self: self.entered())
    @rule(other=names, data=st.data())
    def rename(self, other: str, data: Any) -> None:
        where = data.draw(st.sampled_from(self.entered()))
        session = self.sessions[where]
        if session.files:
            name = data.draw(st.sampled_from(sorted(session.files)))
            self.path(where, name).rename(self.path(where, other))
            session.files[other] = session.files.pop(name)
            session.changed |= name != other

    @precondition(lambda self: self.entered())
    @rule(data=st.data())
    def remove(self, data: Any) -> None:
        where = data.draw(st.sampled_from(self.entered()))
        session = self.sessions[where]
        if session.files:
            name = data.draw(st.sampled_from(sorted(session.files)))
            self.path(where, name).unlink()
            del session.files[name]
            session.changed = True

    @precondition(lambda self: self.entered())
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.go_out(data.draw(st.sampled_from(self.entered())))

    def go_out(self, where: str) -> None:
        session = self.sessions[where]
        assert session.fd is not None
        os.close(session.fd)
        session.fd = None
        if session.changed or not session.readers:
            self.ends(where, session)

    def ends(self, where: str, session: Session) -> None:
        """Nobody keeps a session open any more."""
        del self.sessions[where]
        if not session.changed:
            self.tree_says(where, "unchanged")
        elif session.generation == self.generation:
            self.tree_says(where, "published")
            self.published, self.generation = session.files, self.generation + 1
        else:
            self.tree_says(where, "superseded")
        for handle in self.handles:
            if handle.kept is session:
                handle.kept = None
        self.shows(self.path(where), self.published)
        self.tree_says(where, "unchanged")

    def tree_says(self, session: str, outcome: str) -> None:
        """How its last session has ended."""
        until(lambda: not any(each["name"] == session for each in self.tree.status()["sessions"]))
        mine = [text for text in self.tree.events("released") if text.startswith(f"{session} is ")]
        assert mine[-1] == f"{session} is {outcome}"

    # Builds.

    @rule(name=names, data=st.data())
    def build(self, name: str, data: Any) -> None:
        name += self.mine
        base = data.draw(st.sampled_from(["", *sorted(self.results)]))
        if name not in {each.partition("@")[0] for each in self.builds} | self.results.keys():
            where = f"{name}{base and '@'}{base}"
            (self.tree / "builds" / where).mkdir()
            self.builds[where] = clone(self.results[base]) if base else {}

    @precondition(lambda self: self.builds)
    @rule(name=names, content=contents, data=st.data())
    def write_in_a_build(self, name: str, content: bytes, data: Any) -> None:
        build = data.draw(st.sampled_from(sorted(self.builds)))
        (self.tree / "builds" / build / name).write_bytes(content)
        self.builds[build].setdefault(name, File(b"")).data = content

    @precondition(lambda self: self.builds)
    @rule(publishes=st.booleans(), data=st.data())
    def end_a_build(self, publishes: bool, data: Any) -> None:
        build = data.draw(st.sampled_from(sorted(self.builds)))
        files = self.builds.pop(build)
        if publishes:
            result = build.partition("@")[0]
            (self.tree / "builds" / build).rename(self.tree / "results" / result)
            self.results[result] = files
            self.shows(self.tree / "results" / result, files)
        else:
            (self.tree / "builds" / build).rmdir()

    # Bert.

    @precondition(lambda self: self.entered())
    @rule(data=st.data())
    def bert_opens_in_a_session(self, data: Any) -> None:
        where = data.draw(st.sampled_from(self.entered()))
        session = self.sessions[where]
        if session.files:
            self.bert_opens(self.path(where), session.files, data).kept = session
            session.readers += 1

    @precondition(lambda self: any([*self.builds.values(), *self.results.values()]))
    @rule(data=st.data())
    def bert_opens_in_a_build(self, data: Any) -> None:
        places = {f"builds/{name}": files for name, files in self.builds.items() if files}
        places |= {f"results/{name}": files for name, files in self.results.items() if files}
        where = data.draw(st.sampled_from(sorted(places)))
        self.bert_opens(self.tree / where, places[where], data)

    def bert_opens(self, where: Path, files: Files, data: Any) -> Handle:
        name = data.draw(st.sampled_from(sorted(files)))
        handle = Handle(self.reader.ask("open", where / name), files[name])
        self.handles.append(handle)
        return handle

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def bert_reads(self, data: Any) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        size, _, text = self.reader.ask("read", handle.number).partition(" ")
        assert (int(size), bytes.fromhex(text)) == (len(handle.file.data), handle.file.data)

    @precondition(lambda self: self.handles)
    @rule(data=st.data())
    def bert_closes(self, data: Any) -> None:
        handle = data.draw(st.sampled_from(self.handles))
        self.close(handle)

    def close(self, handle: Handle) -> None:
        self.handles.remove(handle)
        assert self.reader.ask("close", handle.number) == "closed"
        if (session := handle.kept) is not None:
            session.readers -= 1
            if session.fd is None and not session.readers:
                (where,) = (name for name, each in self.sessions.items() if each is session)
                self.ends(where, session)

    # What is seen.

    @precondition(lambda self: self.entered())
    @rule(data=st.data())
    def look(self, data: Any) -> None:
        where = data.draw(st.sampled_from(self.entered()))
        self.shows(self.path(where), self.sessions[where].files)

    @precondition(lambda self: self.results)
    @rule(data=st.data())
    def look_at_a_result(self, data: Any) -> None:
        where = data.draw(st.sampled_from(sorted(self.results)))
        self.shows(self.tree / "results" / where, self.results[where])

    @staticmethod
    def shows(path: Path, files: Files) -> None:
        found = {each.name: (each.stat().st_size, each.read_bytes()) for each in path.iterdir()}
        assert found == {name: (len(file.data), file.data) for name, file in files.items()}

    def teardown(self) -> None:
        for handle in list(self.handles):
            self.close(handle)
        for where in self.entered():
            self.go_out(where)
        for name in self.builds:
            (self.tree / "builds" / name).rmdir()
        # A result can't go before those that are based on it.
        for name in reversed(self.results):
            (self.tree / "results" / name).rmdir()
        self.tree.closed()
        self.path(self.cache).rmdir()
        until(lambda: not self.tree.status()["waiting"])


@pytest.fixture
def users(unmounted: Mounted) -> Iterator[type[Users]]:
    unmounted.mount(0.02)
    with ExitStack() as stack:
        reader = Reader()
        stack.callback(reader.end)
        yield type("Users", (Users,), {"tree": unmounted, "reader": reader})
    unmounted.umount("--force")  # where a case has failed, it has left things


def test_users_see_what_the_model_says(users: type[Users]) -> None:
    run_state_machine_as_test(
        users,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            report_multiple_bugs=False,
            phases=PHASES,
        ),
    )

"""Compare what is found in a store that was mounted again with what may be there: every difference is a loss."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import contents
from journal import State
from load import CACHES

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from zfsfs.cli import main  # noqa: E402
from zfsfs.driver import Listing  # noqa: E402
from zfsfs.drivers import choose_driver  # noqa: E402
from zfsfs.names import Dataset  # noqa: E402
from zfsfs.store import check  # noqa: E402

_PATIENCE = 120.0


@dataclass
class Verdict:
    """What was lost, a sentence each; how many comparisons were made; and what is known of the store from here on."""

    state: State
    losses: list[str] = field(default_factory=list)
    checks: int = 0

    def expect(self, fine: bool, loss: str) -> None:
        self.checks += 1
        if not fine:
            self.losses.append(loss)


def in_child(function: Callable[[], object], what: str) -> str:
    """Call a function in a child process, which spares it the imports; what it printed. Raises CalledProcessError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            os.dup2(writer, 1)
            os.dup2(writer, 2)
            os.close(writer)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  (what it knew of the other is wrong)
            function()
            status = 0
        except SystemExit as end:
            status = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, errors="replace") as said:
        text = said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        raise subprocess.CalledProcessError(status, what, text, text)
    return text


def zfsfs_main(*arguments: object) -> NoReturn:
    """Be the command line, in a process of its own."""
    try:
        main([*map(str, arguments)])
    except SystemExit as end:
        os._exit(int(end.code or 0))
    finally:
        os._exit(1)


def zfsfs(*arguments: object) -> str:
    """Run the command line; what it printed. Raises CalledProcessError."""
    return in_child(lambda: main([*map(str, arguments)]), f"zfsfs {arguments[0]}")


def mount(store: str, tree: Path, log: Path) -> None:
    """Mount over whatever a dead daemon has left there."""
    zfsfs("mount", store, tree, "--linger", "0.05", "--log", log)


def judge(store: str, tree: Path, known: State) -> Verdict:
    """Look at everything in a tree that nobody else uses. `known` is what the journal says."""
    verdict = Verdict(State(operations=known.operations))
    verdict.losses += known.complaints
    _results(tree, known, verdict)
    _caches(tree, known, verdict)
    verdict.expect(os.listdir(tree / "builds") == [], "a build goes on that nobody runs")
    _invariants(store, tree, verdict)
    return verdict


def _read(folder: Path, verdict: Verdict) -> contents.Version | None:
    verdict.checks += 1
    try:
        return contents.read(folder)
    except (contents.Broken, OSError) as problem:
        verdict.losses.append(str(problem))
        return None


def _results(tree: Path, known: State, verdict: Verdict) -> None:
    there = set(os.listdir(tree / "results"))
    for ident in known.results:
        verdict.expect(ident in there or ident in known.going, f"result {ident} was published and is not there")
    for ident in sorted(there):
        verdict.expect(ident not in known.never, f"result {ident} is there, which was discarded or deleted")
        found = _read(tree / "results" / ident, verdict)
        if found is not None:
            verdict.expect(found.name == ident, f"result {ident} holds {found.name or 'nothing'}")
        verdict.state.results[ident] = ident


def _caches(tree: Path, known: State, verdict: Verdict) -> None:
    there = set(os.listdir(tree / "caches"))
    for cache in CACHES:
        folder = tree / "caches" / cache
        if cache not in there:
            verdict.expect(cache not in known.caches, f"cache {cache} is not there")
            folder.mkdir()
        found = _read(folder, verdict)
        if found is None:
            continue
        generation = int(os.getxattr(folder, "user.zfsfs.generation"))
        least, version = known.caches.get(cache, [0, ""])
        what = f"cache {cache} holds {found.name or 'nothing'} of generation {found.generation}"
        verdict.expect(found.generation == generation, f"{what} and says generation {generation}")
        verdict.expect(generation >= least, f"{what}; {version} of generation {least} had been published")
        verdict.expect(generation != least or found.name == version, f"{what}; it was published as {version}")
        verdict.expect(found.name not in known.lost, f"{what}, which was superseded")
        verdict.state.caches[cache] = [generation, found.name]


def _invariants(store: str, tree: Path, verdict: Verdict) -> None:
    # Our own looking has opened sessions, and what the crash left is destroyed by and by.
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        status = json.loads((tree / ".zfsfs" / "status.json").read_text())
        if not status["sessions"] and not status["waiting"]:
            break
        time.sleep(0.05)
    reasons = [f"{each['dataset']} is still there: {each['reason']}" for each in status["waiting"]]
    verdict.losses += reasons + [f"session {each['name']} does not end" for each in status["sessions"]]
    # What is kept ready is made meanwhile, and is in the status a moment later than on the disk.
    while found := _problems(store, tree):
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    verdict.checks += 1
    verdict.losses += found


def _listing(store: str) -> Listing:
    if not store.startswith(("/", ".")):
        return choose_driver(store).list()
    # A daemon has its catalogue for itself; a copy of that is good, or another will be.
    with tempfile.TemporaryDirectory() as copy:
        for each in Path(store).glob("catalogue.sqlite*"):
            shutil.copy(each, copy)
        return choose_driver(copy).list()


def _problems(store: str, tree: Path) -> list[str]:
    ready = json.loads((tree / ".zfsfs" / "status.json").read_text())["ready"]
    known = {dataset for name in ready if (dataset := Dataset.parse(name))}
    # In a child: what a driver has open must not be there when the next daemon is forked.
    text = in_child(lambda: print(json.dumps(check(_listing(store), known=known))), "the checker")
    found: list[str] = json.loads(text)
    return found

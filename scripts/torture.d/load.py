"""The load: several builds that publish, eight sessions of two caches that release, readers of results.

Everything is done by path, as users do it. Each thread writes down what it is about to do and what was done; it
ends when the tree is dead or the load is told to. What it finds wrong meanwhile is a line 'wrong'.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import contents
from journal import Journal, State

BUILDERS = 3
CACHES = ("one", "two")
LABELS = (None, "a", "b", "c")
READERS = 2
_KEPT = 4  # results of each builder
_DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENODEV)


class Load:
    """Threads on the tree mounted at `tree`, from the state that was verified there. `round` makes names unique."""

    def __init__(self, tree: Path, state: State, seed: str, round: int, journal: Journal) -> None:
        self._tree, self._seed, self._round, self._journal = tree, seed, round, journal
        self._stop = threading.Event()
        self._results = dict(state.results)
        self._threads = [
            *(self._thread(self._build, number) for number in range(BUILDERS)),
            *(self._thread(self._use, cache, label) for cache in CACHES for label in LABELS),
            *(self._thread(self._read, number) for number in range(READERS)),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()

    def join(self, seconds: float) -> list[str]:
        """Wait for the threads; the names of those that hang."""
        end = time.monotonic() + seconds
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
        return [thread.name for thread in self._threads if thread.is_alive()]

    def _thread(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        name = "-".join([work.__name__.strip("_"), *map(str, arguments)])
        chance = random.Random(f"{self._seed}/{self._round}/{name}")

        def run() -> None:
            number = 0
            while not self._stop.is_set():
                number += 1
                try:
                    work(f"{self._round}.{number}", chance, *arguments)
                except contents.Broken as broken:
                    self._journal.line("wrong", text=f"{name}: {broken}")
                    return
                except OSError as failure:
                    if not self._is_dead(failure):
                        self._journal.line("wrong", text=f"{name}: {failure}")
                    return

        return threading.Thread(target=run, name=name, daemon=True)

    def _is_dead(self, failure: OSError) -> bool:
        if failure.errno in _DEAD:
            return True
        try:
            os.listdir(self._tree)
        except OSError as other:
            return other.errno in _DEAD
        return False

    # Builds.

    def _build(self, number: str, chance: random.Random, builder: int) -> None:
        mine = sorted(each for each in self._results if each.startswith(f"r{builder}."))
        if len(mine) > _KEPT:
            self._delete(chance.choice(mine))
            return
        ident = f"r{builder}.{number}"
        base = chance.choice(mine) if mine and chance.random() < 0.5 else None
        folder = self._tree / "builds" / (f"{ident}@{base}" if base else ident)
        folder.mkdir()
        contents.write(folder, ident, 0, chance)
        if chance.random() < 0.2:
            self._journal.line("discarding", id=ident)
            shutil.rmtree(folder)
            self._journal.line("discarded", id=ident)
            return
        self._journal.line("publishing", id=ident, version=ident)
        folder.rename(self._tree / "results" / ident)
        self._journal.line("published", id=ident, version=ident)
        self._results[ident] = ident

    def _delete(self, ident: str) -> None:
        self._journal.line("deleting", id=ident)
        self._journal.settle()
        try:
            os.rmdir(self._tree / "results" / ident)
        except OSError as failure:
            if failure.errno != errno.EBUSY:  # something is based on it, or reads it
                raise
            self._journal.line("kept", id=ident)
        else:
            self._journal.line("deleted", id=ident)
            self._results.pop(ident, None)

    # Caches.

    def _use(self, number: str, chance: random.Random, cache: str, label: str | None) -> None:
        folder = self._tree / "caches" / (f"{cache}@{label}" if label else cache)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            generation = int(os.getxattr(folder, "user.zfsfs.generation"))
            found = contents.read(folder)
            if found.generation != generation:
                raise contents.Broken(f"{folder} is {found.name}, which is not of generation {generation}")
            version = ""
            if chance.random() < 0.7:
                version = f"{cache}.{label or ''}.{number}"
                contents.write(folder, version, generation + 1, chance)
        finally:
            os.close(handle)
        while os.getxattr(folder, "user.zfsfs.state") != b"idle" and not self._stop.is_set():
            time.sleep(0.05)
        outcome = os.getxattr(folder, "user.zfsfs.outcome").decode()
        if version:
            self._journal.line("released", cache=cache, version=version, outcome=outcome, generation=generation + 1)

    # Readers.

    def _read(self, number: str, chance: random.Random, reader: int) -> None:
        known = sorted(self._results)
        if not known:
            time.sleep(0.1)
            return
        ident = chance.choice(known)
        try:
            found = contents.read(self._tree / "results" / ident)
        except FileNotFoundError:
            if ident in self._results:
                time.sleep(0.5)  # its builder may not have noted yet that it is deleted
            if ident in self._results and not self._stop.is_set():
                os.listdir(self._tree)
                raise
            return
        except OSError as failure:
            if failure.errno != errno.ESTALE or ident in self._results:
                raise
            return
        except contents.Broken:
            time.sleep(0.5)
            if ident in self._results:
                raise
            return
        if found.name not in (ident, ""):
            raise contents.Broken(f"result {ident} holds {found.name}")
        self._journal.line("read", id=ident)

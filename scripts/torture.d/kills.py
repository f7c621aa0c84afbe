#!/usr/bin/env python3
"""kill -9 of the daemon at random instants under load; `zfsfs mount` again, and everything is looked at.

The exit status is 1 when something was lost. The last line of the output is a summary, as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import patience
import verdict as verdicts
from journal import Journal, State
from load import Load

from zfsfs.mountpoint import mounted_type

#: Seconds for a round; minutes are usual only on a machine with much else to do.
_PATIENCE = 400.0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("store", help="an empty directory, or a dataset that is made and destroyed")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more rounds after this")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds of load before a kill, at most")
    parser.add_argument("--starting", type=float, default=1.0, help="seconds that a start takes, about")
    parser.add_argument("--seed", default="1")
    return parser.parse_args()


def kill(pid: int) -> None:
    """kill -9, and wait for the end."""
    watch = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    select.select([watch], [], [])
    os.close(watch)


class Torture:
    """Rounds of load and death on one store."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options, self._folder = options, folder
        self._tree = folder / "mnt"
        self._tree.mkdir()
        self._state = State()
        self._chance = random.Random(f"{options.seed}/kills")
        self.losses: list[str] = []
        self.kills = self.checks = 0
        self._goes_on = patience.guard(_PATIENCE, folder / "log")

    def run(self) -> None:
        end = time.monotonic() + self._options.seconds
        while self.kills < self._options.kills and time.monotonic() < end and not self.losses:
            self._round()
        if not self.losses:
            self._look()
            verdicts.zfsfs("umount", self._tree)
            verdicts.zfsfs("check", self._options.store)

    def _look(self) -> None:
        try:
            verdicts.mount(self._options.store, self._tree, self._folder / "log")
        except subprocess.CalledProcessError as failure:
            self.losses.append(f"after kill {self.kills} it can't be mounted: {failure.stderr.strip()}")
            return
        verdict = verdicts.judge(self._options.store, self._tree, self._state)
        self.checks += verdict.checks
        self.losses += [f"after kill {self.kills}: {each}" for each in verdict.losses]
        self._state = verdict.state

    def _round(self) -> None:
        self._goes_on()
        self._look()
        if self.losses:
            return
        lines: list[str] = []
        journal = Journal(lines.append)
        load = Load(self._tree, self._state, self._options.seed, self.kills, journal)
        pid = json.loads((self._tree / ".zfsfs" / "status.json").read_text())["pid"]
        load.start()
        journal.wait(self._chance, self._options.longest)
        kill(pid)
        self.kills += 1
        print(f"kill {self.kills}, {self.checks} checks, {self._state.operations} operations", flush=True)
        load.stop()
        self.losses += [f"after kill {self.kills}: {each} hangs" for each in load.join(60)]
        for line in lines:
            self._state.learn(json.loads(line))
        while self._chance.random() < 0.5:
            self._kill_while_it_starts()

    def _kill_while_it_starts(self) -> None:
        """The next daemon dies, too, somewhere between its first step and the mounted tree."""
        starting = os.fork()
        if starting == 0:
            with open(self._folder / "starting", "ab") as out:
                os.dup2(out.fileno(), 1)
                os.dup2(out.fileno(), 2)
            verdicts.zfsfs_main("mount", "-f", self._options.store, self._tree, "--linger", "0.05")
        time.sleep(self._chance.uniform(0.0, self._options.starting))
        kill(starting)
        os.waitpid(starting, 0)
        self.kills += 1

    def end(self) -> None:
        """Nothing stays mounted, whatever has happened."""
        if mounted_type(str(self._tree)) is not None:
            with suppress(subprocess.CalledProcessError):
                verdicts.zfsfs("umount", "--force", self._tree)
        if mounted_type(str(self._tree)) is not None:
            subprocess.run(["umount", "-l", self._tree], check=False)

    def summary(self) -> dict[str, object]:
        return {"kills": self.kills, "operations": self._state.operations, "checks": self.checks, "lost": self.losses}


def main() -> int:
    options = parse()
    if not options.store.startswith(("/", ".")):
        subprocess.run(["zfs", "create", "-p", "-o", "mountpoint=none", options.store], check=True)
    folder = Path(tempfile.mkdtemp(prefix="zfsfs-torture-"))
    torture = Torture(options, folder)
    try:
        torture.run()
    finally:
        torture.end()
        if not torture.losses:
            shutil.rmtree(folder)
    print(json.dumps(torture.summary()), flush=True)
    if torture.losses:
        print(f"what is left lies in {options.store}, the daemon's log in {folder}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

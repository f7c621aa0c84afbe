#!/usr/bin/env python3
"""Power cuts: the virtual machine is killed at random instants under load, with the pool on a disk that survives.

A boot looks at what the cut before it has left, and goes on with the load; so there is one more boot than cuts. The
disk takes a flush for what it is: of what was not flushed a random part is lost, besides what was in the memory. The
exit status is 1 when something was lost. The last line of the output is a summary, as JSON. ZFSFS_VM is what to call
in place of scripts/vm.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from journal import State  # noqa: E402

#: It did not even start: an emulated kernel's timers may fail on a machine with much to do.
MACHINE_FAILED = 125
VM = os.environ.get("ZFSFS_VM", str(HERE.parent / "vm"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cuts", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no more rounds after this")
    parser.add_argument("--seed", default="1")
    return parser.parse_args()


def boot(disk: Path, state: State, seed: str, round: int, *, last: bool) -> Iterator[dict[str, object]]:
    """Boot the machine until its power is cut, or until it is done; what it wrote down."""
    lossy = ["--lossy", f"{seed}/{round}"]
    verb = ["run"] if last else ["cut", *lossy, "--after-line", '"kind": "cut"']
    command = [VM, *verb, "--disk", str(disk), "--timeout", "500", "--env", f"TORTURE_STATE={state.dump()}", "--"]
    command += ["python", "scripts/torture.d/cut_off.py", "--seed", seed, "--round", str(round)]
    command += ["--last"] if last else []
    for _ in range(3):
        done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
        if done.returncode != MACHINE_FAILED or done.stdout:
            break
    for line in done.stdout.splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            continue  # the line that the cut went through
    if done.returncode:
        yield {"kind": "wrong", "text": f"{' '.join(verb)} ended with {done.returncode}"}


def torture(options: argparse.Namespace, disk: Path) -> list[str]:
    """As many cuts as are wanted, until something is lost; what that is."""
    state, cuts, checks, losses = State(), 0, 0, list[str]()
    end = time.monotonic() + options.seconds
    while not losses:
        last = cuts == options.cuts or time.monotonic() > end
        verified = False
        for line in boot(disk, state, options.seed, cuts, last=last):
            if line["kind"] == "verified":
                verified = True
                checks += int(str(line["checks"]))
                losses += [f"after cut {cuts}: {each}" for each in line["losses"]]  # type: ignore[attr-defined]
                state = State.load(str(line["state"])) if not losses else state
            else:
                state.learn(line)
        if not verified:
            losses += state.complaints or [f"after cut {cuts} the machine did not come to its end"]
        if last:
            losses += state.complaints
            break
        cuts += not losses
        print(f"cut {cuts}, {checks} checks, {state.operations} operations", flush=True)
    print(json.dumps({"cuts": cuts, "operations": state.operations, "checks": checks, "lost": losses}), flush=True)
    return losses


def main() -> int:
    options = parse()
    folder = Path(tempfile.mkdtemp(prefix="zfsfs-cuts-", dir="/var/tmp"))
    disk = folder / "disk"
    losses: list[str] = []
    try:
        losses = torture(options, disk)
    finally:
        if not losses:
            shutil.rmtree(folder)
    if losses:
        print(f"the disk is {disk}; scripts/vm shell --disk looks at it", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

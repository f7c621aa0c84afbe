"""In the virtual machine: mount what the last cut has left, look at everything, and then load until the next one.

Standard output is the journal. A line 'verified' says what was found, with the state from which the load goes on; a
line 'cut' comes at a random instant of the load, and the host cuts the power when it sees it.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import verdict as verdicts
from journal import State, on_stdout
from load import Load

STORE = "tank/torture"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--round", type=int, required=True)
    parser.add_argument("--seed", required=True)
    parser.add_argument("--longest", type=float, default=60.0, help="seconds of load before the cut, at most")
    parser.add_argument("--last", action="store_true", help="only look, and unmount")
    options = parser.parse_args()
    tree = Path("/run/torture")
    tree.mkdir()
    if subprocess.run(["zfs", "list", STORE], capture_output=True, check=False).returncode:
        subprocess.run(["zfs", "create", "-o", "mountpoint=none", STORE], check=True)
    journal = on_stdout()
    try:
        verdicts.mount(STORE, tree, Path("/run/log"))
    except subprocess.CalledProcessError as failure:
        journal.line("verified", checks=0, losses=[f"it can't be mounted: {failure.stderr}"], state="{}")
        return
    verdict = verdicts.judge(STORE, tree, State.load(os.environ["TORTURE_STATE"]))
    if options.last:
        verdicts.zfsfs("umount", tree)
        verdicts.zfsfs("check", STORE)
    journal.line("verified", checks=verdict.checks, losses=verdict.losses, state=verdict.state.dump())
    if verdict.losses:
        print(Path("/run/log").read_text(), file=sys.stderr)
    if verdict.losses or options.last:
        return
    load = Load(tree, verdict.state, options.seed, options.round, journal)
    load.start()
    journal.wait(random.Random(f"{options.seed}/{options.round}/cut"), options.longest)
    journal.line("cut")
    time.sleep(600)  # the power goes before


if __name__ == "__main__":
    main()

"""Who is killed while its threads are in calls of ZFS ends, though some of them may not hear of it."""

from __future__ import annotations

import signal
import subprocess
import sys

import datasets
import pytest

from zfsfs import killed

# The main thread has the interpreter's lock most of the time: who outlives it waits for that for ever.
RENAMING = """
import os, sys, threading
import libzfs_core

def rename(name):
    while True:
        for old, new in ((name, name + b"-"), (name + b"-", name)):
            libzfs_core.lzc_rename(old, new)
            os.write(1, b"renamed\\n")

for name in sys.argv[1:]:
    threading.Thread(target=rename, args=(name.encode(),), daemon=True).start()
while True:
    pass
"""
THREADS = 6


@pytest.mark.parametrize("renames", [6, 7, 9, 12])
def test_a_process_that_is_killed_while_it_renames_datasets_ends(pool, renames):
    names = [f"{pool}/{number}" for number in range(THREADS)]
    for name in names:
        datasets.create(name)
    with subprocess.Popen([sys.executable, "-c", RENAMING, *names], stdout=subprocess.PIPE) as process:
        for _ in range(renames):
            assert process.stdout.readline() == b"renamed\n"
        process.kill()
        assert killed.finish(process.pid, 60.0)
        assert process.wait() == -signal.SIGKILL

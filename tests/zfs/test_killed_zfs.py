"""Who is killed while its threads are in calls of ZFS ends, though some of them may not hear of it."""

from __future__ import annotations

import signal
import subprocess
import sys

import datasets
import pytest

from zfsfs import killed

# The main thread keeps the interpreter's lock for itself: who outlives it waits for that for ever.
RENAMING = """
import ctypes, os, sys, threading, time
import libzfs_core

def rename(name):
    while True:
        for old, new in ((name, name + b"-"), (name + b"-", name)):
            libzfs_core.lzc_rename(old, new)
            renamed.append(new)

renamed = []
for name in sys.argv[2:]:
    threading.Thread(target=rename, args=(name.encode(),), daemon=True).start()
while len(renamed) < int(sys.argv[1]):
    time.sleep(0.001)
os.write(1, b"ready\\n")
ctypes.PyDLL(None).pause()
"""
THREADS = 6


@pytest.mark.parametrize("renames", [1, 3, 7])
def test_a_process_that_is_killed_while_it_renames_datasets_ends(pool, renames):
    names = [f"{pool}/{number}" for number in range(THREADS)]
    for name in names:
        datasets.create(name)
    # Not as a context: that would wait for ever for what this is about.
    process = subprocess.Popen([sys.executable, "-c", RENAMING, str(renames), *names], stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"ready\n"
        process.kill()
        assert killed.finish(process.pid, 60.0)
        assert process.wait() == -signal.SIGKILL
    finally:
        process.stdout.close()

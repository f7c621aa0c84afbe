"""User namespaces to map users by."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

#: Whoever has started it ignores the end of children.
IGNORING = """
import os, signal
from zfsfs.native.users import namespace_of
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
print(os.readlink(f"/proc/self/fd/{namespace_of([(0, 0, 1)])}"))
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="maps root")
def test_one_is_made_also_where_the_end_of_children_is_ignored():
    done = subprocess.run([sys.executable, "-c", IGNORING], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("user:["), done.stderr

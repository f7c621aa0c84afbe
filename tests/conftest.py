"""What all tests share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import crash_counts
import pytest
from hypothesis import settings

# A loaded machine is no failure.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")

# Suites are no test modules themselves; their asserts should explain themselves all the same.
pytest.register_assert_rewrite("suites", "comparing")

# What the tests start is the code beside them, too: the environment may have been made for another tree.
_path = (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, _path))

# Other users come to what tests make, too, whatever the umask of who has called them.
os.umask(0o022)

# A shell's & and nohup have us ignore these, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda *_: None)  # what we start has the default; we go on


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many crash points were tried; with -v, of which sequence."""
    lines = crash_counts.summary(config.get_verbosity() > 0)
    if lines:
        terminalreporter.section("crash points")
        for line in lines:
            terminalreporter.write_line(line)

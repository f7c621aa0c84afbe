"""What all tests share."""

from __future__ import annotations

import crash_counts
import pytest

# Suites are no test modules themselves; their asserts should explain themselves all the same.
pytest.register_assert_rewrite("suites", "comparing")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many crash points were tried; with -v, of which sequence."""
    lines = crash_counts.summary(config.get_verbosity() > 0)
    if lines:
        terminalreporter.section("crash points")
        for line in lines:
            terminalreporter.write_line(line)

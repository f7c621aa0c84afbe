"""scripts/test, interrupted: what it calls are programs that do nothing here."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts/test"
#: As pytest has it: interrupted, it ends by itself, with 2.
PYTEST = f"""#!{sys.executable}
import signal, sys, time
signal.signal(signal.SIGINT, lambda *_: sys.exit(2))
with open("begun", "w") as begun:
    begun.write("x")
time.sleep(60)
"""


def program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


def test_after_an_interrupt_nothing_more_is_begun(tmp_path: Path) -> None:
    program(tmp_path / ".venv/bin/python", PYTEST)
    program(tmp_path / "scripts/check", "#!/bin/sh\n")
    program(tmp_path / "scripts/vm", "#!/bin/sh\nexec sleep 60\n")
    program(tmp_path / "scripts/torture", "#!/bin/sh\ntouch tortured\n")
    shutil.copy(SCRIPT, tmp_path / "scripts")
    os.mkfifo(tmp_path / "begun")
    environment = {key: value for key, value in os.environ.items() if key != "ZFSFS_TEST_POOL"}
    command = [tmp_path / "scripts/test"]
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=-3, stderr=-3) as test:
        (tmp_path / "begun").read_text()
        os.killpg(test.pid, signal.SIGINT)  # as ctrl-C does it
        assert test.wait(timeout=30) == 130
    assert not (tmp_path / "tortured").exists()

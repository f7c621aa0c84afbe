"""scripts/torture, interrupted."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from mounted_tree import until

from zfsfs.mountpoint import trees

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="scripts/setup has not made its environment here")
def test_an_interrupted_torture_leaves_nothing(tmp_path: Path) -> None:
    def mounted() -> list[str]:
        return [path for _, path in trees() if Path(path).is_relative_to(tmp_path)]

    command = [ROOT / "scripts/torture", "--directory", "--kills", "1000", "--examples", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, start_new_session=True, stdout=-3, stderr=-3) as torture:
        until(mounted)
        os.killpg(torture.pid, signal.SIGINT)  # as ctrl-C does it
        assert torture.wait(timeout=60) == 130
    assert mounted() == []
    assert os.listdir(tmp_path) == []

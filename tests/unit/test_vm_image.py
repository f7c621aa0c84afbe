"""How the virtual machine's image is built: by an mmdebstrap that makes nothing."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "scripts/vm.d"
#: Without a network, and what is to be installed.
BUILD = """import image, pathlib
image.download = lambda wheels, step: None
image.missing_host_packages = lambda: []
image.build(pathlib.Path("a cache/vm-1").absolute())
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root builds an image")


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where all of it happens: every name in it has a space."""
    folder = tmp_path / "a folder"
    shutil.copytree(HERE, folder / "scripts/vm.d")
    (folder / "a cache").mkdir()
    (folder / "bin").mkdir()
    program(folder / "scripts/vm.d/customize", f"echo \"$1, $2, $3\" >'{folder}/customized'")
    return folder


def start(folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "ZFSFS_DEBIAN_MIRROR": "none"}
    environment["PYTHONPATH"] = str(folder / "scripts/vm.d")
    return subprocess.Popen([sys.executable, "-c", BUILD], cwd=folder, env=environment, stderr=subprocess.DEVNULL)


def test_it_is_customized_wherever_the_repository_and_the_cache_lie(folder: Path) -> None:
    run_hook = 'for each; do case $each in --customize-hook=*) sh -c "${each#*=}" hook ROOT; esac; done'
    program(folder / "bin/mmdebstrap", run_hook)
    start(folder).wait()
    said = (folder / "customized").read_text().strip().split(", ")
    assert said[:2] == ["ROOT", str(folder / "scripts/vm.d")]
    assert Path(said[2]).parents[1] == folder / "a cache"


def test_what_builds_it_ends_with_who_wants_it(folder: Path) -> None:
    """Killed, it holds the lock no more, and the next to build removes what is being made."""
    os.mkfifo(folder / "begun")
    program(folder / "bin/mmdebstrap", f"echo $$ >'{folder}/begun'; exec sleep 1000")
    with start(folder) as building:
        ended = os.pidfd_open(int((folder / "begun").read_text()))
        building.kill()
        try:
            assert select.select([ended], [], [], 30)[0]
        finally:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(ended, signal.SIGKILL)
            os.close(ended)

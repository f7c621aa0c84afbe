"""Leaving under systemd: a unit as the README has it, stopped in time and too late."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import changed_daemon
import pytest
from mounted_tree import Mounted, arrived

from zfsfs.mountpoint import mounted_type

pytestmark = pytest.mark.skipif(
    os.environ.get("ZFSFS_VM") != "1" or not Path("/run/systemd/system").exists(), reason="installs units"
)

README = Path(__file__).parents[2] / "README.md"


def systemctl(verb: str, unit: str, expect: int = 0) -> str:
    done = subprocess.run(["systemctl", verb, unit], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode != 0) == bool(expect), done.stdout + done.stderr
    return done.stdout.strip()


def write_unit(name: str, command: str, stop: str) -> None:
    """The README's unit with another command and another time to stop."""
    found = re.search(r"( +\[Unit\]\n(?: +.*\n)+)", README.read_text())
    assert found
    text = re.sub("(?m)^ +", "", found[1])
    text = re.sub("(?m)^ExecStart=.*", lambda _: f"Environment=PYTHONPATH={README.parent}\nExecStart={command}", text)
    text = re.sub("(?m)^TimeoutStopSec=.*", f"TimeoutStopSec={stop}", text)
    Path(f"/run/systemd/system/{name}").write_text(text)
    subprocess.run(["systemctl", "daemon-reload"], check=True)


@pytest.fixture
def unit(unmounted: Mounted) -> Iterator[str]:
    name = f"zfsfs-{secrets.token_hex(4)}.service"
    yield name
    subprocess.run(["systemctl", "stop", name], check=False)
    os.unlink(f"/run/systemd/system/{name}")
    subprocess.run(["systemctl", "daemon-reload"], check=True)


def command(tree: Mounted, *changed: object) -> str:
    words = (sys.executable, *(changed or ("-m", "zfsfs")), "mount", "--foreground", tree.store, tree.path)
    return " ".join(map(str, (*words, "--log", tree.log)))


def in_use(tree: Mounted, text: str) -> subprocess.Popen[bytes]:
    """A result, a running build, and a session that somebody holds."""
    (tree / "builds/done").mkdir()
    (tree / "builds/done/file").write_text("done")
    os.rename(tree / "builds/done", tree / "results/done")
    (tree / "builds/half").mkdir()
    (tree / "caches/c").mkdir()
    (tree / "caches/c/file").write_text(text)
    return subprocess.Popen(["sleep", "1000"], cwd=tree / "caches/c")


def test_a_service_that_is_stopped_publishes_sessions_and_discards_builds(unmounted: Mounted, unit: str) -> None:
    tree = unmounted
    write_unit(unit, command(tree), "5min")
    systemctl("start", unit)
    assert tree.status()["pid"]  # it is usable when systemd says that it is started
    holder = in_use(tree, "of the session")
    with open(tree / "builds/half/file", "w") as file:
        file.write("half")
        file.flush()
        systemctl("stop", unit)
    assert systemctl("is-active", unit, expect=3) == "inactive"
    holder.kill()
    holder.wait()
    assert mounted_type(str(tree.path)) is None
    systemctl("start", unit)
    assert (tree / "caches/c/file").read_text() == "of the session"
    assert os.listdir(tree / "results") == ["done"]
    assert os.listdir(tree / "builds") == []
    systemctl("stop", unit)


def test_a_service_that_is_killed_for_want_of_time_is_repaired_by_the_next(
    unmounted: Mounted, unit: str, tmp_path: Path
) -> None:
    tree = unmounted
    for name in ("entered", "go"):
        os.mkfifo(tmp_path / name)
    write_unit(unit, command(tree, changed_daemon.__file__, "batch", tmp_path), "2s")
    systemctl("start", unit)
    holder = in_use(tree, "new")
    (tmp_path / "armed").touch()
    stop = subprocess.Popen(["systemctl", "stop", unit])
    assert arrived(tmp_path)  # within the release, and there it stays
    stop.wait()
    assert systemctl("is-active", unit, expect=3) == "failed"
    holder.kill()
    holder.wait()
    systemctl("start", unit)
    assert os.listdir(tree / "caches") == ["c"]
    left = os.listdir(tree / "caches/c")
    assert left in ([], ["file"])
    assert (tree / "results/done/file").read_text() == "done"
    (tree / "builds/half").mkdir()
    (tree / "builds/half").rmdir()
    systemctl("stop", unit)

"""A command in a mount namespace of its own, with a directory over a path: `enter`, then `execute`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

CAN_UNSHARE = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0
pytestmark = pytest.mark.skipif(not CAN_UNSHARE, reason="needs user namespaces")

#: What `zfsfs exec` does once it has been given a directory: here FOLDER/data, to lie over FOLDER/place.
PROGRAM = """
import os, sys
from zfsfs.handover import Native
from zfsfs.native.launch import execute
from zfsfs.native.mounts import Layer, Spot, enter

folder, read_only, changed, *words = sys.argv[1:]
data, place = (os.open(f"{folder}/{name}", os.O_RDONLY | os.O_DIRECTORY) for name in ("data", "place"))
layer = Layer(Native(data, detached=False, read_only=bool(read_only)), Spot.of(place))
if changed:
    os.rename(f"{folder}/place", f"{folder}/other")
    os.symlink(f"{folder}/other", f"{folder}/place")
enter([layer])
os.chdir(f"{folder}/place")
execute(words)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A directory that every user can reach, with `data/file` and an empty `place`."""
    with tempfile.TemporaryDirectory(prefix="zfsfs-") as name:
        for made in ("", "data", "place"):
            (Path(name) / made).mkdir(exist_ok=True)
            (Path(name) / made).chmod(0o777)
        (Path(name) / "data/file").write_text("native")
        yield Path(name)


def run(folder: Path, *words: str, read_only: bool = False, changed: bool = False, user: int | None = None):
    program = [sys.executable, "-c", PROGRAM, str(folder), "x" * read_only, "x" * changed, *words]
    groups = None if user is None else []
    return subprocess.run(
        program, user=user, group=user, extra_groups=groups, cwd="/", capture_output=True, text=True, check=False
    )


def test_the_command_sees_the_directory_and_nobody_else_does(folder):
    done = run(folder, "sh", "-c", "cat file && echo more >made && pwd")
    assert (done.stdout, done.stderr, done.returncode) == (f"native{folder}/place\n", "", 0)
    assert (folder / "data/made").read_text() == "more\n"
    assert os.listdir(folder / "place") == []


def test_devices_and_set_user_id_are_off(folder):
    line = next(line for line in run(folder, "cat", "/proc/self/mountinfo").stdout.splitlines() if "/place " in line)
    assert {"nosuid", "nodev", "rw"} <= set(line.split()[5].split(","))


def test_a_read_only_layer_can_not_be_written(folder):
    done = run(folder, "touch", "file", read_only=True)
    assert done.returncode == 1
    assert "Read-only file system" in done.stderr


def test_exit_codes_are_those_of_env(folder):
    assert run(folder, "sh", "-c", "exit 3").returncode == 3
    assert run(folder, "sh", "-c", "kill -9 $$").returncode == -9
    assert run(folder, "no-such-command").returncode == 127
    assert run(folder, str(folder / "data/file")).returncode == 126
    done = run(folder, "")
    assert (done.stderr, done.returncode) == ("zfsfs: : No such file or directory\n", 127)
    done = run(folder, "no\nsuch\x1b[2J")
    assert (done.stderr, done.returncode) == ("zfsfs: no\\nsuch\\x1b[2J: No such file or directory\n", 127)


def test_a_script_that_names_no_interpreter_is_the_shells(folder):
    script = folder / "script"
    script.write_text("echo $1 from $0\n")
    script.chmod(0o755)
    assert run(folder, str(script), "printed").stdout == f"printed from {script}\n"


def test_signals_have_their_defaults_and_no_descriptor_is_left_over(folder):
    done = run(folder, "sh", "-c", "grep SigIgn /proc/self/status; ls /proc/self/fd")
    assert done.stdout.split() == ["SigIgn:", "0" * 16, "0", "1", "2", "3"]  # 3: what ls reads


def test_a_path_that_has_become_another_is_refused(folder):
    done = run(folder, "true", changed=True)
    assert done.returncode == 1
    assert "zfsfs.errors.MountError" in done.stderr.splitlines()[-1]
    assert "place" in done.stderr.splitlines()[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes an ordinary user")
def test_who_has_no_privilege_needs_none(folder):
    imports = [sys.executable, "-c", "import zfsfs"]
    if subprocess.run(["setpriv", "--reuid=1234", *imports], capture_output=True, check=False, cwd="/").returncode:
        pytest.skip("an ordinary user can't read this Python environment")
    os.chown(folder / "data", 1234, 1234)
    done = run(folder, "sh", "-c", "cat file; id -u; touch made", user=1234)
    assert (done.stdout, done.stderr) == ("native1234\n", "")
    assert (folder / "data/made").stat().st_uid == 1234

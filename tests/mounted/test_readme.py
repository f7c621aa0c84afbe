"""What the README shows of a shell, typed as it stands there into an empty directory, shows the same."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from mounted_tree import zfsfs

from zfsfs.mountpoint import mounted_type

README = Path(__file__).parents[2] / "README.md"
#: What is another each time.
_DIFFERS = r"(?<=daemon )\d+|(?<=created=\")\d+|(?<=referenced=\")\d+|(?<=time\": )[\d.]+|/home/me"


def session(heading: str) -> list[str]:
    """The first thing that is shown of a shell under a heading: commands, after a '$', and what they print."""
    section = README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    found = re.search(r"(?m)(^    \$ .*\n(    .*\n|\n(?=    ))*)", section)
    assert found
    return [line.removeprefix("    ") for line in found[0].splitlines()]


def typed(folder: Path, shown: list[str]) -> list[str]:
    """The same, of these commands in a directory."""
    zfsfs = folder / "bin/zfsfs"
    zfsfs.parent.mkdir(exist_ok=True)
    zfsfs.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m zfsfs "$@"\n')
    zfsfs.chmod(0o755)
    commands = [line.removeprefix("$ ") for line in shown if line.startswith("$ ")]
    script = "".join(f"echo {shlex.quote(f'$ {each}')}\n{each}\n" for each in commands)
    environment = {**os.environ, "LC_ALL": "C", "PATH": f"{zfsfs.parent}:{os.environ['PATH']}"}
    place = folder / "me"
    place.mkdir(exist_ok=True)
    done = subprocess.run(["bash", "-c", script], cwd=place, env=environment, stdout=-1, stderr=-2, text=True)
    return done.stdout.splitlines()


def same(lines: list[str], home: Path) -> list[str]:
    return [re.sub(_DIFFERS, "…", line.replace(str(home), "/home/me")) for line in lines]


@pytest.fixture
def home(folder: Path):
    """Where somebody types; nothing is mounted there in the end."""
    yield folder
    mnt = folder / "me/mnt"
    if mounted_type(str(mnt)):
        zfsfs("umount", "--force", mnt)


def test_a_store_in_a_shell(home: Path) -> None:
    shown = session("In a shell")
    assert same(typed(home, shown), home / "me") == same(shown, home / "me")


SOURCE = """\
$ mkdir mnt
$ zfsfs mount ./store mnt
$ mkdir mnt/builds/src
$ echo "int main(void) { return 0; }" >mnt/builds/src/main.c
$ mv mnt/builds/src mnt/results/
$ zfsfs umount mnt"""


def test_a_builder_in_a_shell(home: Path) -> None:
    assert typed(home, SOURCE.splitlines()) == SOURCE.splitlines()
    *commands, ended = session("Builders")
    *same_commands, told = typed(home, commands)
    assert same_commands == commands
    expected = json.loads(ended.replace(", ...}", "}"))
    found = json.loads(told)
    assert {**expected, "time": found["time"]}.items() <= found.items()

"""The command line's commands: each is found by itself and by the help, and loads no more than it needs."""

from __future__ import annotations

import argparse
import subprocess
import sys

import pytest

from zfsfs import __version__
from zfsfs.cli import _MODULES, main, who

COMMANDS = [command for commands in _MODULES.values() for command in commands]


def ended(*words: str) -> int:
    """The exit code of a command line."""
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    code = caught.value.code
    assert isinstance(code, int)
    return code


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--version") == 0
    assert capsys.readouterr().out == f"zfsfs {__version__}\n"


def test_the_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert ended("--help") == 0
    text = capsys.readouterr().out
    assert [each for each in COMMANDS if f"\n    {each} " not in text] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_of_its_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ended(command, "--help") == 0
    assert capsys.readouterr().out.startswith(f"usage: zfsfs {command} ")


def test_a_build_that_is_being_discarded_is_nowhere(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no more in the tree, and still in the store."""
    status = {"builds": [{"dataset": "result/app", "path": None}], "sessions": [], "caches": [], "waiting": []}
    monkeypatch.setattr(who, "read_status", lambda mountpoint: status)
    monkeypatch.setattr(who.mountpoints, "trees", lambda: [("tank/ci", "/mnt/ci")])
    assert ended("who", "tank/ci/result/app") == 0
    said = "tank/ci/result/app has no path: its build is being discarded, or has only just begun\n"
    assert capsys.readouterr().out == said


@pytest.mark.parametrize("command", ["umount", "status", "who", "exec", "bind", "unbind", "build"])
def test_what_scripts_call_often_loads_no_daemon(command: str) -> None:
    """trio, and all that stands on it, takes two thirds of a second on a slow machine."""
    loads = f"import sys; from zfsfs.cli import _parser; _parser({command!r}); print('trio' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", loads], check=True, capture_output=True, text=True).stdout
    assert said == "False\n"


def test_a_module_adds_the_commands_that_it_is_said_to_have() -> None:
    from zfsfs.cli import _parser

    for module, commands in _MODULES.items():
        parser = _parser(commands[0])
        (found,) = (each for each in parser._actions if isinstance(each, argparse._SubParsersAction))
        assert tuple(found.choices) == commands, module

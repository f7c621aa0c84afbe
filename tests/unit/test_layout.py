"""The rooms: imports go downwards only, and what is dangerous or foreign has one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "zfsfs"

#: From the ground up; a room may import what stands on a lower line, and itself.
LEVELS = (
    ("errors",),
    ("names", "handover", "threads"),
    ("driver", "syscalls"),
    ("mountpoint",),
    ("native", "killed"),
    ("locking", "watchdog"),
    ("zfs", "directory"),
    ("store", "drivers"),
    ("config", "builders"),
    ("fs",),
    ("watch", "garbage"),
    ("daemon",),
    ("cli",),
    ("__main__",),
)
LEVEL = {room: number for number, rooms in enumerate(LEVELS) for room in rooms}


def modules() -> list[Path]:
    return [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def imports(path: Path) -> set[str]:
    """The modules that a file imports anywhere, in functions and for types, too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            # `from zfsfs import errors` names a room, not the package, which has only its version.
            rooms = {f"zfsfs.{alias.name}" for alias in node.names if alias.name != "__version__"}
            found |= rooms if module == "zfsfs" else {module}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downwards(path: Path) -> None:
    mine = room(path)
    others = {name.split(".")[1] for name in imports(path) if name.startswith("zfsfs.")} - {mine}
    for other in others:
        assert LEVEL[other] < LEVEL[mine], f"{mine} imports {other}"


def users(foreign: str) -> set[str]:
    return {
        str(path.relative_to(PACKAGE))
        for path in modules()
        if any(name.split(".")[0] == foreign for name in imports(path))
    }


def test_the_store_knows_no_driver_class() -> None:
    for path in (PACKAGE / "store").glob("*.py"):
        assert not any(name.startswith(("zfsfs.zfs", "zfsfs.directory")) for name in imports(path))


def test_only_the_edge_knows_pyfuse3() -> None:
    assert users("pyfuse3") == {
        "daemon.py",
        "fs/line.py",
        "fs/operations.py",
        "fs/own_operations.py",
        "fs/replies.py",
    }


def test_ctypes_stands_in_one_module() -> None:
    assert users("ctypes") == {"syscalls.py"}


def test_no_shell_runs_a_command() -> None:
    for path in modules():
        text = path.read_text()
        assert "shell=True" not in text
        assert "os.system" not in text


def test_the_top_level_is_as_the_design_has_it() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode or not listed.stdout:
        pytest.skip("this is no git checkout")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    shown = {name for name in top if not name.startswith(".")}
    assert shown == {"pyproject.toml", "zfsfs", "tests", "scripts", "README.md", "LICENSE"}


def test_what_tests_start_is_the_code_beside_them() -> None:
    words = [sys.executable, "-c", "import zfsfs; print(*zfsfs.__path__)"]
    found = subprocess.run(words, cwd="/", capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found) == PACKAGE

"""scripts/setup, by a Python that only says what it is called for: nothing is installed here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PYTHON = """#!/bin/sh
# -m venv --clear .venv
rm -rf .venv
mkdir -p .venv/bin
pwd >.venv/made-in
echo '#!/bin/sh\necho "$(cat "${0%/*}/../made-in")/zfsfs"' >.venv/bin/python
echo '#!/bin/sh\nsleep 0.2; echo installed >>"${0%/*}/../../calls"' >.venv/bin/pip
chmod +x .venv/bin/*
"""


def program(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


class Checkout:
    """A copy of what setup needs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self) -> subprocess.Popen[str]:
        environment = {"PATH": f"{self.folder}/bin:/usr/bin:/bin", "PYTHON": str(self.folder / "bin/python3")}
        return subprocess.Popen([self.folder / "scripts/setup"], env=environment, cwd="/", stdout=-1, text=True)

    def setup(self) -> None:
        with self.start() as running:
            assert running.wait() == 0

    @property
    def installed(self) -> int:
        return len((self.folder / "calls").read_text().splitlines())


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "a folder"
    (folder / "scripts").mkdir(parents=True)
    (folder / "bin").mkdir()
    shutil.copy(REPOSITORY / "scripts/setup", folder / "scripts")
    shutil.copy(REPOSITORY / "pyproject.toml", folder)
    program(folder / "bin/dpkg-query", "#!/bin/sh\necho ii\n")
    program(folder / "bin/python3", PYTHON)
    return Checkout(folder)


def test_an_environment_is_made_once(checkout: Checkout) -> None:
    checkout.setup()
    checkout.setup()
    assert checkout.installed == 1


def test_two_at_once_make_one(checkout: Checkout) -> None:
    with checkout.start() as one, checkout.start() as other:
        assert one.wait() == other.wait() == 0
    assert checkout.installed == 1


@pytest.mark.parametrize("how", [shutil.move, shutil.copytree])
def test_an_environment_that_was_made_elsewhere_is_made_anew(checkout: Checkout, how) -> None:
    checkout.setup()
    elsewhere = Checkout(checkout.folder.with_name("elsewhere"))
    how(checkout.folder, elsewhere.folder)
    elsewhere.setup()
    assert elsewhere.installed == 2


def test_an_environment_that_several_trees_share_is_left_alone(checkout: Checkout) -> None:
    """A worktree's .venv may be a link to another's."""
    checkout.setup()
    worktree = Checkout(checkout.folder.with_name("worktree"))
    shutil.copytree(checkout.folder, worktree.folder, ignore=shutil.ignore_patterns(".venv"))
    (worktree.folder / ".venv").symlink_to(checkout.folder / ".venv")
    worktree.setup()
    assert checkout.installed == 1

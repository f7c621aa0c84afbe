"""The README's hook of a CI runner, called as GitLab's custom executor and GitHub's runner call theirs.

Sources: docs.gitlab.com/runner/executors/custom, docs.github.com "Running scripts before or after a job".
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from mounted_tree import Mounted, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="bind mounts need root")

README = Path(__file__).parents[2] / "README.md"
Hook = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hook(tree: Mounted, folder: Path) -> Hook:
    """What runs the hook as it stands in the README, but for where it keeps the session."""
    begin = "    #!/bin/sh -e\n"
    after = README.read_text().split(begin)[1].splitlines()
    lines = [begin, *(f"{line}\n" for line in after[: after.index("    esac") + 1])]
    path = folder / "hook"
    path.write_text("".join(line.removeprefix("    ") for line in lines).replace("/run/ci", str(folder / "held")))
    path.chmod(0o755)
    (tree / "caches/npm").mkdir()
    tree.closed()

    def run(*words: object, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "CI": str(tree.path), **variables}
        return subprocess.run([path, *map(str, words)], env=environment, capture_output=True, text=True)

    return run


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh -e\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("last", "ends_with"), [("true", 0), ("false", 3)])
def test_a_job_of_gitlab_is_published_if_it_succeeds(
    tree: Mounted, hook: Hook, folder: Path, last: str, ends_with: int
) -> None:
    job = {"CUSTOM_ENV_CI_JOB_ID": "4711", "BUILD_FAILURE_EXIT_CODE": "3"}
    places = json.loads(hook("config", **job).stdout)
    assert hook("prepare", **job).returncode == 0
    sources = script(folder, "sources", f"mkdir -p {places['builds_dir']}/group/project")
    assert hook("run", sources, "get_sources", **job).returncode == 0
    # Longer than a session that nobody holds stays open (--linger).
    until(lambda: "mount at" in str(tree.status()["sessions"]))
    work = script(
        folder,
        "work",
        f"cd {places['builds_dir']}/group/project; echo x >made; echo y >{places['cache_dir']}/file; {last}",
    )
    assert hook("run", work, "step_script", **job).returncode == ends_with
    assert hook("cleanup", **job).returncode == 0
    assert tree.outcome("npm@4711") == "published"
    assert (tree / "caches/npm/file").read_text() == "y\n"
    assert os.listdir(tree / "builds") == []
    assert os.listdir(tree / "results") == ([] if ends_with else ["4711"])
    if not ends_with:
        assert (tree / "results/4711/group/project/made").read_text() == "x\n"


def test_a_job_of_github_says_in_its_last_step_that_it_has_succeeded(tree: Mounted, hook: Hook) -> None:
    job = {"GITHUB_RUN_ID": "99", "GITHUB_RUN_ATTEMPT": "1", "GITHUB_JOB": "test_all"}
    assert hook("prepare", **job).returncode == 0
    (tree / "builds/99-1-test_all/made").write_text("x")
    os.setxattr(tree / "caches/npm@99-1-test_all", "user.zfsfs.success", b"yes")
    assert hook("cleanup", **job).returncode == 0
    assert (tree / "results/99-1-test_all/made").read_text() == "x"

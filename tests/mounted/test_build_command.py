"""zfsfs build: from mkdir to a result in one command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from mounted_tree import until, zfsfs


def build(tree, ident, *words, expect=0, options=(), env=None):
    """Run it; returns what it said on standard output and error."""
    command = [sys.executable, "-m", "zfsfs", "build", *map(str, options), tree.path, ident, "--", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=env)
    assert done.returncode == expect, done.stderr
    return done.stdout, done.stderr


def nothing_left(tree):
    assert os.listdir(tree / "builds") == os.listdir(tree / "results") == []


@pytest.fixture(params=[[], ["--native"]], ids=["tree", "native"])
def way(request):
    return request.param


def test_success_is_published(tree, way):
    script = "pwd; echo $ZFSFS_ID $ZFSFS_BASE $ZFSFS_BUILD; echo made >file"
    out, err = build(tree, "one", "sh", "-c", script, options=way)
    assert out.split() == [f"{tree.path}/builds/one", "one", f"{tree.path}/builds/one"]
    assert (tree / "results/one/file").read_text() == "made\n"
    assert os.listdir(tree / "builds") == []
    assert "build one is started\n" in err
    assert "build one is published after" in err
    out, err = build(tree, "two", "sh", "-c", "cat file; echo $ZFSFS_BASE", options=[*way, "--base", "one"])
    assert out == "made\none\n"


def test_failure_is_discarded_with_the_commands_exit_code(tree, way):
    _, err = build(tree, "one", "sh", "-c", "echo x >file; exit 3", expect=3, options=way)
    assert "has failed with exit code 3" in err
    build(tree, "one", "sh", "-c", "kill -9 $$", expect=128 + 9, options=way)
    build(tree, "one", "no-such-command", expect=127, options=way)
    nothing_left(tree)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_is_discarded(tree, way, number):
    command = [sys.executable, "-m", "zfsfs", "build", *way, tree.path, "one"]
    command += ["--", "sh", "-c", "echo in; exec sleep 60"]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.killpg(process.pid, number)
        _, err = process.communicate()
    assert process.returncode == 128 + number
    assert f"interrupted by {number.name}, and is discarded" in err
    nothing_left(tree)


def test_caches_are_held_and_published(tree, way):
    (tree / "caches/cc").mkdir()
    use = [*way, "--cache", "cc@job:CC_DIR"]
    out, _ = build(tree, "one", "sh", "-c", "echo $CC_DIR; echo warm >$CC_DIR/entry; sleep 0.3; cat $CC_DIR/entry",
                   options=use)  # fmt: skip
    assert out == f"{tree.path}/caches/cc@job\nwarm\n"
    assert tree.outcome("cc@job") == "published"
    assert (tree / "caches/cc/entry").read_text() == "warm\n"


def test_a_cache_can_lie_at_a_path(tree, tmp_path):
    (tree / "caches/cc").mkdir()
    there = tmp_path / "there"
    there.mkdir()
    build(tree, "one", "sh", "-c", f"echo warm >{there}/entry", options=["--native", "--cache", f"cc:{there}"])
    assert os.listdir(there) == []
    assert tree.outcome("cc") == "published"
    assert (tree / "caches/cc/entry").read_text() == "warm\n"


def test_what_cannot_be_built_is_said_in_one_line(tree, tmp_path):
    build(tree, "one", "true")
    for ident, options, code, text in (
        ("one", [], 125, "is a result, or is being built"),
        ("two", ["--base", "none"], 125, "no result none"),
        ("two", ["--cache", "none:X"], 125, "No such file"),
        ("two", ["--cache", "none"], 2, "--cache none"),
        ("two", ["--cache", "a:1X"], 2, "no variable"),
        ("two", ["--cache", "a:/x"], 2, "needs --native"),
        ("a/b", [], 2, "an id has no"),
    ):
        _, err = build(tree, ident, "true", options=options, expect=code)
        assert text in err
        assert err.count("\n") == 1
    assert "no zfsfs" in zfsfs("build", tmp_path, "x", "--", "true", expect=125).stderr
    zfsfs("build", tree.path, "x", expect=2)
    assert os.listdir(tree / "builds") == []


def test_a_process_that_stays_in_the_build_is_named(tree):
    script = "setsid sleep 30 <&- >&- 2>&- & echo $! >pid"
    command = [
        sys.executable,
        "-c",
        "import zfsfs.cli.building as b; b.PATIENCE = 0.5; from zfsfs.cli import main; main()",
    ]
    command += ["build", "--native", tree.path, "one", "--", "sh", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "of sleep (pid " in done.stderr
    pid = int((tree / "builds/one/pid").read_text())
    os.kill(pid, signal.SIGKILL)
    until(lambda: not tree.status()["native"])
    os.rmdir(tree / "builds/one")

"""Real tools in builds and caches, each checked by its own means."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def run(*command: object, cwd: Path | None = None) -> str:
    """Run a tool that has to succeed; returns its output."""
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(params=["builds", "caches"])
def place(request, tree):
    """A directory in a build, or in a cache; the session is over at the end."""
    folder = tree / request.param / "x"
    folder.mkdir()
    yield folder
    run("find", folder, "-mindepth", "1", "-delete")
    assert os.listdir(folder) == []
    if request.param == "builds":
        folder.rmdir()


@pytest.fixture
def source(tmp_path):
    """Some files of every kind."""
    folder = tmp_path / "source"
    (folder / "deep/er").mkdir(parents=True)
    (folder / "deep/er/data").write_bytes(os.urandom(300_000))
    (folder / "empty").touch()
    (folder / "script").write_text("#!/bin/sh\n")
    (folder / "script").chmod(0o755)
    os.link(folder / "script", folder / "deep/same")
    (folder / "link").symlink_to("deep/er/data")
    (folder / "dangling").symlink_to("no/where")
    os.mkfifo(folder / "fifo")
    for number in range(200):
        (folder / "deep" / f"file {number}").write_text(str(number) * number)
    # Long ago: rsync leaves times alone that are in the right second already.
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, ns=(1, 1_234_567_890_123_456_789), follow_symlinks=False)
    return folder


def test_git_clone(place, tmp_path):
    origin = tmp_path / "origin"
    run("git", "init", "-q", origin)
    for number in range(100):
        (origin / f"file{number}").write_text(f"{number}\n" * 50)
    run("git", "-C", origin, "add", ".")
    run("git", "-C", origin, "-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "first")
    run("git", "clone", "-q", f"file://{origin}", place / "clone")
    run("git", "-c", "safe.directory=*", "-C", place / "clone", "fsck", "--full")
    assert run("git", "-c", "safe.directory=*", "-C", place / "clone", "status", "--porcelain") == ""


def test_tar(place, source, tmp_path):
    run("tar", "-cf", tmp_path / "t.tar", "-C", source, ".")
    run("tar", "-xf", tmp_path / "t.tar", "-C", place)
    assert run("tar", "--compare", "-f", tmp_path / "t.tar", "-C", place) == ""


def test_rsync(place, source):
    run("rsync", "-aH", "--exclude=fifo", f"{source}/", f"{place}/")
    left = run("rsync", "-anHi", "--checksum", "--modify-window=-1", "--exclude=fifo", f"{source}/", f"{place}/")
    assert left == ""


def test_cp(place, source):
    run("cp", "-a", f"{source}/.", place)
    run("diff", "-r", "--no-dereference", "--exclude=fifo", source, place)
    assert (place / "script").stat().st_nlink == 2


def test_a_compiler_and_make(place):
    (place / "main.c").write_text('#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n')
    (place / "Makefile").write_text("main: main.o\n\t$(CC) -o $@ $<\n")
    run("make", "-C", place)
    assert run(place / "main") == "built\n"
    assert "up to date" in run("make", "-C", place)


def test_pip(place, tmp_path):
    wheel = tmp_path / "small-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("small/__init__.py", "value = 42\n")
        archive.writestr("small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n")
        archive.writestr(
            "small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("small-1.0.dist-info/RECORD", "small/__init__.py,,\n")
    run(sys.executable, "-m", "pip", "install", "-q", "--no-index", "--target", place / "lib", wheel)
    code = f"import sys; sys.path.insert(0, {str(place / 'lib')!r}); import small; print(small.value)"
    assert run(sys.executable, "-c", code) == "42\n"


def test_sqlite(place):
    base = sqlite3.connect(place / "base.sqlite")
    base.execute("pragma journal_mode=delete")
    base.execute("create table t (n integer, text)")
    for start in range(0, 1000, 100):
        with base:
            base.executemany("insert into t values (?, ?)", [(n, "x" * n) for n in range(start, start + 100)])
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()
    assert run("sqlite3", place / "base.sqlite", "select count(*), sum(length(text)) from t") == "1000|499500\n"

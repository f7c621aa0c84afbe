"""Who holds a thing: `zfsfs who`, and what the events and the status say of what is busy."""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from errnos import failing
from mounted_tree import Mounted, until, zfsfs

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def who(path: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(zfsfs("who", "--json", path).stdout)
    return found


@contextmanager
def process(script: str, *arguments: object) -> Iterator[int]:
    """A Python process that has run `script` and then does nothing until the end."""
    text = f"import mmap, os, sys\n{script}\nprint('x', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", text, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"
        yield child.pid


@pytest.fixture
def build(tree: Mounted) -> Iterator[Path]:
    folder = tree / "builds/b"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/file").write_text("contents")
    yield folder
    if folder.exists():
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("script", "what", "where"),
    [
        ("os.chdir(sys.argv[1] + '/sub')", "working directory", "builds/b/sub"),
        ("f = open(sys.argv[1] + '/sub/file')", "open file", "builds/b/sub/file"),
        ("f = os.open(sys.argv[1], os.O_RDONLY)", "open file", "builds/b"),
        (
            "f = os.open(sys.argv[1] + '/sub/file', os.O_RDWR); m = mmap.mmap(f, 8); os.close(f)",
            "mapping",
            "builds/b/sub/file",
        ),
    ],
)
def test_a_process_is_named_with_what_it_holds(tree, build, script, what, where):
    assert who(build) == []
    assert "nobody holds" in zfsfs("who", build).stdout
    with process(script, build) as pid:
        found = [each for each in who(build) if each["what"] == what]
        assert [(each["pid"], each["path"], each["uid"]) for each in found] == [(pid, where, os.getuid())]
        assert f"{what} by " in zfsfs("who", build).stdout
        if where.startswith("builds/b/sub"):
            assert [each["path"] for each in who(build / "sub") if each["what"] == what] == [where]
        else:
            assert who(build / "sub") == []
        for above in (tree.path, tree / "builds"):
            assert pid in [each["pid"] for each in who(above)]
        assert who(tree / "results") == []


def test_a_program_that_runs_is_named(tree, build):
    shutil.copy("/bin/sleep", build / "nap")
    with subprocess.Popen([build / "nap", "60"]) as child:
        found = until(lambda: [each for each in who(build) if each["what"] == "executable"])
        assert [(each["pid"], each["command"]) for each in found] == [(child.pid, "nap")]
        child.kill()


@AS_ROOT
def test_a_bind_mount_is_named_with_its_place_and_namespace(tree, build, tmp_path):
    script = f"mount --bind '{build}/sub' '{tmp_path}' && echo x && read x"
    with subprocess.Popen(
        ["unshare", "-m", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as box:
        assert box.stdout is not None
        box.stdout.read(1)
        found = [each for each in who(build) if each["what"] == "mount"]
        namespace = os.stat(f"/proc/{box.pid}/ns/mnt").st_ino
        assert [(each["path"], each["at"], each["namespace"]) for each in found] == [
            ("builds/b/sub", str(tmp_path), namespace)
        ]
        assert box.stdin is not None
        box.stdin.close()


@AS_ROOT
def test_the_name_that_a_process_gives_itself_is_safe_to_print(tree, build):
    with process("open('/proc/self/comm', 'w').write('a\\n\\x1b[2Jb'); os.chdir(sys.argv[1])", build) as pid:
        (found,) = who(build)
        assert (found["pid"], found["command"]) == (pid, r"'a\n\x1b[2Jb'")
        assert zfsfs("who", build).stdout.count("\n") == 1


def test_a_dataset_is_asked_for_by_its_name(tree, build):
    dataset = f"{tree.store}/result/b"
    assert "nobody holds" in zfsfs("who", dataset).stdout
    with process("os.chdir(sys.argv[1])", build) as pid:
        assert str(pid) in zfsfs("who", dataset).stdout


def test_what_is_not_in_a_tree_is_a_mistake(tree, tmp_path):
    for path in (tmp_path, tmp_path / "nothing", "tank/no/such"):
        assert "zfsfs: " in zfsfs("who", path, expect=2).stderr


@pytest.mark.parametrize("text", [b"no JSON", b'{"x": 1}', b'[{"what": "\\u001b[2J"}]'])
def test_what_somebody_says_of_a_file_elsewhere_is_not_looked_at(tmp_path, text):
    (tmp_path / "file").touch()
    os.setxattr(tmp_path / "file", "user.zfsfs.holders", text)
    done = zfsfs("who", tmp_path / "file", expect=2)
    assert (done.stdout, done.stderr.count("\n")) == ("", 1)


@pytest.mark.parametrize("verb", ["discard", "delete"])
def test_what_is_removed_while_it_is_open_goes_later_and_the_events_name_who_has_it(tree, build, verb):
    folder = build
    if verb == "delete":
        folder = tree / "results/b"
        build.rename(folder)
    with (
        process("f = open(sys.argv[1] + '/sub/file'); os.chdir('/')", folder) as pid,
        open(folder / "sub/file") as mine,
    ):
        # As another's rm -r does it: what is open stays readable to its end.
        os.rmdir(folder)
        assert not folder.exists()
        (event,) = until(lambda: tree.events("postponed"))
        assert f"(pid {pid})" in event
        assert f"(pid {os.getpid()})" in event
        assert "sub/file" not in event
        (waiting,) = tree.status()["waiting"]
        assert f"(pid {pid})" in waiting["reason"]
        assert mine.read() == "contents"
        # The name is free at once.
        os.mkdir(tree / "builds/b")
        os.rename(tree / "builds/b", tree / "results/b")
    tree.closed()
    assert os.listdir(tree / "results/b") == []


def test_a_removal_that_waits_survives_a_restart(tree, build):
    with open(build / "sub/file"):
        os.rmdir(build)
        until(lambda: tree.status()["waiting"])
        tree.umount("--force")
    tree.mount()
    tree.closed()
    assert os.listdir(tree / "builds") == []


@AS_ROOT
def test_paths_within_are_for_root_and_the_process_itself(tree, build):
    with process("f = open(sys.argv[1] + '/sub/file')", build) as pid:
        ask = "import os, sys; os.setresuid(7, 7, 7); print(os.getxattr(sys.argv[1], 'user.zfsfs.holders').decode())"
        command = [sys.executable, "-c", ask, build]
        told = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        assert [(each["pid"], each["path"]) for each in told] == [(pid, "builds/b")]
        os.chmod(build, 0o700)
        assert subprocess.run(command, check=False, capture_output=True).returncode == 1


def test_the_answer_is_not_among_the_attributes_that_are_listed(tree, build):
    assert "user.zfsfs.holders" not in os.listxattr(build)
    with failing(errno.EPERM):
        os.setxattr(build, "user.zfsfs.holders", b"nobody")


def test_mappings_are_kept(build):
    """Of this file's own process, too."""
    with open(build / "sub/file", "r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        assert {each["what"] for each in who(build)} == {"open file", "mapping"}
        assert mapped[:] == b"contents"

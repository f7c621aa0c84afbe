"""Builders that mean no good: each ends in a clear event and a clean tree, and the daemon is there for the others."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from mounted_tree import Mounted, plant_socket, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes other users, limits a filesystem's size")

SYSTEMD = os.environ.get("ZFSFS_VM") == "1" and Path("/run/systemd/system").exists()
NOBODY = 65534


def configuration(folder: Path, script: str, more: str = "") -> Path:
    config = folder / "config.toml"
    config.write_text(f"[builder.sh]\ncommand = [\"sh\", \"-c\", '''{script}''']\nkill-grace = '1s'\n{more}")
    return config


def configured(tree: Mounted, folder: Path, script: str, more: str = "") -> Mounted:
    """A mounted store with a builder `sh` that runs a script."""
    tree.mount(0.1, "--config", str(configuration(folder, script, more)))
    return tree


def built(tree: Mounted, ident: str) -> str:
    """Have it built; how it has ended."""
    (tree / f"builds/sh+{ident}").mkdir()
    ended(tree, ident.partition("@")[0])
    return tree.events("builder-ended")[-1]


def ended(tree: Mounted, ident: str) -> dict:
    """How a build has ended, once it has."""
    return json.loads(subprocess.run(["cat", tree / ".zfsfs/wait" / ident], stdout=-1, check=True, timeout=60).stdout)


def of_user(uid: int) -> list[int]:
    """The processes of a user."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and entry.stat().st_uid == uid and (entry / "exe").readlink():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def clean(tree: Mounted) -> None:
    """Nothing is left, and others' work goes on."""
    tree.closed()
    assert os.listdir(tree / "builds") == []
    (tree / "builds/other").mkdir()
    (tree / "builds/other/file").write_text("x")
    (tree / "builds/other").rename(tree / "results/other")
    (tree / "results/other").rmdir()


@pytest.fixture
def small(tmp_path: Path, store: str):
    """A store of 48 MiB: a quota on ZFS, a small tmpfs otherwise."""
    if os.environ.get("ZFSFS_TEST_POOL"):
        subprocess.run(["zfs", "set", "quota=48M", store], check=True)
        yield
        return
    Path(store).mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48M", "tmpfs", store], check=True)
    yield
    subprocess.run(["umount", store], check=True)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("native", ["true", "false"])
def test_a_builder_that_fills_the_pool(unmounted, folder, native):
    script = "for i in 1 2 3 4 5 6 7 8; do head -c 16M /dev/urandom >file.$i || exit 9; done; sync -f ."
    tree = configured(unmounted, folder, script, f"native = {native}")
    assert built(tree, "big").startswith("builder sh on big has failed: ")
    clean(tree)


@pytest.mark.parametrize("how", ["grouped", "ungrouped"])
def test_a_fork_bomb(unmounted, folder, how):
    config = configuration(
        folder, "b() { b | b & }; b 2>/dev/null; sleep 1000", "max-processes = 40\nuser = 65534\ntime-limit = 1"
    )
    unmounted.mount_changed(how, folder, "--config", config)
    assert built(unmounted, "bomb").startswith("builder sh on bomb has failed: ")
    assert of_user(NOBODY) == []
    clean(unmounted)


@pytest.mark.parametrize("kind", ["link", "fifo", "file"])
def test_what_a_base_says_of_a_daemon_is_not_looked_at(unmounted, folder, kind):
    secret = folder / "secret"
    secret.write_text("secret\n" * 100)
    tree = configured(unmounted, folder, "stat -fc %T .", "native = true\ntime-limit = 10")
    base = tree / "builds/base"
    base.mkdir()
    plant_socket(base, kind, secret)
    base.rename(tree / "results/base")
    assert built(tree, "one@base") == "builder sh on one has succeeded"
    assert "fuse" not in (tree / ".zfsfs/log/one").read_text()
    assert "secret" not in (tree / ".zfsfs/events").read_text()
    clean(tree)


@pytest.mark.parametrize("native", ["true", "false"])
def test_a_command_has_no_descriptor_but_its_input_and_output(unmounted, folder, native):
    tree = configured(unmounted, folder, "exec ls /proc/self/fd", f"native = {native}")
    assert built(tree, "one") == "builder sh on one has succeeded"
    assert (tree / ".zfsfs/log/one").read_text().split() == ["0", "1", "2", "3"]  # 3: what ls reads
    (tree / "results/one").rmdir()
    clean(tree)


def test_what_nobody_expects_of_one_build_ends_that_and_not_the_daemon(unmounted, folder):
    unmounted.mount_changed("speechless", folder, "--config", configuration(folder, "echo one"))
    (unmounted / "builds/sh+one").mkdir()
    line = ended(unmounted, "one")
    assert (line["outcome"], line["builder"]) == ("failed", "sh")
    assert "ZeroDivisionError" in line["reason"]
    assert any("ZeroDivisionError" in text for text in unmounted.events("warning"))
    clean(unmounted)
    unmounted.umount()
    assert "ZeroDivisionError" in unmounted.log.read_text()
    unmounted.log.unlink()  # nothing but that may be in it, elsewhere


SANDBOXES = {
    "bwrap": [
        "bwrap", "--ro-bind", "/", "/", "--dev", "/dev", "--bind", "{directory}", "{directory}", "--unshare-pid",
        "--die-with-parent", "--chdir", "{directory}", "{command}",
    ],
    "systemd-run": [
        "systemd-run", "-q", "--scope", "-p", "TasksMax=50", "--", "{command}",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "sandbox",
    [
        pytest.param("bwrap", marks=pytest.mark.skipif(not shutil.which("bwrap"), reason="there is no bubblewrap")),
        pytest.param(
            "systemd-run", marks=pytest.mark.skipif(not SYSTEMD, reason="needs systemd in a machine of ours")
        ),
    ],
)
def test_a_sandbox_by_configuration(unmounted, folder, sandbox):
    outside = folder / "outside"
    script = f"echo $ZFSFS_ID > made; cat /proc/self/cgroup; echo x > {outside}; sleep 1000 & exit 0"
    tree = configured(unmounted, folder, script, f"sandbox = {SANDBOXES[sandbox]}")
    assert built(tree, "one") == "builder sh on one has succeeded"
    assert (tree / "results/one/made").read_text() == "one\n"
    assert outside.exists() == (sandbox != "bwrap")
    if sandbox != "bwrap":
        assert ".scope" in (tree / ".zfsfs/log/one").read_text()
    (tree / "results/one").rmdir()
    clean(tree)


def hiding(tree: Mounted, folder: Path, how: str) -> tuple[int, Path]:
    """A builder at work whose command has started what is not a child of anybody's, in a session of its own: the
    supervisor, and what hides in /proc."""
    folder.chmod(0o777)
    pid = folder / "pid"
    config = configuration(folder, f"(setsid sh -c 'echo $$ >{pid}; exec sleep 1000' &); exec sleep 1000")
    tree.mount_changed(how, folder, "--config", config)
    (tree / "builds/sh+one").mkdir()
    hidden = Path("/proc") / until(lambda: pid.exists() and pid.read_text().strip())
    tasks = Path(f"/proc/{tree.pid}/task").iterdir()
    children = [child for each in tasks for child in (each / "children").read_text().split()]
    (supervisor,) = [int(each) for each in children if b"supervisor" in Path(f"/proc/{each}/cmdline").read_bytes()]
    return supervisor, hidden


@pytest.mark.parametrize("how", ["grouped", "ungrouped"])
def test_what_a_supervisor_that_was_killed_left_running_is_ended(unmounted, folder, how):
    supervisor, hidden = hiding(unmounted, folder, how)
    os.kill(supervisor, signal.SIGKILL)
    assert ended(unmounted, "one")["reason"] == "its supervisor was killed"
    assert not (hidden / "exe").exists()
    clean(unmounted)


@pytest.mark.parametrize("how", ["grouped", "ungrouped"])
def test_what_a_daemon_and_its_supervisors_left_running_is_ended_by_the_next(unmounted, folder, how):
    supervisor, hidden = hiding(unmounted, folder, how)
    daemon = unmounted.pid
    os.kill(daemon, signal.SIGSTOP)  # so that it can't see to it
    os.kill(supervisor, signal.SIGKILL)
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{daemon}/exe"))
    assert (hidden / "exe").exists()
    unmounted.mount()
    assert not (hidden / "exe").exists()
    assert len([text for text in unmounted.events("recovered") if "builder" in text]) == 1
    clean(unmounted)

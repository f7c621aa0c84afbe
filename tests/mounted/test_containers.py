"""Directories of the tree bound into containers: unshare, bubblewrap, podman, Docker, systemd-nspawn, systemd units.

Each container has a result, a running build and a session of a cache. No image is downloaded: its root is busybox in
a directory. What is not installed, or can't run where the test does, is skipped; in the virtual machine with systemd
(`scripts/vm run --systemd`) all of them run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
from mounted_tree import Mounted, until, zfsfs

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/bin/busybox").exists(), reason="containers need root and busybox-static here"
)

VM = os.environ.get("ZFSFS_VM") == "1" and Path("/run/systemd/system").exists()
TOOLS = ("sh", "cat", "echo", "touch", "mount", "id")
#: What happens in the container: it uses all three directories, closes everything, and lives until it is told to end.
SCRIPT = (
    "cat /result/file >/build/copy && echo new >/cache/file && ! touch /result/no 2>/dev/null && echo ready && read x"
)


@dataclass(frozen=True)
class Places:
    """What is bound, and the container's root."""

    root: Path
    result: Path
    build: Path
    cache: Path


def bwrap(at: Places) -> list[object]:
    bound = ["--ro-bind", at.result, "/result", "--bind", at.build, "/build", "--bind", at.cache, "/cache"]
    return ["bwrap", "--die-with-parent", "--unshare-pid", "--bind", at.root, "/", *bound, "--proc", "/proc"]


def bwrap_in_a_user_namespace(at: Places) -> list[object]:
    return [*bwrap(at), "--unshare-user", "--uid", "0", "--gid", "0"]


def volumes(at: Places) -> list[object]:
    return ["-v", f"{at.result}:/result:ro", "-v", f"{at.build}:/build", "-v", f"{at.cache}:/cache"]


def podman(at: Places) -> list[object]:
    return ["podman", "run", "--rm", "-i", "--network", "none", *volumes(at), "--rootfs", at.root]


def docker(at: Places) -> list[object]:
    return ["docker", "run", "--rm", "-i", "--network", "none", *volumes(at), "box"]


def podman_without_root(at: Places) -> list[object]:
    # A unit gives the user a control group and a directory of its own; a login has both, and podman's default then.
    subprocess.run(["chown", "-R", "user", at.root], check=True)
    unit = ["systemd-run", "-q", "--pipe", "--wait", "--uid=user", "-p", "Delegate=yes", "-p", "RuntimeDirectory=box"]
    home = ["-E", "HOME=/home/user", "-E", "XDG_RUNTIME_DIR=/run/box", "--working-directory=/home/user"]
    command, *rest = podman(at)
    return [*unit, *home, command, "--cgroup-manager=cgroupfs", *rest]


def nspawn(at: Places) -> list[object]:
    bound = [f"--bind-ro={at.result}:/result", f"--bind={at.build}:/build", f"--bind={at.cache}:/cache"]
    off = ["--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off", "--private-network"]
    return ["systemd-nspawn", "-q", "--pipe", "-D", at.root, *off, *bound]


def systemd_unit(at: Places) -> list[object]:
    bound = [f"BindReadOnlyPaths={at.result}:/result", f"BindPaths={at.build}:/build", f"BindPaths={at.cache}:/cache"]
    properties = [word for each in (f"RootDirectory={at.root}", *bound) for word in ("-p", each)]
    return ["systemd-run", "-q", "--pipe", "--wait", *properties]


Engine = Callable[[Places], list[object]]
EVERYWHERE: list[Engine] = [bwrap, bwrap_in_a_user_namespace]
IN_THE_MACHINE: list[Engine] = [podman, podman_without_root, nspawn, systemd_unit]
ENGINES = [*EVERYWHERE, docker, *IN_THE_MACHINE]


@pytest.fixture
def at(tree: Mounted, folder: Path) -> Iterator[Places]:
    root = folder / "root"
    for name in ("bin", "usr", "proc", "sys", "dev", "tmp", "etc", "run", "var", "result", "build", "cache"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in TOOLS:
        (root / "bin" / name).symlink_to("busybox")
    (tree / "builds/base").mkdir()
    (tree / "builds/base/file").write_text("of the base")
    (tree / "builds/base").rename(tree / "results/base")
    for path in (tree / "builds/job", tree / "caches/c"):
        path.mkdir()
        path.chmod(0o777)  # for the users that a container has
    tree.closed()
    yield Places(root, tree / "results/base", tree / "builds/job", tree / "caches/c@job")
    shutil.rmtree(tree / "builds/job", ignore_errors=True)  # where it was not published


@pytest.fixture(scope="module")
def docker_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A Docker of our own, which makes no network; what tells its clients where it is."""
    folder = tmp_path_factory.mktemp("docker")
    place = f"unix://{folder}/socket"
    paths = [f"--{name}={folder / name}" for name in ("data-root", "exec-root", "pidfile")]
    with (
        open(folder / "log", "w") as log,
        subprocess.Popen(
            ["dockerd", "-H", place, *paths, "--bridge=none", "--iptables=false", "--storage-driver=vfs"],
            stdout=log, stderr=log,
        ) as daemon,
    ):  # fmt: skip
        client = os.environ | {"DOCKER_HOST": place}
        until(lambda: not subprocess.run(["docker", "version"], env=client, capture_output=True).returncode)
        yield client
        daemon.terminate()


@pytest.fixture
def use_docker(docker_daemon: dict[str, str], at: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    """The container's root as the image "box"."""
    monkeypatch.setenv("DOCKER_HOST", docker_daemon["DOCKER_HOST"])
    packed = subprocess.run(["tar", "-C", at.root, "-c", "."], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["docker", "import", "-", "box"], input=packed, stdout=subprocess.DEVNULL, check=True)


@pytest.fixture(params=ENGINES, ids=lambda each: each.__name__)
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param is docker:
        if not shutil.which("dockerd"):
            pytest.skip("docker.io is not installed")
        request.getfixturevalue("use_docker")
    if request.param in IN_THE_MACHINE and not VM:
        pytest.skip("runs in the virtual machine with systemd")
    if request.param in EVERYWHERE and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    return request.param  # type: ignore[no-any-return]


def start(command: list[object], *words: str) -> subprocess.Popen[bytes]:
    """A container, which has done its work once this returns."""
    argv = [os.fspath(each) if isinstance(each, Path) else str(each) for each in command]
    box = subprocess.Popen([*argv, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert box.stdout is not None
    assert box.stdout.readline() == b"ready\n"
    return box


def end(box: subprocess.Popen[bytes]) -> None:
    assert box.stdin is not None
    assert box.stdout is not None
    box.stdin.close()
    box.stdout.close()
    box.wait()


def held(tree: Mounted) -> bool:
    """Whether the session is open, no file of it is, and a mount has been seen to hold it."""
    found = [each for each in tree.status()["sessions"] if each["name"] == "c@job"]
    assert found, "the session has ended while the container lives"
    return found[0]["open"] == 0 and "mount" in str(found[0]["holders"])


def test_a_container_has_result_build_and_cache_and_its_end_publishes(tree: Mounted, engine: Engine, at: Places):
    box = start(engine(at), "/bin/sh", "-c", SCRIPT)
    until(lambda: held(tree))
    end(box)
    assert tree.outcome("c@job") == "published"
    assert (tree / "caches/c/file").read_text() == "new\n"
    (tree / "builds/job").rename(tree / "results/job")
    assert (tree / "results/job/copy").read_text() == "of the base"


def test_a_container_that_is_killed_lets_go_of_its_cache(tree: Mounted, engine: Engine, at: Places):
    box = start(engine(at), "/bin/sh", "-c", SCRIPT)
    until(lambda: held(tree))
    # The shell within, whatever has started it.
    inside = [int(each.name) for each in Path("/proc").iterdir() if each.name.isdigit() and _is_the_shell(each)]
    assert inside
    for pid in inside:
        os.kill(pid, 9)
    end(box)
    assert tree.outcome("c@job") == "published"
    assert (tree / "caches/c/file").read_text() == "new\n"


def _is_the_shell(process: Path) -> bool:
    try:
        return (process / "cmdline").read_bytes() == b"\0".join((b"/bin/sh", b"-c", SCRIPT.encode(), b""))
    except OSError:
        return False


def test_a_native_mount_bound_into_a_container_holds_until_both_are_gone(
    tree: Mounted, engine: Engine, at: Places, folder: Path
):
    native = Places(at.root, folder / "result", folder / "build", folder / "cache")
    for source, target in ((at.result, native.result), (at.build, native.build), (at.cache, native.cache)):
        target.mkdir()
        zfsfs("bind", source, target)
    box = start(engine(native), "/bin/sh", "-c", SCRIPT)
    for target in (native.result, native.build, native.cache):
        zfsfs("unbind", target)
    until(lambda: "(pid" in str([each["holders"] for each in tree.status()["native"]]))
    assert [each["name"] for each in tree.status()["sessions"]] == ["c@job"]
    end(box)
    assert tree.outcome("c@job") == "published"
    assert (tree / "caches/c/file").read_text() == "new\n"
    until(lambda: not tree.status()["native"])
    assert (tree / "builds/job/copy").read_text() == "of the base"


@pytest.mark.parametrize("recipe", [podman, docker, bwrap, nspawn, systemd_unit], ids=lambda each: each.__name__)
def test_the_readme_has_what_is_run_here(recipe: Engine):
    readme = (Path(__file__).parents[2] / "README.md").read_text().split()
    ci = Path("$CI")
    at = Places(Path("ROOT"), ci / "results/base", ci / "builds/job", ci / "caches/c@job")
    bound = [pair for pair in pairwise(map(str, recipe(at))) if "$CI" in pair[1]]
    assert len(bound) == 3
    assert recipe(at)[0] in readme
    for before, word in bound:
        assert word in readme
        assert word.startswith("-") or readme[readme.index(word) - 1] == before


@pytest.mark.parametrize("propagation", ["private", "slave", "unchanged"])
def test_a_bind_mount_holds_however_it_propagates(tree: Mounted, at: Places, folder: Path, propagation: str):
    shared = folder / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", shared], check=True)
    try:
        subprocess.run(["mount", "--make-shared", shared], check=True)
        target = shared / "target"
        target.mkdir()
        script = 'mount --bind "$0" "$1" && echo new >"$1/file" && echo ready && read x'
        unshare = ["unshare", "--mount", "--propagation", propagation, "sh", "-c", script, at.cache, target]
        box = start(unshare)
        until(lambda: held(tree))
        end(box)
        # A shared mount has been made here, too, and outlives the container.
        assert target.is_mount() == (propagation == "unchanged")
        if propagation == "unchanged":
            until(lambda: held(tree))
            subprocess.run(["umount", target], check=True)
        assert tree.outcome("c@job") == "published"
    finally:
        subprocess.run(["umount", "-R", shared], check=True)


@contextmanager
def user_namespace(mapped: str) -> Iterator[list[object]]:
    """A user namespace with this map; what begins a command in it."""
    keeper = subprocess.Popen(["unshare", "--user", "cat"], stdin=subprocess.PIPE)
    assert keeper.stdin is not None
    process = Path("/proc", str(keeper.pid))
    try:
        until(lambda: os.readlink(process / "ns/user") != os.readlink("/proc/self/ns/user"))
        for name in ("uid_map", "gid_map"):
            (process / name).write_text(mapped)
        yield ["nsenter", "--user", "--target", keeper.pid, "--setuid", "0", "--setgid", "0"]
    finally:
        keeper.stdin.close()
        keeper.wait()


def test_a_user_namespace_writes_as_the_user_that_it_is_mapped_to(tree: Mounted, at: Places, folder: Path):
    target = folder / "target"
    target.mkdir()
    script = 'mount --bind "$0" "$1" && echo new >"$1/file" && echo ready && read x'
    with user_namespace("0 100000 1000") as inside:
        box = start([*inside, "unshare", "--mount", "sh", "-c", script, at.cache, target])
        until(lambda: held(tree))
        end(box)
        assert tree.outcome("c@job") == "published"
    assert (tree / "caches/c/file").stat().st_uid == 100000

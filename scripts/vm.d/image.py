"""The image of the virtual machine: Debian trixie with the ZFS module compiled in it.

Guarantees: an image directory is complete from the moment it has its name; equal inputs give the same name, and
two builders at once make it once. Nothing is fetched when the machine boots.

    CACHE/vm-HASH/      root.img, vmlinuz, initrd
    CACHE/vm-HASH.log   all that the build said, kept when it fails too
    CACHE/vm.lock       held by who builds
"""

import fcntl
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from shlex import quote

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
SUITE = "trixie"
GUEST_PYTHON = "3.13"  # what trixie has: wheels are chosen for it on the host
SIZE = "16G"  # sparse: only what is written takes room

PACKAGES = """
    linux-image-cloud-amd64 linux-headers-cloud-amd64 zfs-dkms zfsutils-linux python3-pyzfs python3-venv python3-dev
    fuse3 libfuse3-dev pkg-config gcc g++ libc6-dev make git rsync tar sqlite3 ccache attr acl e2fsprogs kmod xz-utils
    cpio busybox-static systemd systemd-sysv udev dbus iproute2 procps psmisc bindfs bubblewrap podman crun conmon
    fuse-overlayfs netavark passt catatonit docker.io docker-cli systemd-container uidmap util-linux strace stress-ng
    jq less lsof fio patch bc file
""".split()  # noqa: SIM905 (a literal would be sixty lines)

DEBOOTSTRAP = ("--mode=root", "--variant=minbase", "--components=main,contrib", "--dpkgopt=force-unsafe-io")
FILESYSTEM = ("-t", "ext4", "-O", "^has_journal", "-m", "0")

# Has no wheels: its source is compiled in the image, with these as wheels beside it.
FROM_SOURCE = ("pyfuse3",)
TO_COMPILE = ("setuptools", "setuptools_scm", "cython", "wheel")

HOST_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "qemu-system-x86_64": "qemu-system-x86",
    "mke2fs": "e2fsprogs",
    "git": "git",
    "pkg-config": "pkg-config",
    "xz": "xz-utils",
}


class Failure(Exception):
    """One sentence for the person who ran the script."""


def say(text: str) -> None:
    print(f"vm: {text}", file=sys.stderr, flush=True)


def cache() -> Path:
    base = os.environ.get("ZFSFS_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "zfsfs")
    path = Path(base).resolve()
    path.mkdir(parents=True, exist_ok=True)
    return path


def requirements() -> list[str]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return sorted([*project["dependencies"], *project["optional-dependencies"]["test"]])


def location() -> Path:
    """Where the image for today's inputs is, or will be."""
    # This module's text is not among them, or each change of a message would cost five minutes.
    digest = hashlib.sha256(repr((SUITE, GUEST_PYTHON, SIZE, PACKAGES, TO_COMPILE, DEBOOTSTRAP, FILESYSTEM)).encode())
    for name in ("customize", "initramfs", "start"):
        digest.update((HERE / name).read_bytes() + b"\0")
    digest.update("\n".join(requirements()).encode())
    return cache() / f"vm-{digest.hexdigest()[:16]}"


def ensure() -> Path:
    """The image's directory; builds it when it is not there."""
    path = location()
    if path.is_dir():
        return path
    with open(path.parent / "vm.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("another process is building an image; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.is_dir():
            build(path)
    return path


def build(path: Path) -> None:
    if os.geteuid() != 0:
        raise Failure(
            "building the image needs root: run `scripts/vm build` as root with ZFSFS_CACHE set to a folder that"
            f" you can read (now {path.parent}); running it afterwards does not"
        )
    began = time.monotonic()
    log_path = path.with_suffix(".log")
    say(f"building {path}: takes about five minutes, once; details in {log_path}")
    for left in path.parent.glob("vm-*.part-*"):  # of builds that were killed: we hold the lock, so they are dead
        shutil.rmtree(left)
    with ExitStack() as stack:
        log = stack.enter_context(open(log_path, "w"))
        part = Path(tempfile.mkdtemp(prefix=f"{path.name}.part-", dir=path.parent))
        stack.callback(shutil.rmtree, part, ignore_errors=True)
        root, wheels, finished = part / "root", part / "wheels", part / "finished"
        finished.mkdir()

        def step(what: str, *command: str | Path, **environment: str) -> None:
            start = time.monotonic()
            log.write(f"--- {what}: {' '.join(map(str, command))}\n")
            log.flush()
            child = subprocess.Popen(
                # Killed, we hold the lock no more, and the next to build removes what is being made.
                ("setpriv", "--pdeathsig", "TERM", "--", *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
                start_new_session=True,
            )
            try:
                status = child.wait()
            except BaseException:  # we are told to stop: so are its descendants, and then the folder can go
                os.killpg(child.pid, signal.SIGTERM)
                child.wait()
                raise
            if status:
                raise Failure(f"{what} failed with status {status}: see the end of {log_path}")
            say(f"  {what}: {time.monotonic() - start:.0f} s")

        install(missing_host_packages())
        download(wheels, step)
        step(
            "installing the system, compiling ZFS",
            "mmdebstrap",
            *DEBOOTSTRAP,
            "--format=directory",
            f"--include={','.join(PACKAGES)}",
            f'--customize-hook={quote(f"{HERE}/customize")} "$1" {quote(str(HERE))} {quote(str(wheels))}',
            SUITE,
            root,
            mirror(),
            INITRD="No",  # Debian's own initrd takes 20 s to make and 5 to boot; ours is made by `customize`
        )
        for name in ("vmlinuz", "initrd"):
            os.replace(root / name, finished / name)
        step("making the filesystem", "mke2fs", "-q", *FILESYSTEM, "-d", root,
             finished / "root.img", SIZE)  # fmt: skip
        for item in (finished, *finished.iterdir()):
            item.chmod(0o755 if item.is_dir() else 0o644)
        finished.rename(path)
    say(f"built in {time.monotonic() - began:.0f} s")
    old = [p.name for p in path.parent.glob("vm-*") if p.is_dir() and p != path]
    if old:
        say(f"older images that you may remove: {' '.join(sorted(old))}")


def missing_host_packages() -> list[str]:
    missing = missing_host_commands(*HOST_PACKAGES)
    # pyfuse3's metadata cannot be read, and so not downloaded, without its C library.
    if not shutil.which("pkg-config") or subprocess.run(["pkg-config", "--exists", "fuse3"]).returncode:
        missing.append("libfuse3-dev")
    if not Path("/usr/share/keyrings/debian-archive-keyring.gpg").exists():
        missing.append("debian-archive-keyring")
    return missing


def missing_host_commands(*commands: str) -> list[str]:
    return [HOST_PACKAGES[command] for command in commands if not shutil.which(command)]


def install_to_run() -> None:
    """What running takes beside the image, which may be older than this machine's packages."""
    install(missing_host_commands("qemu-system-x86_64", "git"))


def install(missing: list[str]) -> None:
    """Debian packages on this machine."""
    if not missing:
        return
    if os.geteuid() != 0:
        raise Failure(f"missing here; as root: apt-get install {' '.join(missing)}")
    say(f"installing {' '.join(missing)}")
    wait = ("-o", "DPkg::Lock::Timeout=600")  # others may install, too
    command = ("apt-get", "install", "-qq", "-y", "--no-install-recommends", *wait, *missing)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(("apt-get", "update", "-qq"), check=False)  # the lists may be old or absent
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"{' '.join(missing)} can't be installed: {done.stderr.strip()}")


def download(wheels: Path, step: Callable[..., None]) -> None:
    """On the host, because pip inside the image would not have the host's package settings."""
    wanted = requirements()
    source = [r for r in wanted if r.startswith(FROM_SOURCE)]
    # The system's own Python may have no pip.
    step("making the environment", REPOSITORY / "scripts/setup")
    pip = (REPOSITORY / ".venv/bin/pip", "download", "--disable-pip-version-check", "--dest", wheels)
    platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (41, 34, 28, 17, 5)]
    step("downloading Python wheels", *pip, "--only-binary=:all:", "--python-version", GUEST_PYTHON,
         "--implementation=cp", *platforms, "--platform=manylinux2014_x86_64",
         *TO_COMPILE, *(r for r in wanted if r not in source))  # fmt: skip
    step("downloading Python sources", *pip, "--no-deps", f"--no-binary={','.join(FROM_SOURCE)}", *source)
    (wheels / "requirements").write_text("\n".join(wanted) + "\n")
    (wheels / "to-compile").write_text("\n".join(TO_COMPILE) + "\n")


def mirror() -> str:
    """The Debian mirror of the machine's own apt; ZFSFS_DEBIAN_MIRROR where that is not Debian."""
    if chosen := os.environ.get("ZFSFS_DEBIAN_MIRROR"):
        return chosen
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian",
         "Label: Debian", "Component: main"],
        capture_output=True, text=True)  # fmt: skip
    found = done.stdout.split()
    if done.returncode or not found:
        raise Failure("apt knows no Debian mirror (is `apt-get update` done?); name one in ZFSFS_DEBIAN_MIRROR")
    return found[0]

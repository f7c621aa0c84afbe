"""What is compared: zfsfs, the filesystem beneath it, bindfs, and libfuse's own example in C.

All work in one directory beneath, each in a subdirectory of its own: a FUSE filesystem that caches must not see its
files change behind its back. Everything is mounted below a temporary directory and gone at the end.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = Path("/usr/share/doc/libfuse3-dev/examples")
BUILD = "bench"
ASLEEP = "zfsfs-asleep"
DESCRIPTORS = 100_000


def say(text: str) -> None:
    print(f"+ {text}", file=sys.stderr, flush=True)


def run(*command: object) -> None:
    words = [str(each) for each in command]
    say(" ".join(words))
    subprocess.run(words, check=True)


def compile_c(source: Path, target: Path, *more: str) -> None:
    run("gcc", "-O2", "-o", target, source, *more)


def passthrough(folder: Path) -> Path | None:
    """libfuse's passthrough_ll, compiled; None where the examples are not installed."""
    source = EXAMPLES / "passthrough_ll.c"
    if not source.exists():
        return None
    target = folder / "passthrough_ll"
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "fuse3"], check=True, capture_output=True, text=True)
    compile_c(source, target, f"-I{EXAMPLES}", *flags.stdout.split(), "-lpthread")
    return target


def zfsfs(*arguments: object) -> None:
    run(sys.executable, "-m", "zfsfs", *arguments)


def datasets(undo: contextlib.ExitStack, store: str, native: Path) -> None:
    """Make a dataset for a store and one beside it that is mounted natively. Both have the properties that what a
    store makes has, so that the same work costs the same; they are destroyed with `undo`."""
    for name, mountpoint in ((store, "none"), (f"{store}-native", native)):
        properties = (f"mountpoint={mountpoint}", "acltype=posix", "xattr=sa", "atime=off")
        run("zfs", "create", *(word for each in properties for word in ("-o", each)), name)
        undo.callback(run, "zfs", "destroy", "-R", name)


@contextlib.contextmanager
def mounted(store: str, folder: Path, wanted: list[str]) -> Iterator[dict[str, Path]]:
    """Where each peer does its work."""
    found: dict[str, Path] = {}
    with contextlib.ExitStack() as undo:
        native = folder / "native"
        if not store.startswith("/"):
            datasets(undo, store, native)
        build = serve_ours(undo, store, folder / "zfsfs", "--log", folder / "log")
        if store.startswith("/"):
            (native,) = Path(store, "trees").glob(f"*-result-{BUILD}")
            if ASLEEP in wanted:
                found[ASLEEP] = asleep(undo, folder) / f"by-{ASLEEP}"
        found["zfsfs"] = build / "by-zfsfs"
        found["native"] = native / "by-native"
        if program := passthrough(folder):
            found["passthrough_ll"] = folder / "passthrough_mnt/by-passthrough_ll"
            undo.callback(serve_c(program, native, folder / "passthrough_mnt"))
        if shutil.which("bindfs"):
            found["bindfs"] = folder / "bindfs_mnt/by-bindfs"
            undo.callback(fuse_mount(folder / "bindfs_mnt", "bindfs", native))
        for name in ("passthrough_ll", "bindfs"):
            if name not in found:
                say(f"{name} is not to be had here and left out")
        for path in found.values():
            path.mkdir()
        yield {name: path for name, path in found.items() if name in wanted}


def serve_ours(undo: contextlib.ExitStack, store: str | Path, tree: Path, *options: object) -> Path:
    """Mount a store until `undo`; returns a build in it."""
    tree.mkdir()
    zfsfs("mount", store, tree, *options)
    undo.callback(zfsfs, "umount", "--force", tree)
    build = tree / "builds" / BUILD
    build.mkdir()
    return build


def asleep(undo: contextlib.ExitStack, folder: Path) -> Path:
    """A build in a store of its own, whose daemon lets processors sleep as they do for the others."""
    config = folder / "asleep.toml"
    config.write_text("awake = false\n")
    return serve_ours(
        undo, folder / "asleep-store", folder / "asleep", "--config", config, "--log", folder / "asleep-log"
    )


def serve_c(program: Path, source: Path, target: Path) -> Callable[[], None]:
    """As `fuse_mount`, what `passthrough` has compiled: it shows `source` with all caching that it has."""
    options = f"source={source},cache=always,writeback,allow_other,default_permissions"
    # It needs a descriptor for each file that the kernel knows, and in the virtual machine 1024 are the limit.
    most = max(DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    with contextlib.suppress(ValueError):  # not permitted everywhere
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    return fuse_mount(target, program, "-o", options)


def fuse_mount(target: Path, *command: object) -> Callable[[], None]:
    """Mount a peer that goes to the background by itself; returns how it is unmounted."""
    target.mkdir()
    run(*command, target)

    def unmount() -> None:
        for _ in range(50):  # what was just closed may still be released
            if subprocess.run(["umount", target], capture_output=True, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            run("umount", "-l", target)
        assert not os.path.ismount(target)

    return unmount

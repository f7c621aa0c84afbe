"""The command line with something changed in the daemon: `python changed_daemon.py HOW GATE mount …`.

HOW is one of

    alone      pyfuse3 answers every request
    gathered   the kernel reads and writes nothing by itself
    older      its status says less
    full       nothing moves from group to group as long as GATE/full exists
    broken     the verbs of the storage fail that GATE/broken names, while it exists
    ungrouped  it makes no control groups
    narrow     calls that are not known to wait for the daemon have one thread
    spares     clones are kept ready on directories, too
    grouped    nothing is changed
    speechless it fails to say how a builder has ended, in a way that nobody expects
    incurious  it does not look by itself for who has something natively
    patient    it waits for minutes until what is open is closed, and for seconds for requests
    nowhere    it can't tell where what was given out is mounted, as long as GATE/nowhere exists
    weary      the first verb that waits until something is closed does not wait, and those after it do for minutes

or a call (`CALLS`) that stops, once, when GATE/armed is there: it removes that, says so in the fifo GATE/entered and
waits for GATE/go.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

CALLS = ("fsync", "pread", "stat", "create", "clone", "snapshot", "rename", "batch", "holders")


def stopping(call: Callable[..., Any], gate: Path) -> Callable[..., Any]:
    def stopped(*arguments: Any, **options: Any) -> Any:
        try:
            (gate / "armed").unlink()
        except FileNotFoundError:
            return call(*arguments, **options)
        (gate / "entered").write_text("here")
        (gate / "go").read_text()
        return call(*arguments, **options)

    return stopped


def refusing(rename: Callable[..., None], sign: Path) -> Callable[..., None]:
    def refused(driver: Any, old: Any, new: Any) -> None:
        from zfsfs.errors import NoSpace

        if old.group != new.group and sign.exists():
            raise NoSpace(f"{old}: there is no room for it in {new.group}")
        rename(driver, old, new)

    return refused


def breaking(verb: Callable[..., Any], sign: Path) -> Callable[..., Any]:
    def broken(*arguments: Any, **options: Any) -> Any:
        from zfsfs.errors import DriverError

        if sign.exists() and verb.__name__ in sign.read_text().split():
            raise DriverError(f"{arguments[1]}: the disk is broken")
        return verb(*arguments, **options)

    return broken


def growing_patient(unmapped: Callable[..., Any]) -> Callable[..., Any]:
    times = chain([0], repeat(600))
    return lambda area, quiet, seconds: unmapped(area, quiet, seconds * next(times))


def losing(where: Callable[..., Any], sign: Path) -> Callable[..., Any]:
    def lost(*arguments: Any, **options: Any) -> Any:
        from zfsfs.errors import MountError

        if sign.exists():
            raise MountError("it lies on no mount that can be seen")
        return where(*arguments, **options)

    return lost


def with_one_thread(serve: Callable[..., Any]) -> Callable[..., Any]:
    async def narrow(*arguments: Any) -> None:
        import trio

        trio.to_thread.current_default_thread_limiter().total_tokens = 1
        await serve(*arguments)

    return narrow


def change(how: str, gate: Path) -> None:
    import zfsfs.daemon
    from zfsfs.builders import cgroups
    from zfsfs.directory.driver import DirectoryDriver
    from zfsfs.fs import door, natives, quiet, wire
    from zfsfs.zfs.driver import ZfsDriver

    if how == "alone":
        zfsfs.daemon.descriptors = lambda: set()
    elif how == "gathered":
        wire.PASSTHROUGH = 0
    elif how == "older":
        now = zfsfs.fs.status.status
        known = ("store", "pid", "builds", "results", "caches", "sessions")
        zfsfs.fs.status.status = lambda tree: {key: value for key, value in now(tree).items() if key in known}
    elif how == "full":
        for driver in (DirectoryDriver, ZfsDriver):
            driver.rename = refusing(driver.rename, gate / "full")
    elif how == "holders":
        zfsfs.fs.tree.holders = stopping(zfsfs.fs.tree.holders, gate)
    elif how in ("create", "clone", "snapshot", "rename", "batch"):
        for driver in (DirectoryDriver, ZfsDriver):
            setattr(driver, how, stopping(getattr(driver, how), gate))
    elif how == "spares":
        DirectoryDriver.cheap_clones = True
    elif how == "incurious":
        natives.PAUSE = float("inf")
    elif how == "patient":
        natives.DRAIN, door.PATIENCE = 600.0, 3.0
    elif how == "weary":
        quiet.unmapped = growing_patient(quiet.unmapped)
    elif how == "broken":
        for driver in (DirectoryDriver, ZfsDriver):
            for verb in (driver.rename, driver.info, driver.view):
                setattr(driver, verb.__name__, breaking(verb, gate / "broken"))
    elif how == "nowhere":
        natives.where = losing(natives.where, gate / "nowhere")
    elif how == "narrow":
        zfsfs.daemon._serve = with_one_thread(zfsfs.daemon._serve)
    elif how == "ungrouped":
        cgroups.make = lambda name, processes=None: None
    elif how == "speechless":
        zfsfs.fs.building.Builders._tell = lambda self, run: 1 // 0
    elif how != "grouped":
        assert how in CALLS
        setattr(os, how, stopping(getattr(os, how), gate))


if __name__ == "__main__":
    from zfsfs.cli import main

    change(sys.argv[1], Path(sys.argv[2]))
    main(sys.argv[3:])

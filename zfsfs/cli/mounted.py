"""Commands on a mounted tree: umount, status."""

from __future__ import annotations

import argparse
import json
import os
import queue
import select
import signal
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from zfsfs import mountpoint as mountpoints
from zfsfs.errors import Busy, MountError, Unavailable
from zfsfs.native.launch import complain
from zfsfs.zfs import health

if TYPE_CHECKING:
    from zfsfs.cli.parsing import Commands


#: Seconds that a daemon may take to answer.
_PATIENCE = 10.0
#: Seconds that it may take to end before we say who keeps it.
_SILENCE = 3.0
#: How many of those are named.
_FEW = 5


def add(commands: Commands) -> None:
    """Add the commands to the parser."""
    umount = commands.add_parser("umount", help="unmount; waits until all is released, and for who has it elsewhere")
    umount.set_defaults(run=_umount)
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("--force", action="store_true", help="even when it is in use; says what is dropped")
    status = commands.add_parser("status", help="what is going on")
    status.set_defaults(run=_status)
    status.add_argument("--json", action="store_true")
    status.add_argument("mountpoint", metavar="MOUNTPOINT")


def read_status(mountpoint: str) -> dict[str, Any]:
    """What a mounted tree says of itself. Raises MountError where there is none, and Unavailable, with what is wrong,
    when it does not answer."""
    path = mountpoints.real(mountpoint)
    if mountpoints.mounted_type(path) != mountpoints.FSTYPE:
        raise MountError(f"{mountpoint} has no zfsfs")
    answers: queue.SimpleQueue[bytes | OSError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            with open(os.path.join(path, ".zfsfs", "status.json"), "rb") as file:
                answer: bytes | OSError = file.read()
        except OSError as failure:
            answer = failure
        answers.put(answer)  # once it is closed: what is open can't be unmounted

    # In a thread that may be left behind: the daemon may be waiting for its storage.
    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=_PATIENCE)
    except queue.Empty:
        raise Unavailable(f"the daemon of {mountpoint} does not answer{_why_not(path)}") from None
    if isinstance(answer, OSError):
        raise answer
    # An older daemon says less.
    nothing: dict[str, Any] = {"trouble": "", "builds": [], "sessions": [], "native": [], "failed": [], "waiting": []}
    return nothing | dict(json.loads(answer))


def _why_not(path: str) -> str:
    store = next((store for store, mounted in mountpoints.trees() if mounted == path), "/")
    trouble = "" if store.startswith("/") else health.trouble(store)
    return f": {trouble}" if trouble else ""


def _settled_status(path: str) -> dict[str, Any]:
    """The status, once the daemon has had time to see that what was native is so no more."""
    from zfsfs.native.client import look

    patience = time.monotonic() + 2.0
    while (status := read_status(path))["native"] and time.monotonic() < patience:
        look(path)
        time.sleep(0.1)
    return status


def _umount(options: argparse.Namespace) -> None:
    path = mountpoints.real(options.mountpoint)
    if mountpoints.mounted_type(path) == mountpoints.FSTYPE and mountpoints.is_dead(path):
        mountpoints.unmount(path, lazy=True)
        print(f"{options.mountpoint}: its daemon had died; the next mount recovers the store")
        return
    status = _settled_status(path)
    if status["trouble"] and not options.force:
        raise Unavailable(f"{status['trouble']}; or use --force, which waits for that when sessions are open")
    builds = [build["id"] for build in status["builds"]]
    daemon, device = _daemon(path, status["pid"]), os.stat(path).st_dev
    if options.force:
        for build in builds:
            print(f"dropped: build {build}, which was running")
        for session in status["sessions"]:
            who = f"{session['open']} open files" if session["open"] else ", ".join(session["holders"]) or "nobody"
            print(f"closed: session {session['name']}, held by {who}")
        for native in status["native"]:
            lost = "its changes are lost" if native["writable"] else "it stays for them"
            print(f"dropped: {native['path']}, which is native for {', '.join(native['holders'])}: {lost}")
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    elif builds:
        raise Busy(f"builds are running: {', '.join(builds)}; publish or remove them, or use --force")
    elif status["native"]:
        # The kernel would let it go from here, and keep it for their namespaces.
        natives = [f"{each['path']} ({', '.join(each['holders'])})" for each in status["native"]]
        raise Busy(f"somebody has it natively: {', '.join(natives)}; or use --force")
    else:
        try:
            mountpoints.unmount(path)
        except Busy as error:
            held = [f"{each['name']} ({', '.join(each['holders']) or 'open files'})" for each in status["sessions"]]
            raise Busy(f"{error}{'; open sessions: ' + ', '.join(held) if held else ''}; or use --force") from None
    _wait(daemon, device)
    if mountpoints.mounted_type(path) == mountpoints.FSTYPE:
        mountpoints.unmount(path, lazy=True)


def _daemon(path: str, pid: int) -> int:
    """A descriptor of the process that serves a tree. Raises MountError for what can't be that: anybody may mount
    what calls itself a zfsfs, and a daemon may have another number in its namespace."""
    if (owner := mountpoints.owner(path)) not in (0, os.geteuid()):
        raise MountError(f"{path} was mounted by user {owner}: leave it to him, or use umount")
    daemon = os.pidfd_open(pid)
    if not _has_fuse_open(f"/proc/{pid}/fd"):
        os.close(daemon)
        raise MountError(f"process {pid} does not serve {path}: its daemon is not to be seen from here")
    return daemon


def _has_fuse_open(folder: str) -> bool:
    for fd in os.listdir(folder):
        with suppress(FileNotFoundError):  # it was closed meanwhile
            if os.readlink(f"{folder}/{fd}") == "/dev/fuse":
                return True
    return False


def _wait(pidfd: int, device: int) -> None:
    """Until a daemon has ended. As long as somebody has its tree in a mount namespace of his own it serves him."""
    from zfsfs.native.watching import everywhere, look

    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(_SILENCE * 1000):
        place = everywhere(device)
        if others := look({place: -1}, thoroughly=True)[place]:
            complain(f"it is not mounted here any more; waiting for {', '.join(map(str, others[:_FEW]))}")
        poll.poll()
    os.close(pidfd)


def _status(options: argparse.Namespace) -> None:
    status = read_status(options.mountpoint)
    if options.json:
        print(json.dumps(status, indent=1))
        return
    print(f"{status['store']}, daemon {status['pid']}, {status['results']} results")
    if status["trouble"]:
        print(f"trouble  {status['trouble']}")
    for build in status["builds"]:
        print(f"build    {build['id']}" + (f" from {build['base']}" if build["base"] else ""))
    for cache in status["caches"]:
        print(f"cache    {cache['name']} generation {cache['generation']}")
    for each in status["sessions"]:
        held = f"{each['open']} open files" if each["open"] else ", ".join(each["holders"]) or "nobody"
        print(f"session  {each['name']} of generation {each['generation']}, held by {held}")
    for each in status["waiting"]:
        print(f"waiting  {each['dataset']}: {each['reason'] or 'about to be destroyed'}")

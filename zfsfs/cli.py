"""The command line. A mistake prints one line and ends with the exit code of its error; see `zfsfs.errors`."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import logging.handlers
import os
import select
import signal
import sys
from typing import Any, NoReturn

from zfsfs import mountpoint as mountpoints
from zfsfs.errors import Busy, Inconsistent, MountError, UsageError, ZfsfsError

_EPILOG = """\
STORE is a ZFS dataset (tank/ci), or a path that begins with '/' or '.' and names a directory for a store
without ZFS. Exit codes: 0 done, 1 failed, 2 usage, 3 store unavailable, 4 busy, 5 store locked, 6 mountpoint,
7 inconsistent store."""

#: Options of mount(8) that change nothing here, or that FUSE is told of as they are.
_IGNORED = {"rw", "defaults", "nosuid", "nodev", "user", "nouser", "auto", "noauto", "_netdev", "nofail", "noatime"}
_PASSED = {"allow_other", "allow_root", "noexec"}


class _Failed(ZfsfsError):
    """What went wrong in the daemon, with the exit code that it chose."""

    def __init__(self, text: str, number: str) -> None:
        super().__init__(text)
        self.code = int(number) if number.isdigit() else 1


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; try {self.prog} --help")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="zfsfs", description="A filesystem whose directories are a build store.", epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    mount = commands.add_parser("mount", help="mount a store; returns when the tree is usable")
    mount.add_argument("store", metavar="STORE")
    mount.add_argument("mountpoint", metavar="MOUNTPOINT")
    mount.add_argument(
        "-f", "--foreground", action="store_true", help="stay in the foreground, log to standard error"
    )
    mount.add_argument(
        "-o", dest="options", action="append", default=[], metavar="OPTIONS", help="as mount(8) has it"
    )
    mount.add_argument(
        "--linger", type=float, metavar="SECONDS", help="how long a session outlives its last user (2)"
    )
    mount.add_argument("--log", metavar="FILE", help="where the daemon's log goes (the system's log)")
    umount = commands.add_parser("umount", help="unmount; waits until every session is released")
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument("--force", action="store_true", help="even when it is in use; says what is dropped")
    status = commands.add_parser("status", help="what is going on")
    status.add_argument("--json", action="store_true")
    status.add_argument("mountpoint", metavar="MOUNTPOINT")
    check = commands.add_parser("check", help="the invariants of a store at rest; changes nothing")
    check.add_argument("store", metavar="STORE")
    recover = commands.add_parser("recover", help="what the next mount would repair")
    recover.add_argument("store", metavar="STORE")
    recover.add_argument("--dry-run", action="store_true", required=True, help="print the plan; mount carries it out")
    return parser


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit."""
    try:
        options = _parser().parse_args(arguments)
        globals()[f"_{options.command}"](options)
        code = 0
    except ZfsfsError as error:
        print(f"zfsfs: {error}", file=sys.stderr)
        code = error.code if isinstance(error, _Failed) else error.exit_code
    except BrokenPipeError:
        code = 1
    except OSError as error:
        print(f"zfsfs: {error.strerror or error}{f': {error.filename}' if error.filename else ''}", file=sys.stderr)
        code = 1
    except KeyboardInterrupt:
        code = 130
    sys.stdout.flush()
    sys.exit(code)


# mount


def _mount(options: argparse.Namespace) -> None:
    from zfsfs.daemon import Settings, serve

    linger, log, foreground = 2.0 if options.linger is None else options.linger, options.log, options.foreground
    passed = set()
    for option in (each for text in options.options for each in text.split(",") if each):
        key, _, value = option.partition("=")
        if key == "linger":
            try:
                linger = float(value)
            except ValueError:
                raise UsageError(f"-o linger={value}: that is no number of seconds") from None
        elif key == "log" and value:
            log = value
        elif option in _PASSED:
            passed.add(option)
        elif option not in _IGNORED:
            raise UsageError(f"-o {option}: there is no such option")
    if not 0 <= linger < float("inf"):
        raise UsageError(f"--linger {linger}: seconds, not below 0")
    store = os.path.abspath(options.store) if options.store.startswith((".", "/")) else options.store
    settings = Settings(store, os.path.abspath(options.mountpoint), linger, frozenset(passed))
    if foreground:
        _log_to(log, foreground=True)
        serve(settings, lambda: None)
        return
    _in_background(settings, os.path.abspath(log) if log else None)


def _in_background(settings: Any, log: str | None) -> None:
    """Serve in a process of its own; return when it is ready, or raise what went wrong there."""
    from zfsfs.daemon import serve

    reader, writer = os.pipe()
    sys.stdout.flush()
    if os.fork() != 0:
        os.close(writer)
        with os.fdopen(reader, "rb") as said:
            answer = said.read()
        if answer != b"ready":
            number, _, text = answer.decode("utf-8", "replace").partition(" ")
            raise _Failed(text or "the daemon ended before it was ready; see its log", number)
        return
    os.close(reader)
    os.setsid()
    if os.fork() != 0:
        os._exit(0)
    code = 0

    def say(text: bytes) -> None:
        nonlocal writer
        if writer >= 0:
            os.write(writer, text)
            os.close(writer)
            writer = -1

    try:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        # What the caller had open is none of our business, and would keep pipes of its shell waiting.
        most = max((int(name) for name in os.listdir("/proc/self/fd")), default=0)
        for fd in range(3, most + 1):
            if fd != writer:
                _close_quietly(fd)
        _log_to(log, foreground=False)
        serve(settings, lambda: say(b"ready"))
    except ZfsfsError as error:
        code = error.exit_code
        logging.getLogger("zfsfs").error("%s", error)
        say(f"{code} {error}".encode())
    except BaseException as error:
        code = 1
        logging.getLogger("zfsfs").exception("the daemon failed")
        say(f"1 the daemon failed: {error!r}".encode())
    logging.shutdown()
    os._exit(code)


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def _log_to(path: str | None, *, foreground: bool) -> None:
    handler: logging.Handler
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if path is not None:
        handler = logging.FileHandler(path)
    elif foreground:
        handler = logging.StreamHandler()
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
        text = "zfsfs[%(process)d]: %(message)s"
    else:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(handlers=[handler], level=logging.INFO)


# umount, status


def _read_status(mountpoint: str) -> dict[str, Any]:
    path = os.path.abspath(mountpoint)
    if mountpoints.mounted_type(path) != mountpoints.FSTYPE:
        raise MountError(f"{mountpoint} has no zfsfs")
    with open(os.path.join(path, ".zfsfs", "status.json"), "rb") as file:
        found: dict[str, Any] = json.load(file)
    return found


def _umount(options: argparse.Namespace) -> None:
    path = os.path.abspath(options.mountpoint)
    if mountpoints.mounted_type(path) == mountpoints.FSTYPE and mountpoints.is_dead(path):
        mountpoints.unmount(path, lazy=True)
        print(f"{options.mountpoint}: its daemon had died; the next mount recovers the store")
        return
    status = _read_status(path)
    builds = [build["id"] for build in status["builds"]]
    daemon = os.pidfd_open(status["pid"])
    if options.force:
        for build in builds:
            print(f"dropped: build {build}, which was running")
        for session in status["sessions"]:
            who = f"{session['open']} open files" if session["open"] else ", ".join(session["holders"]) or "nobody"
            print(f"closed: session {session['name']}, held by {who}")
        signal.pidfd_send_signal(daemon, signal.SIGTERM)
    elif builds:
        raise Busy(f"builds are running: {', '.join(builds)}; publish or remove them, or use --force")
    else:
        try:
            mountpoints.unmount(path)
        except Busy as error:
            held = [f"{each['name']} ({', '.join(each['holders']) or 'open files'})" for each in status["sessions"]]
            raise Busy(f"{error}{'; open sessions: ' + ', '.join(held) if held else ''}; or use --force") from None
    _wait(daemon)
    if mountpoints.mounted_type(path) == mountpoints.FSTYPE:
        mountpoints.unmount(path, lazy=True)


def _wait(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.poll()
    os.close(pidfd)


def _status(options: argparse.Namespace) -> None:
    status = _read_status(options.mountpoint)
    if options.json:
        print(json.dumps(status, indent=1))
        return
    print(f"{status['store']}, daemon {status['pid']}, {status['results']} results")
    for build in status["builds"]:
        print(f"build    {build['id']}" + (f" from {build['base']}" if build["base"] else ""))
    for cache in status["caches"]:
        print(f"cache    {cache['name']} generation {cache['generation']}")
    for each in status["sessions"]:
        held = f"{each['open']} open files" if each["open"] else ", ".join(each["holders"]) or "nobody"
        print(f"session  {each['name']} of generation {each['generation']}, held by {held}")
    for each in status["waiting"]:
        print(f"waiting  {each['dataset']}: {each['reason'] or 'about to be destroyed'}")


# check, recover


def _check(options: argparse.Namespace) -> None:
    from zfsfs.daemon import choose_driver
    from zfsfs.store import check, leftovers

    listing = choose_driver(options.store).list()
    problems = check(listing)
    for each in leftovers(listing):
        print(f"{each}: left by a build that did not end; the next mkdir of that id clears it")
    for problem in problems:
        print(problem)
    if problems:
        raise Inconsistent(f"{options.store}: {len(problems)} problems; a mount recovers what it can")
    print(f"{options.store}: all is well")


def _recover(options: argparse.Namespace) -> None:
    from zfsfs.daemon import choose_driver
    from zfsfs.store import plan

    actions = plan(choose_driver(options.store).list())
    for action in actions:
        print(action.text)
    if not actions:
        print(f"{options.store}: nothing to do")


if __name__ == "__main__":
    main()

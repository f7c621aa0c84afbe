"""zfsfs build: a command from mkdir to its result."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from zfsfs import mountpoint as mountpoints
from zfsfs.errors import Busy, Exists, Missing, MountError, UsageError, ZfsfsError
from zfsfs.native.launch import FAILED, complain, execute

if TYPE_CHECKING:
    from zfsfs.cli.output import Output
    from zfsfs.cli.parsing import Commands

#: Seconds that processes which outlive the command may take to let go of the build.
PATIENCE = 10.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


class CacheUse(NamedTuple):
    """A cache for a build: its name under caches/, and the variable, or the path, that the command finds it by."""

    name: str
    where: str

    @classmethod
    def parse(cls, text: str) -> CacheUse:
        """NAME[@LABEL]:ENV_OR_PATH. Raises UsageError."""
        name, colon, where = text.rpartition(":")
        if not colon or not name or not where or "/" in name:
            raise UsageError(f"--cache {text}: not NAME[@LABEL]:VARIABLE or NAME[@LABEL]:/PATH")
        if not where.startswith("/") and (not where.replace("_", "a").isalnum() or where[0].isdigit()):
            raise UsageError(f"--cache {text}: {where} is no variable and no absolute path")
        return cls(name, where)


def add(commands: Commands) -> None:
    """Add the command to the parser."""
    build = commands.add_parser(
        "build",
        help="run a command in a new build; publish it, or discard it when the command fails",
        usage="zfsfs build MOUNTPOINT ID [--base BASE] [--cache NAME[@LABEL]:ENV_OR_PATH]... [--native] "
        "-- COMMAND [ARGUMENT...]",
        description="Makes MOUNTPOINT/builds/ID, runs COMMAND in it with ZFSFS_ID, ZFSFS_BASE and ZFSFS_BUILD in its "
        "environment, and publishes it as results/ID when COMMAND ends with 0. When it fails, or is interrupted, the "
        "build is discarded. What COMMAND prints is in MOUNTPOINT/.zfsfs/log/ID, too. The exit code is COMMAND's, or "
        "128 and the number of the signal that has ended it; 125 when the build could not be made or published.",
    )
    build.set_defaults(run=_build)
    build.add_argument("--base", metavar="BASE", help="the result to start from")
    build.add_argument(
        "--cache", action="append", default=[], metavar="NAME[@LABEL]:ENV_OR_PATH",
        help="hold a session of a cache for as long; its path is in the environment variable, or it lies at an "
        "absolute path (with --native)",
    )  # fmt: skip
    build.add_argument("--native", action="store_true", help="with the build and the caches natively, as zfsfs exec")
    build.add_argument("mountpoint", metavar="MOUNTPOINT")
    build.add_argument("id", metavar="ID")


def _build(options: argparse.Namespace) -> NoReturn:
    if not options.words:
        raise UsageError("build needs '--' and a command; try zfsfs build --help")
    if "/" in options.id or "@" in options.id:
        raise UsageError(f"{options.id}: an id has no '/' and no '@'; the base is given with --base")
    if "+" in options.id:
        raise UsageError(f"{options.id}: an id has no '+'; mkdir builds/BUILDER+ID is what has a builder do it")
    uses = [CacheUse.parse(text) for text in options.cache]
    if not options.native and any(use.where.startswith("/") for use in uses):
        raise UsageError("a cache at a path needs --native; without it give a variable")
    try:
        run = _Run(os.path.abspath(options.mountpoint), options.id, options.base, uses)
        code = run.carry_out(options.words, native=options.native)
    except (ZfsfsError, OSError) as failure:
        text = f"{failure.filename}: {failure.strerror}" if isinstance(failure, OSError) else failure
        complain(str(text))
        code = FAILED
    sys.exit(code)


class _Run:
    """One build. Guarantees: its directory is published or gone at the end, unless somebody holds it (which is then
    said) or this process is killed. What has its name when somebody has removed it is left alone."""

    def __init__(self, mountpoint: str, ident: str, base: str | None, caches: Sequence[CacheUse]) -> None:
        if mountpoints.mounted_type(mountpoint) != mountpoints.FSTYPE:
            raise MountError(f"{mountpoint} has no zfsfs")
        self._mountpoint = mountpoint
        self._ident = ident
        self._base = base
        self._caches = caches
        self._folder = os.path.join(mountpoint, "builds", ident if base is None else f"{ident}@{base}")
        self._made: os.stat_result | None = None
        self._child = -1  # its pidfd: it may have ended when a signal comes
        self._signals: list[int] = []
        self._output: Output | None = None  # while the command runs

    def carry_out(self, command: Sequence[str], *, native: bool) -> int:
        """All of it; returns the exit code."""
        started = time.monotonic()
        # In this order by all, or two could wait for each other's locked caches. A signal ends the waiting.
        names = sorted({self._path_of(use) for use in self._caches})
        held = [os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC) for name in names]
        # From here on a signal ends the command, and only then us.
        for number in _SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._interrupted)
        self._make()
        said = b"no"
        self._say("is started")
        try:
            self._remember()
            code = self._command(command, native=native)
            if code == 0 and not self._signals and self._publish():
                said = b"yes"
                self._say(f"is published after {time.monotonic() - started:.1f} s")
                return 0
        except BaseException:
            self._discard("has failed")
            raise
        finally:
            for fd in held:
                # For caches that are published on success.
                with suppress(OSError):
                    os.setxattr(fd, "user.zfsfs.success", said)
                os.close(fd)
        if self._signals:
            self._discard(f"was interrupted by {signal.Signals(self._signals[0]).name}")
            return 128 + self._signals[0]
        if code == 0:
            self._say("is not published: it has been removed already")
            return FAILED
        self._discard(f"has failed with exit code {code} after {time.monotonic() - started:.1f} s")
        return code

    def _say(self, text: str) -> None:
        complain(f"build {self._ident} {text}")

    def _path_of(self, use: CacheUse) -> str:
        return os.path.join(self._mountpoint, "caches", use.name)

    def _make(self) -> None:
        try:
            os.mkdir(self._folder)
        except FileExistsError:
            raise Exists(f"{self._ident} is a result, or is being built") from None
        except FileNotFoundError:
            raise Missing(f"there is no result {self._base}") from None

    def _remember(self) -> None:
        # Never closed: as long as we have it, no other directory gets its inode number. It counts as no use of it.
        self._made = os.fstat(os.open(self._folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def _is_there(self) -> bool:
        """Whether what has the build's name is still what we have made."""
        try:
            return self._made is None or os.path.samestat(os.stat(self._folder), self._made)
        except FileNotFoundError:
            return False
        except OSError:
            return True  # what is done to it then will tell

    # The command.

    def _interrupted(self, number: int, _frame: FrameType | None) -> None:
        self._signals.append(number)
        if self._child >= 0:
            # A second one means it. What a terminal sends the command has had already; twice does no harm.
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._child, number if len(self._signals) == 1 else signal.SIGKILL)
            if self._output is not None:
                self._output.hurry()

    def _command(self, command: Sequence[str], *, native: bool) -> int:
        if self._signals:
            return 1
        output = self._output = self._kept_output()
        try:
            pid = self._start(command, output, native=native)
            if pid == 0:
                return 1
            if output is not None:
                output.attend(self._child)
            _, status = os.waitpid(pid, 0)
            code = os.waitstatus_to_exitcode(status)
        finally:
            self._output = None
            if output is not None:
                output.finish()
        return 128 - code if code < 0 else code

    def _start(self, command: Sequence[str], output: Output | None, *, native: bool) -> int:
        """Returns its process id; 0 when a signal has come before it could be started."""
        # Who ignores the end of children, as whoever has started us may have it, is not told how they ended.
        children = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # No signal may fall between fork and the child's own handlers.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            if self._signals:  # while the daemon was asked
                return 0
            pid = os.fork()
            if pid == 0:
                signal.signal(signal.SIGCHLD, children)
                self._become(command, before, output, native=native)
            self._child = os.pidfd_open(pid)
            return pid
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _kept_output(self) -> Output | None:
        from zfsfs.cli.output import Output

        try:
            return Output(self._folder)
        except (ZfsfsError, OSError) as failure:
            self._say(f"prints what is not kept: {failure}")
            return None

    def _become(
        self, command: Sequence[str], mask: set[int | signal.Signals], output: Output | None, *, native: bool
    ) -> NoReturn:
        try:
            if output is not None:
                output.become()
            for number in _SIGNALS:
                if signal.getsignal(number) == self._interrupted:
                    signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            if native:
                self._enter()
            os.environ.update(ZFSFS_ID=self._ident, ZFSFS_BASE=self._base or "", ZFSFS_BUILD=self._folder)
            for use in self._caches:
                if not use.where.startswith("/"):
                    os.environ[use.where] = self._path_of(use)
            os.chdir(self._folder)
            execute(command)
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException as failure:
            complain(str(failure))
            os._exit(FAILED)

    def _enter(self) -> None:
        from zfsfs.native.client import Natives
        from zfsfs.native.mounts import bind

        with Natives([self._folder, *(self._path_of(use) for use in self._caches)]) as natives:
            natives.enter()
            for use in self._caches:
                if use.where.startswith("/"):
                    bind(self._path_of(use), use.where)

    # The end.

    def _publish(self) -> bool:
        """False when a signal has come before that, or the build has been removed."""
        result = os.path.join(self._mountpoint, "results", self._ident)
        patience = time.monotonic() + PATIENCE
        while not self._signals and self._is_there():
            try:
                os.rename(self._folder, result)
                return True
            except OSError as failure:
                if failure.errno != errno.EBUSY or time.monotonic() > patience:
                    raise Busy(f"build {self._ident} can't be published: {failure.strerror}{self._who()}") from None
                time.sleep(0.1)
        return False

    def _discard(self, why: str) -> None:
        patience = time.monotonic() + PATIENCE
        while True:
            try:
                if not self._is_there():
                    raise FileNotFoundError
                os.rmdir(self._folder)
            except FileNotFoundError:
                self._say(f"{why}; it has been removed already")
            except OSError as failure:
                if failure.errno == errno.EBUSY and time.monotonic() < patience:
                    time.sleep(0.1)
                    continue
                self._say(f"{why}, and is still there: {failure.strerror}{self._who()}; rmdir {self._folder}")
            else:
                self._say(f"{why}, and is discarded")
            return

    def _who(self) -> str:
        from zfsfs.cli.mounted import read_status

        path = os.path.relpath(self._folder, self._mountpoint)
        try:
            natives = read_status(self._mountpoint)["native"]
        except (ZfsfsError, OSError):
            return ""  # the daemon has gone, or waits for its storage
        names = [name for each in natives if each["path"] == path for name in each["holders"]]
        return f"; held by {', '.join(names)}" if names else ""

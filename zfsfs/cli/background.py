"""A daemon in a process of its own, and where it logs."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import logging.handlers
import os
import socket

from zfsfs.daemon import Settings, serve
from zfsfs.errors import UsageError, ZfsfsError


class _DaemonFailed(ZfsfsError):
    """What went wrong in the daemon, with the exit code that it chose."""

    def __init__(self, text: str, number: str) -> None:
        super().__init__(text)
        self.exit_code = int(number) if number.isdigit() else 1


def in_background(settings: Settings, log: str | None) -> None:
    """Serve in a process of its own; return when it is ready, or raise what went wrong there."""
    reader, writer = os.pipe()
    if os.fork() != 0:
        os.close(writer)
        with os.fdopen(reader, "rb") as said:
            answer = said.read()
        if answer != b"ready":
            number, _, text = answer.decode("utf-8", "surrogateescape").partition(" ")
            raise _DaemonFailed(text or "the daemon ended before it was ready; see its log", number)
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
        log_to(log, foreground=False)
        serve(settings, lambda: say(b"ready"))
    except ZfsfsError as error:
        code = error.exit_code
        logging.getLogger("zfsfs").error("%s", error)
        say(f"{code} {error}".encode("utf-8", "surrogateescape"))
    except BaseException as error:
        code = 1
        logging.getLogger("zfsfs").exception("the daemon failed")
        say(f"1 the daemon failed: {error!r}".encode())
    logging.shutdown()
    os._exit(code)


def tell_manager() -> None:
    """Tell the service manager, if there is one that waits for it, that the tree is usable (sd_notify(3))."""
    path = os.environ.pop("NOTIFY_SOCKET", "")  # not for builders
    if path:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.sendto(b"READY=1", f"\0{path[1:]}" if path.startswith("@") else path)
        except OSError as failure:
            logging.getLogger("zfsfs").warning("the service manager at %s can't be told: %s", path, failure.strerror)


def _close_quietly(fd: int) -> None:
    with contextlib.suppress(OSError):
        os.close(fd)


def log_to(path: str | None, *, foreground: bool) -> None:
    """Send the log to a file, to standard error in the foreground, or to the system's log. Raises UsageError."""
    handler: logging.Handler
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    if path is not None:
        try:
            handler = logging.FileHandler(path)
        except OSError as failure:
            raise UsageError(f"the log {path} can't be written: {failure.strerror}") from None
        # A crash in C, or an ABRT from outside, leaves every thread's stack behind.
        faulthandler.enable(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC))
    elif foreground:
        handler = logging.StreamHandler()
    elif os.path.exists("/dev/log"):
        handler = logging.handlers.SysLogHandler("/dev/log")
        text = "zfsfs[%(process)d]: %(message)s"
    else:
        handler = logging.NullHandler()
    handler.setFormatter(logging.Formatter(text))
    logging.basicConfig(handlers=[handler], level=logging.INFO)

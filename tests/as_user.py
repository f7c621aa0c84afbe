"""Doing things as an ordinary user."""

from __future__ import annotations

import errno
import os
import traceback
from collections.abc import Callable


def as_user(uid: int, action: Callable[[], object], groups: tuple[int, ...] = ()) -> str:
    """Do something in a process of that user and group: '' when it went well, else the errno's name."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        said = b"it did not end"
        try:
            os.close(reader)
            os.umask(0o022)
            os.setgroups(groups)
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            action()
            said = b""
        except OSError as failure:
            said = errno.errorcode.get(failure.errno or 0, "?").encode()
        except BaseException:
            said = traceback.format_exc().encode()
        finally:
            os.write(writer, said)
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(pid, 0)
    return text

"""The operations with answers in the kernel's own format, and those that the line carries out itself.

They are on the tree's own directories and files, and may wait: by way of pyfuse3 each would cost several times as
much, and couldn't be interrupted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Coroutine
from typing import Any

from zfsfs.fs import wire
from zfsfs.fs.asked import Context, Opened
from zfsfs.fs.operations import Operations

#: What `answer` answers.
OWN = {wire.LOOKUP, wire.READ, wire.MKDIR, wire.RMDIR, wire.RENAME, wire.RENAME2}


class WireOperations(Operations):
    """The same operations, with attributes as the kernel wants them."""

    entry = staticmethod(wire.entry)  # type: ignore[assignment]
    own_entry = staticmethod(wire.own)  # type: ignore[assignment]
    number = staticmethod(operator.attrgetter("shown"))
    opened = Opened  # type: ignore[assignment]


def raw(handler: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """A handler without the translation of errors that pyfuse3 needs: the line does its own."""
    wrapped: Callable[..., Coroutine[Any, Any, Any]] = handler.__wrapped__  # type: ignore[attr-defined]
    return wrapped


_lookup, _mkdir = raw(Operations.lookup), raw(Operations.mkdir)
_read = raw(Operations.read)
_rmdir, _rename = raw(Operations.rmdir), raw(Operations.rename)


async def answer(operations: Operations, opcode: int, ino: int, ctx: Context, body: memoryview) -> bytes:
    """The reply to a request. Raises what the handlers do."""
    entry: bytes = wire.DONE
    if opcode == wire.LOOKUP:
        entry = await _lookup(operations, ino, bytes(body[:-1]), ctx)
    elif opcode == wire.MKDIR:
        mode, ctx.umask = wire.TWO_U32.unpack_from(body)
        entry = await _mkdir(operations, ino, bytes(body[8:-1]), mode, ctx)
    elif opcode == wire.READ:
        number, offset, size = wire.READ_IN.unpack_from(body)
        with ctx.interruptible():
            entry = await _read(operations, number, offset, size) or wire.DONE
    elif opcode == wire.RMDIR:
        await _rmdir(operations, ino, bytes(body[:-1]), ctx)
    else:
        flags, names = 0, body[8:]
        if opcode == wire.RENAME2:
            _, flags, _ = wire.RENAME2_IN.unpack_from(body)
            names = body[16:]
        (parent,) = wire.U64.unpack_from(body)
        old, new = bytes(names).split(b"\0")[:2]
        await _rename(operations, ino, old, parent, new, flags, ctx)
    return entry

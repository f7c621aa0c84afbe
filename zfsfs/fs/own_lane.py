"""The operations with answers in the kernel's own format, and those that the line carries out itself.

They are on the tree's own directories and files, and may wait: by way of pyfuse3 each would cost several times as
much, and couldn't be interrupted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Coroutine
from typing import Any

from zfsfs.errors import Missing
from zfsfs.fs import control, wire
from zfsfs.fs.asked import Context, Opened
from zfsfs.fs.control import Listing
from zfsfs.fs.operations import Operations
from zfsfs.fs.own_operations import GROUPS
from zfsfs.names import FAILED_BUILDS

#: What `answer` answers.
OWN = {wire.LOOKUP, wire.READ, wire.MKDIR, wire.RMDIR, wire.RENAME, wire.RENAME2}


class WireOperations(Operations):
    """The same operations, with attributes as the kernel wants them."""

    entry = staticmethod(wire.entry)  # type: ignore[assignment]
    own_entry = staticmethod(wire.own)  # type: ignore[assignment]
    number = staticmethod(operator.attrgetter("shown"))
    opened = Opened  # type: ignore[assignment]

    def listed(self, handle: int, start: int, size: int) -> bytes:
        """A reply of at most `size` bytes with what an open directory of ours lists from a position on.

        Of areas that show nothing yet only the names are said: to look into each of them takes a while and a
        descriptor, one after the other and with the directory locked; and most who list it only want the names. So
        it is with those that the kernel knows.
        """
        listing = self._own[handle]
        assert isinstance(listing, Listing)
        parts: list[bytes] = []
        for position in range(start, len(listing.entries)):
            parent, name = listing.entries[position]
            length = len(name)
            padded = length + 7 & ~7
            room = wire.ENTRY_SIZE + wire.DIRENT.size + padded
            if room > size:
                break
            try:
                entry, number, kind = self._told(listing, parent, name)
            except (Missing, OSError):
                continue  # it has gone since
            parts += (entry, wire.DIRENT.pack(number, position + 1, length, kind), name.ljust(padded, b"\0"))
            size -= room
        return b"".join(parts)

    def _told(self, listing: Listing, parent: int, name: bytes) -> tuple[bytes, int, int]:
        """What the kernel is told of a name: an entry, a number and a type. Raises Missing, OSError."""
        if name in (b".", b".."):
            own = self._control.get(parent)
            return wire.UNTOLD, own.ino if name == b"." else own.key[0] or control.ROOT, wire.DIRECTORY
        if parent not in GROUPS or (parent, name) == (control.BUILDS, FAILED_BUILDS):
            own = self._control.find(parent, name)
            if own.entry.on_disk:
                self._control.forget(own.ino, 0)  # unless the kernel knows it: it asks, if anybody wants to know more
                return wire.UNTOLD, own.ino, wire.FILE
            facts = own.entry.facts()
            packed: Any = self._own_attributes(own, facts)
            own.lookups += 1
            return packed, own.ino, facts.mode >> 12
        area = self._tree.find(GROUPS[parent], name)
        entry: Any = wire.UNTOLD
        root = area.root
        if root.lookups:
            pass  # the kernel knows it; told again, it would forget its ACL
        elif area.view is not None or area.last is not None:
            entry = self._root_at_once(area)
            self._found(area)
        elif root not in listing.held:
            listing.held.add(root)
            self._tree.table.hold(root)
        return entry, root.ino, wire.DIRECTORY


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

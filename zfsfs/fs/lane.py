"""The fast lane: requests on what lies in areas, answered at once and in the kernel's own format.

What the handlers of `Operations` call is called here without the event loop, and what is answered is already laid out
as the kernel wants it. A handler returns None when something has to be waited for (an area that shows nothing yet, a
session that has to be opened first, a disk): the line calls it again after `prepare`. What is not in `HANDLERS`, and
what is on the tree's own files and directories, is left to pyfuse3.

Guarantees: a handler that returned None has done nothing. Reads and writes are carried out by the workers, which
answer by themselves; where one fails the event loop answers, having told people.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Callable
from time import monotonic
from typing import Any, Protocol

import trio

from zfsfs.errors import Missing
from zfsfs.fs import wire
from zfsfs.fs.asked import Context
from zfsfs.fs.backing import Backings
from zfsfs.fs.cold import TRUST, Look, is_cold, is_cold_at, look_ahead, slow, warm_listing
from zfsfs.fs.control import FIRST_INODE
from zfsfs.fs.handles import Changes, DirectoryHandle, FileHandle
from zfsfs.fs.listing import listed
from zfsfs.fs.nodes import Node, stale
from zfsfs.fs.openfiles import may_change
from zfsfs.fs.own_lane import WireOperations, answer
from zfsfs.fs.own_operations import FIRST_OWN_HANDLE, GROUPS
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.tree import Tree
from zfsfs.fs.unlocked import Asked
from zfsfs.fs.workers import PATIENCE

log = logging.getLogger(__name__)

#: A worker will answer, or it is answered.
SILENT = b""
#: What the kernel asks for before it writes into a file: writing takes capabilities away.
_CAPABILITY = b"security.capability"
#: Bytes in a part of a listing, some 400 names: whoever has room for more in getdents64(2) asks again.
_MOST_LISTED = 1 << 16


class Answer(Protocol):
    """Answers a request: its number, an errno or 0, and the reply."""

    def __call__(self, unique: int, number: int, reply: bytes = b"", /) -> None: ...


Handler = Callable[["Lane", int, int, Context, memoryview], bytes | None]


def _name(body: memoryview) -> bytes:
    return bytes(body[:-1])


def _part(body: memoryview) -> tuple[int, int, int]:
    """Which directory is to be listed from where, and in how many bytes."""
    number, offset, size = wire.READ_IN.unpack_from(body)
    return number, offset, min(size, _MOST_LISTED)


class Lane:
    """See the module. Its methods take a request's number, inode, caller and body. Made within the event loop."""

    def __init__(self, tree: Tree, files: Passthrough, operations: WireOperations, answer: Answer) -> None:
        self._tree = tree
        self._files = files
        self._ops = operations
        self._answer = answer
        self._by_ino = tree.table.by_ino
        self._seen: Node | None = None  # what the request before this one looked up: it is in memory
        self._token = trio.lowlevel.current_trio_token()

    def _ready(self, ino: int, ctx: Context, name: bytes | None = None) -> Node | None:
        """The node, if it (or the name in it) can be looked at without waiting."""
        node = self._by_ino.get(ino) if ino >= FIRST_INODE else None
        if node is None or node.area.view is None or self._tree.stopped:
            return None
        return node if self._at_hand(node, name, ctx) else None

    def _begun(self, ino: int, ctx: Context, name: bytes | None = None) -> Node | None:
        """The node, if it (or what is of that name in it) can be changed or opened without waiting."""
        node = self._by_ino.get(ino) if ino >= FIRST_INODE else None
        if node is None or not self._tree.begun(node.area, ctx.pid) or self._tree.stopped:
            return None
        return node if self._at_hand(node, name, ctx) else None

    def _changing(self, ino: int, ctx: Context, name: bytes | None = None) -> Node | None:
        """The same, for what is about to be changed. Raises what the area's gate does."""
        node = self._begun(ino, ctx, name)
        if node is not None and node.area.gate is not None:
            may_change(node.area, ctx)
        return node

    def _at_hand(self, node: Node, name: bytes | None, ctx: Context) -> bool:
        seen, self._seen = self._seen, None
        folder = node if name is not None else node.parent
        if folder is None or monotonic() - folder.warm < TRUST / 2:
            return True  # is_cold says the same, and takes note of it now and then
        if (name is None and node is seen) or not is_cold(node, name) or (node, name) in ctx.looked:
            return True
        ctx.cold = node, name
        return False

    async def prepare(self, opcode: int, ino: int, ctx: Context, body: memoryview) -> None:
        """Wait until a request that was left can be answered. Raises OSError, ZfsfsError."""
        if opcode == wire.RELEASE:
            await self._files.written_out(*wire.U64.unpack_from(body))
            return
        await self._prepare_area(opcode, ino, ctx, body)
        if ctx.look is not None:
            await self._files.workers.until_ended(ctx.look.call)
            self._looked(ctx, ctx.look)
        elif ctx.cut is not None:
            await self._files.cut(*ctx.cut, ctx)
        elif opcode == wire.READDIRPLUS:
            number, offset, size = _part(body)
            handle = self._files.handles[number]
            assert isinstance(handle, DirectoryHandle)
            await warm_listing(self._files.workers, handle, offset, size)

    def look_at_once(self, ctx: Context) -> bool:
        """Whether a request that was left can be answered after all: for what may not be in memory a worker looks,
        and has mostly done so in less time than others could be answered in. Else `prepare` goes on waiting.
        Raises OSError."""
        if ctx.cold is None or ctx.look is not None:
            return False
        ctx.look = Look(self._files.workers, *ctx.cold)
        if not ctx.look.call.has_ended(PATIENCE):
            return False
        self._looked(ctx, ctx.look)
        return True

    @staticmethod
    def _looked(ctx: Context, look: Look) -> None:
        assert ctx.cold is not None
        ctx.looked, ctx.cold, ctx.look = (*ctx.looked, ctx.cold), None, None
        look.finish()

    async def _prepare_area(self, opcode: int, ino: int, ctx: Context, body: memoryview) -> None:
        also = wire.U64.unpack_from(body)[0] if opcode in (wire.RENAME, wire.RENAME2, wire.LINK) else ino
        for each in {ino, also}:
            if opcode in _LOOKING:
                await self._ops.node(each)
            elif opcode != wire.READDIRPLUS:
                opens = opcode == wire.OPENDIR or (
                    opcode == wire.OPEN and self._ops.may_wait(*wire.U32.unpack_from(body))
                )
                await self._ops.opening(each, ctx, opens=opens)

    def lookup(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body)
        if ino < FIRST_INODE:
            try:
                found: Any = self._ops.found_at_once(ino, name, ctx.pid)
            except Missing:
                return wire.absent(0)
            return found  # type: ignore[no-any-return]
        node = self._ready(ino, ctx, name)
        if node is None:
            return None
        try:
            self._seen, st = self._ops.looked_up(node, name)
        except FileNotFoundError:
            return wire.absent(node.area.absent(node, name))
        return wire.entry(self._seen, st)

    def getattr(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        if ino < FIRST_INODE:
            # After each change in a group the kernel asks for the group's.
            own: Any = self._ops.folder_at_once(ino)
            return None if own is None else wire.attributes(own)
        node = self._ready(ino, ctx)
        return None if node is None else wire.attributes(self._ops.attributes(node))

    def setattr(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        (valid, _, number, size, _, atime, mtime, _, atime_ns, mtime_ns, _, mode, _, uid, gid) = (
            wire.SETATTR_IN.unpack_from(body)
        )
        # By a handle it is who has opened the file, or the kernel with what it has gathered.
        node = self._ready(ino, ctx) if valid & wire.HANDLE else self._changing(ino, ctx)
        if node is None:
            return None
        handle = self._files.file(number) if valid & wire.HANDLE else None
        if valid & wire.SIZE and self._is_long(node, size, handle, ctx):
            return None
        if valid & wire.SIZE and valid & wire.KILL_SET_ID:
            self._files.changing(node.area)  # or a result's bits would go before its size is refused
            self._files.clear_set_id(node, ctx)
        elif not valid & wire.WHAT:
            self._files.chown_to_nobody_new(node, ctx)
        new = Changes(
            size if valid & wire.SIZE else None,
            uid if valid & wire.UID else -1,
            gid if valid & wire.GID else -1,
            mode if valid & wire.MODE else None,
        )
        if valid & wire.ATIME:
            new.atime = wire.in_ns(atime, atime_ns)
        if valid & wire.MTIME:
            new.mtime = wire.in_ns(mtime, mtime_ns)
        self._files.change(node, new, handle)
        return wire.attributes(self._ops.attributes(node))

    def _is_long(self, node: Node, size: int, handle: FileHandle | None, ctx: Context) -> bool:
        """Whether a worker has to cut a file off first."""
        long = self._files.is_long(node, size, handle)
        ctx.cut = (node, size, handle) if long else None
        return long

    def readlink(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        node = self._ready(ino, ctx)
        return None if node is None else self._files.readlink(node)

    def back(self, backings: Backings) -> None:
        """From now on the kernel reads and writes open files by itself."""
        self._files.backings = self._files.table.keeper = backings

    def met(self, number: int) -> int:
        """An operation fails with this errno: see `Troubles.met`."""
        return self._ops.met(number)

    def forget(self, ino: int, count: int) -> None:
        self._ops.forgotten(ino, count)

    # Making and removing.

    def mknod(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body[16:])
        node = self._changing(ino, ctx, name)
        if node is None:
            return None
        mode, device, umask, _ = wire.MKNOD_IN.unpack_from(body)
        self._files.mknod(node, name, self._files.masked(node, mode, umask), device, ctx)
        return self._made(node, name)

    def _made(self, parent: Node, name: bytes, *, warm: bool = False) -> bytes:
        entry: Any = self._ops.made(parent, name, warm=warm)
        return entry  # type: ignore[no-any-return]

    def mkdir(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body[8:])
        mode, umask = wire.TWO_U32.unpack_from(body)
        mode = stat.S_IMODE(mode)
        if ino in GROUPS:
            return self._begin(self._ops.making(ino, name, mode & ~umask, ctx))
        node = self._changing(ino, ctx, name)
        if node is None:
            return None
        self._files.mkdir(node, name, self._files.masked(node, mode, umask), ctx)
        return self._made(node, name, warm=True)

    def symlink(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name, target = bytes(body).split(b"\0")[:2]
        node = self._changing(ino, ctx, name)
        if node is None:
            return None
        self._files.symlink(node, name, target, ctx)
        return self._made(node, name)

    def link(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        (linked,) = wire.U64.unpack_from(body)
        name = _name(body[8:])
        node = self._begun(linked, ctx)
        parent = None if node is None else self._changing(ino, ctx, name)
        if node is None or parent is None:
            return None
        self._files.link(node, parent, name)
        return self._made(parent, name)

    def unlink(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body)
        node = self._changing(ino, ctx, name)
        if node is None:
            return None
        self._files.unlink(node, name)
        return wire.DONE

    def rmdir(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body)
        if ino in GROUPS:
            return self._begin(self._ops.removing(ino, name, ctx))
        node = self._changing(ino, ctx, name)
        if node is None:
            return None
        self._files.rmdir(node, name)
        return wire.DONE

    def rename(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        (parent,) = wire.U64.unpack_from(body)
        return self._renamed(ino, parent, 0, ctx, body[8:])

    def rename2(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        parent, flags, _ = wire.RENAME2_IN.unpack_from(body)
        return self._renamed(ino, parent, flags, ctx, body[16:])

    def _renamed(self, ino: int, new_ino: int, flags: int, ctx: Context, names: memoryview) -> bytes | None:
        name, new_name = bytes(names).split(b"\0")[:2]
        if ino < FIRST_INODE or new_ino < FIRST_INODE:
            return self._begin(self._ops.moving((ino, name), (new_ino, new_name), flags, ctx))
        old = self._begun(ino, ctx, name)
        new = None if old is None else self._changing(new_ino, ctx, new_name)
        if old is None or new is None:
            return None
        self._files.rename(old, name, new, new_name, flags, ctx)
        return wire.DONE

    def _begin(self, asked: Asked[Any]) -> bytes | None:
        if self._ops.begin(asked):
            raise stale()
        return None

    async def own(self, opcode: int, ino: int, ctx: Context, body: memoryview) -> bytes:
        """The reply to one of `OWN` on the tree's own directories and files. Raises what the handlers do."""
        return await answer(self._ops, opcode, ino, ctx, body)

    # Files.

    def open(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        node = self._begun(ino, ctx)
        if node is None:
            return None
        (flags,) = wire.U32.unpack_from(body)
        if flags & os.O_TRUNC and self._is_long(node, 0, None, ctx):
            return None
        return self._opened(self._files.open(node, flags, ctx))

    @staticmethod
    def _opened(handle: FileHandle) -> bytes:
        how = wire.BACKED if handle.backing else wire.DIRECT_IO if handle.direct else wire.KEEP_CACHE
        return wire.OPENED.pack(handle.fd, how, handle.backing)

    def create(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body[16:])
        node = self._begun(ino, ctx, name)
        if node is None:
            return None
        flags, mode, umask, _ = wire.CREATE_IN.unpack_from(body)
        handle, entry = self._ops.created(node, name, self._files.masked(node, mode, umask), flags, ctx)
        reply: bytes = entry + self._opened(handle)
        return reply

    def release(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        (handle,) = wire.U64.unpack_from(body)
        if handle >= FIRST_OWN_HANDLE:
            return None
        opened = self._files.handles[handle]
        if isinstance(opened, FileHandle) and self._files.is_to_write_out(opened):
            return None
        self._files.close(handle)
        return wire.DONE

    def read(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        number, offset, size = wire.READ_IN.unpack_from(body)
        handle = self._files.handles.get(number)
        if not isinstance(handle, FileHandle):
            return None
        self._tree.running()
        fd = handle.fd
        self._files.workers.put(lambda: self._carry_out(unique, lambda: os.pread(fd, size, offset)))
        return SILENT

    def write(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        number, offset, size = wire.READ_IN.unpack_from(body)
        handle = self._files.handles.get(number)
        if not isinstance(handle, FileHandle):
            return None
        self._tree.running()
        write = self._files.to_write(handle, offset, bytes(body[wire.READ_SIZE : wire.READ_SIZE + size]))
        self._files.workers.put(lambda: self._carry_out(unique, lambda: wire.TWO_U32.pack(write(), 0)), writes=True)
        return SILENT

    def _carry_out(self, unique: int, call: Callable[[], bytes]) -> None:
        try:
            result = call()
        except Exception as failure:
            self._failed(unique, failure)
            return
        try:
            self._answer(unique, 0, result)
        except OSError:
            log.exception("the kernel did not take a reply")

    def _failed(self, unique: int, failure: Exception) -> None:
        """A read or write has failed. In a worker."""
        number = errno.ENOMEM if isinstance(failure, MemoryError) else errno.EIO
        if isinstance(failure, OSError):
            number = failure.errno or errno.EIO
        elif not isinstance(failure, MemoryError):
            log.error("a read or write failed in a way that nobody expected", exc_info=failure)
        try:
            self._token.run_sync_soon(lambda: self._answer(unique, self.met(number)))
        except trio.RunFinishedError:
            self._answer(unique, number)

    # Directories and attributes.

    def opendir(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        node = self._begun(ino, ctx)
        if node is None:
            return None
        how = 0 if node.area.frozen else wire.KEEP_CACHE | wire.CACHE_DIR
        handle = self._files.opendir(node, ctx)
        look_ahead(self._files.workers, handle)
        return wire.OPENED.pack(handle.fd, how, 0)

    def readdirplus(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        number, offset, size = _part(body)
        if number >= FIRST_OWN_HANDLE:
            return self._ops.listed(number, offset, size) or wire.DONE
        self._tree.running()
        handle = self._files.handles[number]
        assert isinstance(handle, DirectoryHandle)
        if is_cold_at(handle, offset):
            return None
        start = monotonic()
        reply, count = listed(self._files.table, handle, offset, size, self._ops.above(handle.node))
        slow(handle.node.area, start, count)
        if not count:
            handle.node.warm = start
        return reply or wire.DONE

    def getxattr(self, unique: int, ino: int, ctx: Context, body: memoryview) -> bytes | None:
        name = _name(body[8:])
        node = self._ready(ino, ctx)
        if name == _CAPABILITY and node is not None and self._files.is_plain(node):
            self._answer(unique, errno.ENODATA)
            return SILENT
        if name.startswith(b"user.zfsfs.") or node is None:
            return None  # what is not in the file takes its time to find out
        (size,) = wire.U32.unpack_from(body)
        value = self._files.getxattr(node, name)
        if size == 0:
            return wire.TWO_U32.pack(len(value), 0)
        if len(value) > size:
            raise OSError(34, os.strerror(34))
        return value or wire.DONE


_LOOKING = (wire.LOOKUP, wire.GETATTR, wire.READLINK)
#: What is answered here as soon as the area is ready, see `Lane.prepare`.
PREPARED = {
    *_LOOKING, wire.SETATTR, wire.SYMLINK, wire.MKNOD, wire.MKDIR, wire.UNLINK, wire.RMDIR,
    wire.RENAME, wire.RENAME2, wire.LINK, wire.OPEN, wire.CREATE, wire.OPENDIR, wire.READDIRPLUS, wire.RELEASE,
}  # fmt: skip

HANDLERS: dict[int, Handler] = {
    wire.LOOKUP: Lane.lookup,
    wire.GETATTR: Lane.getattr,
    wire.SETATTR: Lane.setattr,
    wire.READLINK: Lane.readlink,
    wire.SYMLINK: Lane.symlink,
    wire.MKNOD: Lane.mknod,
    wire.MKDIR: Lane.mkdir,
    wire.UNLINK: Lane.unlink,
    wire.RMDIR: Lane.rmdir,
    wire.RENAME: Lane.rename,
    wire.RENAME2: Lane.rename2,
    wire.LINK: Lane.link,
    wire.OPEN: Lane.open,
    wire.CREATE: Lane.create,
    wire.READ: Lane.read,
    wire.WRITE: Lane.write,
    wire.RELEASE: Lane.release,
    wire.OPENDIR: Lane.opendir,
    wire.READDIRPLUS: Lane.readdirplus,
    wire.RELEASEDIR: Lane.release,
    wire.GETXATTR: Lane.getxattr,
}

"""The edge to pyfuse3: each handler finds the node, calls, and converts back.

Guarantees: a lookup is counted once for every entry that the kernel took. Requests on the tree's own directories go
to `Tree` and `Control`, those in areas to `Passthrough`.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Sequence
from time import monotonic
from typing import Any

import pyfuse3

from zfsfs.fs import control, status, who
from zfsfs.fs.caller import Caller, error
from zfsfs.fs.cold import is_cold, warm
from zfsfs.fs.control import FIRST_INODE, Listing
from zfsfs.fs.handles import Changes, DirectoryHandle, FileHandle
from zfsfs.fs.nodes import Node
from zfsfs.fs.own_operations import FIRST_OWN_HANDLE, GROUPS, Attributes, OwnOperations
from zfsfs.fs.replies import absent, answered
from zfsfs.names import FAILED_BUILDS

log = logging.getLogger(__name__)

_GROUP_OF = {"build": control.BUILDS, "result": control.RESULTS, "cache": control.CACHES, "failed": control.FAILED}


def _caller(ctx: pyfuse3.RequestContext | Caller) -> Caller:
    return ctx if isinstance(ctx, Caller) else Caller(ctx.uid, ctx.gid, ctx.pid)


class Operations(OwnOperations):
    """See the module."""

    def met(self, number: int) -> int:
        """An operation fails with this errno: see `Troubles.met`."""
        return self._tree.troubles.met(number)

    # Finding.

    async def node(self, ino: int) -> Node:
        """The node of a number, its area showing something."""
        node = self._by_ino.get(ino)
        if node is None:
            raise error(errno.EPERM if ino < FIRST_INODE else errno.ESTALE)
        if node.area.view is None or self._tree.stopped:
            await self._tree.ready(node.area)
        return node

    async def changing(self, ino: int, ctx: pyfuse3.RequestContext) -> Node:
        """The same, for what is about to be changed. Raises what the area's gate does."""
        node = await self.opening(ino, ctx, opens=False)
        if node.area.gate is not None and not node.area.read_only:
            node.area.gate(node.area, _caller(ctx))
        return node

    async def at_hand(self, ino: int) -> Node:
        """The same, once it can be looked at without waiting for a disk."""
        node = await self.node(ino)
        if is_cold(node):
            await warm(self._files.workers, node)
            node = await self.node(ino)  # its area may show nothing again
        return node

    async def opening(self, ino: int, ctx: pyfuse3.RequestContext | Caller, *, opens: bool = True) -> Node:
        """The same, for what is about to be opened."""
        node = await self.node(ino)
        if not self._tree.begun(node.area, ctx.pid):
            await self._tree.begin(node.area, _caller(ctx), opens=opens)
        return node

    def may_wait(self, flags: int) -> bool:
        """Whether an open of a file can wait without holding up others: it can't while the kernel has the file locked
        because it keeps what is written and is about to drop it (fuse_open in fs/fuse/file.c)."""
        return not flags & os.O_TRUNC or self._files.backings is not None

    @answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> Attributes:
        if parent_inode == control.ROOT or (parent_inode, name) == (control.BUILDS, FAILED_BUILDS):
            await self._unlocked.looked_up(ctx.pid, self._control.find(parent_inode, name).ino)
        if parent_inode < FIRST_INODE:
            return await self._lookup_own(parent_inode, name)
        parent = await self.node(parent_inode)
        try:
            return self.entry(*self.looked_up(parent, name))
        except FileNotFoundError:
            return absent(parent.area.absent(parent, name))

    # What the fast lane calls, too, and gets laid out in its way.

    def looked_up(self, parent: Node, name: bytes) -> tuple[Node, os.stat_result]:
        """What is of a name in a directory of an area, which the kernel will know. Raises OSError."""
        node, st = self._files.lookup(parent, name)
        node.lookups += 1
        return node, st

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self.forgotten(ino, count)

    def forgotten(self, ino: int, count: int) -> None:
        """The kernel gives an inode number back."""
        if ino >= FIRST_INODE:
            self._tree.table.forget(ino, count)
        else:
            self._control.forget(ino, count)

    @answered
    async def getattr(self, inode: int, ctx: object) -> Attributes:
        if inode < FIRST_INODE:
            return await self._grown_attributes(self._control.get(inode))
        entry: Attributes = self.attributes(await self.node(inode))
        return entry

    def attributes(self, node: Node) -> Any:
        """The answer to who asks for a file's attributes."""
        return self.entry(node, self._files.stat(node))

    @answered
    async def setattr(
        self,
        inode: int,
        attr: Attributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> Attributes:
        # By a handle it is who has opened the file, or the kernel with what it has gathered.
        node = await (self.changing(inode, ctx) if fh is None else self.node(inode))
        new = Changes(
            attr.st_size if fields.update_size else None,
            attr.st_uid if fields.update_uid else -1,
            attr.st_gid if fields.update_gid else -1,
            attr.st_mode if fields.update_mode else None,
            attr.st_atime_ns if fields.update_atime else None,
            attr.st_mtime_ns if fields.update_mtime else None,
        )
        self._files.change(node, new, None if fh is None else self._files.file(fh))
        entry: Attributes = self.attributes(node)
        return entry

    @answered
    async def readlink(self, inode: int, ctx: object) -> bytes:
        return self._files.readlink(await self.node(inode))

    # Making and removing.

    def made(self, parent: Node, name: bytes, *, warm: bool = False) -> Attributes:
        """The answer to who has made something; of a directory (`warm`) all is in memory."""
        node, st = self.looked_up(parent, name)
        if warm:
            node.warm = monotonic()
        return self.entry(node, st)

    @answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> Attributes:
        parent = await self.changing(parent_inode, ctx)
        self._files.mknod(parent, name, self._files.masked(parent, mode, ctx.umask), rdev, _caller(ctx))
        return self.made(parent, name)

    @answered
    async def mkdir(self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> Attributes:
        caller, mode = _caller(ctx), stat.S_IMODE(mode)
        if parent_inode in GROUPS:
            asked = self.making(parent_inode, name, mode & ~ctx.umask, caller)
            return await self._known(await self._unlocked.run(asked))
        parent = await self.changing(parent_inode, ctx)
        self._files.mkdir(parent, name, self._files.masked(parent, mode, ctx.umask), caller)
        return self.made(parent, name, warm=True)

    @answered
    async def symlink(self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> Attributes:
        parent = await self.changing(parent_inode, ctx)
        self._files.symlink(parent, name, target, _caller(ctx))
        return self.made(parent, name)

    @answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> Attributes:
        if new_parent_inode < FIRST_INODE:
            raise error(errno.EPERM)
        parent = await self.changing(new_parent_inode, ctx)
        self._files.link(await self.node(inode), parent, new_name)
        return self.made(parent, new_name)

    @answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._files.unlink(await self.changing(parent_inode, ctx), name)

    @answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        if parent_inode in GROUPS:
            await self._unlocked.run(self.removing(parent_inode, name, _caller(ctx)))
        else:
            self._files.rmdir(await self.changing(parent_inode, ctx), name)

    @answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if parent_inode_old < FIRST_INODE or parent_inode_new < FIRST_INODE:
            names = (parent_inode_old, name_old), (parent_inode_new, name_new)
            await self._unlocked.run(self.moving(*names, flags, _caller(ctx)))
            return
        old = await self.changing(parent_inode_old, ctx)
        new = await self.changing(parent_inode_new, ctx)
        self._files.rename(old, name_old, new, name_new, flags, _caller(ctx))

    # Extended attributes.

    @answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        if inode < FIRST_INODE and name != who.NAME:
            raise error(errno.ENODATA)
        if name == who.NAME:
            return await self._holders(inode, ctx.uid)
        known = self._by_ino.get(inode)
        if known is not None and known.parent is None and name in known.area.lacking:
            raise error(errno.ENODATA)
        node = await self.at_hand(inode)
        if node.parent is None and name.startswith(b"user.zfsfs."):
            value = await status.xattr(self._tree, node.area, name, ctx.uid)
            if value is None:
                raise error(errno.ENODATA)
            return value
        return self._files.getxattr(node, name)

    async def _holders(self, inode: int, uid: int) -> bytes:
        """Who holds a directory or file, and all beneath."""
        node = self._by_ino.get(inode)
        if node is not None:
            found = await who.of_path(self._tree, who.path_of(node), node.area, uid)
        elif inode in (control.ROOT, *GROUPS):
            found = await who.of_path(self._tree, GROUPS.get(inode, b""), None, uid)
        else:
            raise error(errno.ENODATA)
        return who.packed(found)

    @answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        if inode < FIRST_INODE:
            return []
        node = await self.at_hand(inode)
        mine = status.xattr_names(self._tree, node.area, ctx.uid) if node.parent is None else []
        return mine + self._files.listxattr(node, _caller(ctx))

    @answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        node = await self.at_hand(inode)
        if node.parent is None and name.startswith(b"user.zfsfs."):
            await self._tree.sessions.ruling.set(node.area, name, value, _caller(ctx))
            return
        node = await self.changing(inode, ctx)
        self._files.setxattr(node, name, value, _caller(ctx))

    @answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        node = await self.at_hand(inode)
        if node.parent is None and name.startswith(b"user.zfsfs."):
            await self._tree.sessions.ruling.remove(node.area, name, _caller(ctx))
            return
        self._files.removexattr(await self.changing(inode, ctx), name)

    # Files.

    @answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if inode < FIRST_INODE:
            return await self._open_own(inode, flags, ctx)
        node = await self.opening(inode, ctx, opens=self.may_wait(flags))
        handle = self._files.open(node, flags, _caller(ctx))
        return self.opened(fh=handle.fd, direct_io=handle.direct, keep_cache=not handle.direct)

    @answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, Attributes]:
        parent = await self.changing(parent_inode, ctx)
        handle, entry = self.created(parent, name, self._files.masked(parent, mode, ctx.umask), flags, _caller(ctx))
        return self.opened(fh=handle.fd, keep_cache=True), entry

    def created(self, parent: Node, name: bytes, mode: int, flags: int, caller: Caller) -> tuple[FileHandle, Any]:
        """The file that a create makes, and the answer."""
        handle, st = self._files.create(parent, name, mode, flags, caller)
        handle.node.lookups += 1
        return handle, self.entry(handle.node, st)

    @answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        own = self._own.get(fh)
        if own is not None:
            assert not isinstance(own, Listing)
            return await own.read(off, size)
        return await self._files.read(self._files.file(fh), off, size)

    @answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(self._files.file(fh), off, buf)

    @answered
    async def flush(self, fh: int) -> None:
        raise pyfuse3.FUSEError(errno.ENOSYS)  # close(2) has nothing to wait for; the kernel asks no more

    @answered
    async def release(self, fh: int) -> None:
        own = self._drop_own(fh)
        if own is None:
            self._files.close(fh)
        elif not isinstance(own, Listing):
            own.close()

    @answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        if fh < FIRST_OWN_HANDLE:
            await self._files.fsync(fh, datasync)

    # Directories.

    @answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        if inode < FIRST_INODE:
            return self._opendir_own(inode, ctx.uid)
        return self._files.opendir(await self.opening(inode, ctx), _caller(ctx)).fd

    @answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        own = self._own.get(fh)
        if own is not None:
            assert isinstance(own, Listing)
            await self._read_own(own.entries, start_id, token)
            return
        handle = self._files.handles[fh]
        assert isinstance(handle, DirectoryHandle)
        node = handle.node
        for name, following, _ in handle.entries(start_id):
            if name in (b".", b".."):
                number = node.ino if name == b"." else self.above(node)
                if not self.add_entry(token, name, self.dot(number), following):
                    return
                continue
            try:
                found, st = self._files.lookup(node, name)
            except FileNotFoundError:
                continue  # removed since the directory was read
            if not self.add_entry(token, name, self.entry(found, st), following):
                if not found.lookups:
                    self._tree.table.forget(found.ino, 0)
                return
            found.lookups += 1

    def above(self, node: Node) -> int:
        """The inode of a directory's '..'."""
        return int(self.number(node.parent)) if node.parent is not None else _GROUP_OF[node.area.place.kind]

    @answered
    async def releasedir(self, fh: int) -> None:
        if self._drop_own(fh) is None:
            self._files.close(fh)

    @answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if fh < FIRST_OWN_HANDLE:
            await self._files.fsync(fh, datasync)

    @answered
    async def statfs(self, ctx: object) -> pyfuse3.StatvfsData:
        found = self._tree.statvfs()
        data = pyfuse3.StatvfsData()
        for name in ("bsize", "frsize", "blocks", "bfree", "bavail", "files", "ffree", "favail", "namemax"):
            setattr(data, f"f_{name}", getattr(found, f"f_{name}"))
        return data

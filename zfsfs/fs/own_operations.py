"""The tree's own directories and files, as pyfuse3 asks for them: groups, `.zfsfs`, and the roots of areas.

Guarantees: a lookup is counted once for every entry that the kernel took.
"""

from __future__ import annotations

import errno
import operator
import os
import select
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

from zfsfs.errors import DriverError, Missing
from zfsfs.fs import control
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller, error
from zfsfs.fs.control import Control, Facts, Listing, Own, Reader
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.replies import answered, attributes, dot, own_attributes
from zfsfs.fs.tree import BUILDS, CACHES, FAILED, RESULTS, Tree
from zfsfs.fs.unlocked import Asked, Name, Unlocked
from zfsfs.fs.users import OWN
from zfsfs.names import FAILED_BUILDS
from zfsfs.store.arriving import Arrive
from zfsfs.threads import UNLIMITED, in_thread

GROUPS = {control.BUILDS: BUILDS, control.RESULTS: RESULTS, control.CACHES: CACHES, control.FAILED: FAILED}
#: Handles of the tree's own files and directories start here; those of areas are descriptors.
FIRST_OWN_HANDLE = 1 << 32

Attributes = pyfuse3.EntryAttributes


class OwnOperations(pyfuse3.Operations):
    """See the module. What is open of it is in `_own`, whoever answers."""

    # How replies are laid out; the fast lane (lane.py) has its own.
    entry = staticmethod(attributes)
    own_entry = staticmethod(own_attributes)
    dot = staticmethod(dot)
    number = staticmethod(operator.attrgetter("ino"))  # that stat(2) shows: with pyfuse3 there is but one
    opened = pyfuse3.FileInfo
    add_entry = staticmethod(pyfuse3.readdir_reply)

    supports_dot_lookup = False
    enable_writeback_cache = True
    enable_acl = True

    def __init__(
        self, tree: Tree, files: Passthrough, own: Control, unlocked: Unlocked, tell: Callable[[int, int], None]
    ) -> None:
        super().__init__()
        self._tell = tell  # the kernel, of a file that has grown
        self._tree = tree
        self._files = files
        self._control = own
        self._unlocked = unlocked
        self._by_ino = tree.table.by_ino
        self._born = time.time_ns()
        self._own = own.opened
        self._own_users: dict[int, int] = {}  # whose they are, but for root's
        self._next_own = FIRST_OWN_HANDLE

    # Looking.

    def _own_attributes(self, own: Own, facts: Facts) -> Attributes:
        return self.own_entry(own.ino, facts, self._born, passing=own.passing)

    @staticmethod
    async def _facts(own: Own) -> Facts:
        return await in_thread(own.entry.facts) if own.entry.on_disk else own.entry.facts()

    async def _grown_attributes(self, own: Own) -> Attributes:
        facts = await self._facts(own)
        await self._grown(own, facts.size)
        return self._own_attributes(own, facts)

    def folder_at_once(self, ino: int) -> Attributes | None:
        """The attributes of one of our own directories; None where it is a file, which may have grown."""
        own = self._control.get(ino)
        return self._own_attributes(own, own.entry.facts()) if isinstance(own.entry, control.Folder) else None

    async def _grown(self, own: Own, size: int) -> None:
        """Tell the kernel that a file of ours has grown. With the writeback cache it believes its own size only."""
        if size > own.told:
            before, own.told = own.told, size
            try:
                # In a thread: who has mapped the file may hold the page and wait for us.
                await in_thread(self._tell, own.ino, size, abandon_on_cancel=True, limiter=UNLIMITED)
            except OSError:
                pass  # there is nobody to be told any more
            except DriverError:
                own.told = before  # by the next who asks: there is no thread to be had

    async def _root_of(self, area: Area) -> Attributes:
        if area.view is None and area.last is None:
            await self._tree.ready(area)
        return self._root_at_once(area)

    def _root_at_once(self, area: Area) -> Attributes:
        if area.view is None and area.last is not None:
            return self.entry(area.root, area.last)
        return self.entry(area.root, os.fstat(area.fd))

    async def _lookup_own(self, parent: int, name: bytes) -> Attributes:
        if parent not in GROUPS or (parent, name) == (control.BUILDS, FAILED_BUILDS):
            own = self._control.find(parent, name)
            own.lookups += 1
            try:
                return await self._grown_attributes(own)
            except BaseException:
                self._control.forget(own.ino, 1)  # of which the kernel gets to know nothing
                raise
        return await self._known(self._tree.find(GROUPS[parent], name))

    def found_at_once(self, parent: int, name: bytes, pid: int) -> Attributes | None:
        """The answer to a thread's lookup in one of our own directories; None where something has to be waited for.
        Raises Missing."""
        if self._tree.stopped:
            return None
        if parent == control.ROOT:
            own = self._control.find(parent, name)
            return None if self._unlocked.waits(pid, own.ino) else self.folder_at_once(own.ino)
        if parent not in GROUPS or (parent, name) == (control.BUILDS, FAILED_BUILDS):
            return None
        area = self._tree.find(GROUPS[parent], name)
        if area.view is None and area.last is None:
            return None
        entry = self._root_at_once(area)
        self._found(area)
        return entry

    async def _known(self, area: Area) -> Attributes:
        """The root of an area, which the kernel will know."""
        with self._tree.table.holding(area.root):
            entry = await self._root_of(area)
            self._found(area)
        return entry

    def _found(self, area: Area) -> None:
        area.root.lookups += 1
        self._by_ino[area.root.ino] = area.root

    # Verbs on the groups. What they mean: the fast lane begins the same.

    def making(self, group: int, name: bytes, mode: int, caller: Caller) -> Asked[Area]:
        """mkdir in a group. `mode` is what is left of it by the umask."""
        tree, where = self._tree, GROUPS[group]
        return Asked(
            "mkdir",
            ((group, name),),
            caller,
            lambda arrive: tree.mkdir(where, name, mode, caller, arrive),
            lambda: tree.may_make(where, name),
        )

    def moving(self, old: Name, new: Name, flags: int, caller: Caller) -> Asked[None]:
        """mv from one group to another. Raises EPERM, EXDEV and EINVAL where that means nothing."""
        tree, failures, groups = self._tree, self._tree.failures, (old[0], new[0])
        move: Callable[[bytes, bytes, Arrive], Awaitable[None]]
        may: Callable[[bytes, bytes], object]
        if groups == (control.BUILDS, control.RESULTS):
            move, may = tree.publish, tree.may_publish
        elif groups == (control.BUILDS, control.FAILED):
            move, may = failures.keep, failures.may_keep
        elif groups == (control.FAILED, control.BUILDS):
            move, may = failures.reopen, failures.may_reopen
        else:
            same = old[0] == new[0] or max(groups) < control.FIRST_INODE
            raise error(errno.EPERM if same else errno.EXDEV)
        if flags & pyfuse3.RENAME_EXCHANGE:
            raise error(errno.EINVAL)
        return Asked(
            "rename",
            (old, new),
            caller,
            lambda arrive: move(old[1], new[1], arrive),
            lambda: may(old[1], new[1]),
        )

    def removing(self, group: int, name: bytes, caller: Caller) -> Asked[None]:
        """rmdir in a group."""
        tree, where = self._tree, GROUPS[group]
        return Asked(
            "rmdir",
            ((group, name),),
            caller,
            lambda arrive: tree.rmdir(where, name, arrive),
            lambda: tree.may_remove(where, name),
        )

    def begin(self, asked: Asked[Any]) -> bool:
        """Begin one of these, if that is all that its first request is answered with."""
        return self._unlocked.begin(asked)

    # Open files and directories.

    async def _open_own(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        if flags & os.O_ACCMODE:
            raise error(errno.EACCES)
        file = self._control.get(inode).entry
        if isinstance(file, control.Folder):
            raise error(errno.EISDIR)
        with self._files.users.taking(OWN, ctx.uid):
            reader = await file.open(control.Asker(ctx.uid, flags))
        return self.opened(fh=self._keep_own(reader, ctx.uid), direct_io=True)

    def _opendir_own(self, inode: int, uid: int) -> int:
        names = self._tree.names(GROUPS[inode]) if inode in GROUPS else self._control.names(inode)
        self._files.users.take(OWN, uid)
        return self._keep_own(Listing([(inode, name) for name in [b".", b"..", *names]]), uid)

    def _keep_own(self, contents: Listing | Reader, uid: int) -> int:
        self._next_own += 1
        self._own[self._next_own] = contents
        if uid:
            self._own_users[self._next_own] = uid
        return self._next_own

    def _drop_own(self, fh: int) -> Listing | Reader | None:
        if fh in self._own_users:
            self._files.users.give(OWN, self._own_users.pop(fh))
        own = self._own.pop(fh, None)
        for root in own.held if isinstance(own, Listing) else ():
            self._tree.table.closed(root)
        return own

    @answered
    async def poll(self, inode: int, fh: int, poll_handle: pyfuse3.PollHandle | None, ctx: object) -> int:
        own = self._own.get(fh)
        if own is None or isinstance(own, Listing):
            return select.POLLIN | select.POLLOUT
        notify = None if poll_handle is None else poll_handle.notify
        return select.POLLIN if own.ready(notify) else 0

    async def _read_own(self, entries: list[tuple[int, bytes]], start: int, token: pyfuse3.ReaddirToken) -> None:
        for position in range(start, len(entries)):
            parent, name = entries[position]
            found: Area | Own | None = None
            try:
                if name in (b".", b".."):
                    own = self._control.get(parent)
                    own = own if name == b"." else self._control.get(own.key[0] or control.ROOT)
                    entry = self._own_attributes(own, own.entry.facts())
                elif parent in GROUPS and (parent, name) != (control.BUILDS, FAILED_BUILDS):
                    found = self._tree.find(GROUPS[parent], name)
                    entry = await self._known(found)
                else:
                    found = self._control.find(parent, name)
                    entry = self._own_attributes(found, await self._facts(found))
            except (Missing, OSError):
                continue  # it has gone since
            if not self.add_entry(token, name, entry, position + 1):
                if isinstance(found, Own):
                    self._control.forget(found.ino, 0)
                elif found is not None:
                    self._tree.table.forget(found.root.ino, 1)
                return
            if isinstance(found, Own):
                found.lookups += 1

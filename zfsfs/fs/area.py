"""An area: one directory of the tree that shows a dataset, and what is known beneath it.

A build, a result and a session of a cache are areas. What an area shows can be switched (a cache's published
version, then a session's clone, then a newer version) while the kernel goes on knowing its inodes.

Guarantees: `opens` and `writers` count the open handles beneath; `until` wakes whoever waits for them to come or go.
An area that the kernel knows no more and nobody refers to is gone at once, for it is in no cycle of references: the
search for those does not take place while there is much to do (see `garbage`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Protocol

import trio

from zfsfs import syscalls
from zfsfs.driver import View
from zfsfs.fs.nodes import NEVER, Node, NodeTable, stale
from zfsfs.threads import in_thread

if TYPE_CHECKING:
    from zfsfs.fs.caller import Caller
    from zfsfs.fs.places import Place


#: Seconds for which the kernel may keep what only we can change: for ever, as the protocol goes.
FOREVER = 365 * 86400
#: Of a file: its times of change and its size.
Traces = tuple[int, int, int]
#: The most names that are remembered as absent, and the seconds for which the kernel may keep any others.
MOST_ABSENT = 50_000
BRIEFLY = 1
#: Extended attributes that a root is known not to have.
MOST_LACKING = 8


class Holding(Protocol):
    """Somebody who has an area natively."""

    def names(self) -> list[str]:
        """Who it is, for people."""

    def look(self) -> None:
        """Look soon whether it is still so."""


class Area:
    """See the module. `place` is what it is (a build, a result, a cache's session), set by the tree. `number`: see
    `NodeTable.root`."""

    def __init__(self, table: NodeTable, place: Place, number: int = 0) -> None:
        self.table = table
        self.place = place
        self.view: View | None = None
        self.as_before = False  # it shows nothing, and what it shows next is what it has shown
        self.last: os.stat_result | None = None  # of its root, when it was last looked into: if it shows nothing
        self.lacking: frozenset[bytes] = frozenset()  # extended attributes that the root is known not to have
        self.shown = 0  # above the dataset's own inode numbers; set by the table, see there
        self.read_only = False
        self.is_final = False  # a result's
        self.changed = False  # something was written since the view was attached
        self.touched = False  # opened, by others than guests, or changed since who looks for holders began to look
        self.was_native = False  # and so may have been written natively, of which nothing tells us
        self.written: int | None = None  # before that; see Driver.written
        self.mappable = False  # a file was open for reading and writing: such a one alone can be written by a mapping
        self.mapped: dict[Node, Traces] = {}  # files that are, or were lately, though nobody has them open: mapped.py
        self.by_st_ino: dict[int, Node] = {}
        self.pinned: set[Node] = set()
        self.outlived: dict[Node, int] = {}  # open files of what was shown before, each with a descriptor of it
        self.opens = 0
        self.writers = 0
        self.guests = 0  # of those that are open: of users who may only read here
        self.is_guest: Callable[[Area, Caller], bool] | None = None
        # Who may change something is decided by more than modes: raises, or takes note of it.
        self.gate: Callable[[Area, Caller], None] | None = None
        self.on_forgotten: Callable[[Area], None] | None = None
        self.held: Holding | None = None
        # Changed natively, behind our back: nothing may be changed through us or kept by the kernel meanwhile.
        self.frozen = False
        self.timeout = FOREVER
        self.tells = True  # the filesystem beneath says what it would have to read from a disk
        self.looked: dict[Node, tuple[int, float]] = {}  # up to where directories were looked through, and when
        self.quiet = 0  # how many names and directories were in memory, one after another
        self._told: dict[Node, tuple[int, int, int]] = {}  # files that the kernel was told of while frozen
        self._absent: set[tuple[int, bytes]] = set()
        self.believed = NEVER  # until when the kernel takes names for absent that are not among these (monotonic)
        self._stirred: trio.Event | None = None  # there is one while somebody waits
        self._root: Node | None = table.root(self, number)
        self._number = self._root.ino

    @property
    def root(self) -> Node:
        """The node of the directory itself."""
        if self._root is None:
            self._root = Node(self._number, self, None, b"", 0, stat.S_IFDIR)
        return self._root

    @property
    def fd(self) -> int:
        """The directory that the area shows. Raises ESTALE when it shows none."""
        if self.view is None:
            raise stale()
        return self.view.fd

    def opened(self, writing: bool, guest: bool = False) -> None:
        """A handle beneath was opened."""
        self.opens += 1
        self.writers += writing
        self.guests += guest
        self.touched |= not guest
        self._stir()

    def closed(self, writing: bool, guest: bool = False) -> None:
        """A handle beneath was closed."""
        self.opens -= 1
        self.writers -= writing
        self.guests -= guest
        self._stir()

    @property
    def keepers(self) -> int:
        """The open handles that keep a session open: a guest keeps others' changes from nobody."""
        return self.opens - self.guests if self.may_have_changed else self.opens

    @property
    def may_have_changed(self) -> bool:
        """Whether something may have been written since the view was attached."""
        return self.changed or self.was_native

    def _stir(self) -> None:
        if self._stirred is not None:
            self._stirred.set()
            self._stirred = None

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until handles come or go such that `condition` holds."""
        while not condition():
            if self._stirred is None:
                self._stirred = trio.Event()
            await self._stirred.wait()

    def stir(self) -> None:
        """Wake those who wait: something else than a handle has changed."""
        self._stir()

    # What the kernel may know.

    def absent(self, parent: Node, name: bytes) -> int:
        """There is nothing of that name: how long the kernel may believe it."""
        if self.is_final:
            return FOREVER
        if self.frozen:
            return 0
        key = (parent.ino, name)
        if key in self._absent or len(self._absent) < MOST_ABSENT:
            self._absent.add(key)
            return FOREVER
        self.believed = monotonic() + BRIEFLY
        return BRIEFLY

    def is_absent(self, parent: Node, name: bytes) -> bool:
        """Whether it is known that there is nothing of that name."""
        return (parent.ino, name) in self._absent

    def present(self, parent: Node, name: bytes) -> None:
        """There is something of that name now."""
        self._absent.discard((parent.ino, name))

    def found_lacking(self, name: bytes) -> None:
        """The root has no extended attribute of that name: `ls -l` asks for the same ones each time, of each root,
        which need not be looked into for that."""
        if self.is_final and len(self.lacking) < MOST_LACKING:
            self.lacking |= {name}

    def finish(self) -> None:
        """What is shown never changes again."""
        self.read_only = self.is_final = True
        self._absent.clear()

    def freeze(self) -> tuple[list[tuple[int, bytes]], list[int]]:
        """From now on what is beneath changes behind our back. Returns what the kernel has to look up again: names,
        each with its directory's number, and directories. It keeps files' sizes and times whatever we say
        (fuse_get_cache_mask in the kernel's fs/fuse/inode.c): so they get new numbers.

        No file may be open but by handles that the kernel keeps nothing of. Until `believed` it believes that other
        names are absent.
        """
        self.frozen, self.timeout = True, 0
        names = list(self._absent)
        self._absent.clear()
        folders = [self.root.ino]
        self.root.plain = False
        for node in self.by_st_ino.values():
            node.plain = False
            if node.kind == stat.S_IFDIR:
                folders.append(node.ino)
            if node.parent is not None and node.name is not None:
                names.append((node.parent.ino, node.name))
            names += [(parent.ino, name) for parent, name in node.aliases or ()]
        self._retire_files()
        return names, folders

    def thaw(self) -> None:
        """It changes through us only, again. The kernel remembers no name or attribute from before; its pages and
        sizes belong to numbers that nothing has any more."""
        self.frozen, self.timeout = False, FOREVER
        self._retire_files()

    def _retire_files(self) -> None:
        for node in [each for each in self.by_st_ino.values() if each.kind != stat.S_IFDIR]:
            self.table.retire(node)
        for node in self._told:
            self.table.retire(node)
        self._told.clear()

    def is_as_told(self, node: Node, parent: Node, name: bytes, st: os.stat_result) -> bool:
        """Whether a node can go on standing for what was just found, while the area is frozen."""
        if node.kind == stat.S_IFDIR:
            return True
        named = node.name == name and node.parent is parent
        return named and self._told.get(node) == (st.st_size, st.st_mtime_ns, st.st_ctime_ns)

    def tell(self, node: Node, st: os.stat_result) -> None:
        """The kernel gets to know a new node."""
        if self.frozen and node.kind != stat.S_IFDIR:
            self._told[node] = (st.st_size, st.st_mtime_ns, st.st_ctime_ns)

    def untold(self, node: Node) -> None:
        """The kernel has forgotten a node."""
        self._told.pop(node, None)

    async def write_out(self) -> None:
        """Have what was written through mappings put where a snapshot holds it: ZFS does that in its own time, and
        the driver asks for it. Raises OSError."""
        # On ZFS the first in a dataset waits for a transaction group, to have an intent log made.
        if self.mappable or self.was_native:
            await in_thread(syscalls.syncfs, self.fd)

    def forgotten(self) -> None:
        """The kernel knows nothing beneath any more."""
        if self.on_forgotten is not None:
            self.on_forgotten(self)
        self._root = None  # it refers to us; whoever wants it all the same has it made again

    def detach(self) -> View | None:
        """Show nothing; the view goes to the caller. Descriptors are closed, nodes stay. See `OpenFiles.outlive`."""
        if self.opens:
            self.table.outlive(self)
        return self._detach()

    def _detach(self) -> View | None:
        self.table.let_go(self)
        self.table.descriptors.close_area(self)
        self.mapped.clear()
        self.as_before = False
        view, self.view = self.view, None
        return view

    def hide(self) -> View | None:
        """The same, of what is about to go: its root shows as it is now. None for what somebody has open, which stays
        as it is."""
        if self.view is None or self.opens:
            return None
        self.last = os.fstat(self.fd)
        return self.detach()

    def attach(self, view: View) -> None:
        """Show a view with the contents and inode numbers that are shown now, or were before `detach`."""
        self._detach()
        self.view = view
        self.root.warm, self.quiet = NEVER, 0
        self.looked.clear()

    def attach_anew(self, view: View) -> list[int]:
        """Show a view in which inode numbers or contents may differ: every node that the kernel knows is looked
        for by its names. What isn't there any more becomes stale.

        Returns the numbers of the nodes that the kernel must be told to forget.
        """
        self.detach()
        self.attach(view)
        nodes = list(self.table.beneath(self))
        # Not what is absent: whoever calls need not tell the kernel anything, if nothing has changed.
        self.by_st_ino.clear()
        self.root.plain = False
        for node in nodes:
            node.plain, node.told, node.warm = False, False, NEVER
            self._find(node)
        return [self.root.ino, *(node.ino for node in nodes)]

    def _find(self, node: Node) -> None:
        try:
            if node.name is None or node.parent is None:
                raise stale()
            parent = self.table.descriptors.of(node.parent)
            found = os.stat(node.name, dir_fd=parent, follow_symlinks=False)
            if stat.S_IFMT(found.st_mode) != node.kind or found.st_ino in self.by_st_ino:
                raise stale()
        except OSError:
            node.name = None  # nothing finds it again; its number stays taken until the kernel lets go
            return
        node.st_ino = found.st_ino
        self.by_st_ino[found.st_ino] = node

"""Inodes of what lies in datasets: numbers that the kernel knows, and the way back to the file.

Guarantees
- An inode number is never used twice. A result's root has its own for as long as there is the result, though the
  kernel may forget it meanwhile.
- A node stays in the table while the kernel may name it (its lookup count) or while a child needs it to be found.
- At most `Descriptors.limit` O_PATH descriptors are open, however many nodes there are; pinned ones come on top:
  those of files that have lost their last name that we know of while the kernel still knows them, or that are open
  and may lose it any time. Beyond `Descriptors.most_pinned` the oldest that nobody has open are no longer to be
  found: who only names such a file (O_PATH, a working directory) counts nowhere.
- `Descriptors.of` opens the very file that the node stands for, or fails with ESTALE.

Assumes: contents change through us only, or the area is switched (`Area.attach`) afterwards; the kernel never
forgets more than it looked up.

Two numbers: `Node.ino` is what the kernel calls a file, once and never again; `Node.shown` is what stat(2) says. That
one has the dataset's own number in its lower bits and the area's above, so that it is the same whenever the kernel
asks again (git reads every file whose number has changed, of which it compares 32 bits), and no two files of the tree
have one. The roots of areas show what the kernel calls them, and so does what gets other numbers beneath while it is
shown (`Area.shown` is 0: a session that opens or closes on storage that copies).

A node knows its parent and its name, not a path and not a descriptor: so a directory's rename moves all beneath
it, and the same node can be found in a clone by walking the same names.
"""

from __future__ import annotations

import errno
import logging
import math
import os
import stat
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import TYPE_CHECKING, Protocol
from weakref import WeakValueDictionary

from zfsfs import syscalls

if TYPE_CHECKING:
    from zfsfs.fs.area import Area

log = logging.getLogger(__name__)

_O_PATH = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
#: Of directories that are nested deeper not each is opened on the way down: they have no end, and all wait for us.
_FEW_ABOVE = 64
#: Where an area's number stands in what is shown, and how many areas there are before one has another's again.
_AREA_AT, _MOST_AREAS = 40, 1 << 23


#: When a directory was in memory that never was.
NEVER = -math.inf


class Node:
    """A file or directory in an area. `parent` is None for the area's root, and `name` is None for what has lost
    its name. `refs` counts the nodes that have it as their parent. `plain`: it is known that the directory has no
    default ACL, or the file no capabilities. `told`: the kernel has been told a file's attributes, and none has
    changed since. `warm`: when all that is in the directory was in memory (time.monotonic), see cold.py."""

    __slots__ = (
        "aliases", "area", "fd", "ino", "kind", "lookups", "name", "opens", "parent", "plain", "refs", "st_ino",
        "told", "warm",
    )  # fmt: skip

    def __init__(self, ino: int, area: Area, parent: Node | None, name: bytes | None, st_ino: int, kind: int):
        self.ino = ino
        self.area = area
        self.parent = parent
        self.name = name
        self.st_ino = st_ino
        self.kind = kind  # S_IFMT of its mode: never changes
        self.lookups = 0
        self.refs = 0
        self.opens = 0
        self.fd = -1
        self.plain, self.told, self.warm = False, False, NEVER
        self.aliases: set[tuple[Node, bytes]] | None = None  # its other names, for hard links

    @property
    def shown(self) -> int:
        """See the module."""
        above = self.area.shown
        return self.ino if self.parent is None or not above else above ^ self.st_ino


def stale() -> OSError:
    """The error for what is no longer to be found."""
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))


def _descend(fd: int, missing: list[Node]) -> int:
    """A descriptor of the first of these, each of which is in the next, and the last in the directory `fd`."""
    names = [each.name for each in reversed(missing) if each.name is not None]
    if len(names) < len(missing):
        raise stale()
    try:
        return syscalls.descend(fd, names)
    except OSError as failure:
        if failure.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV):
            raise stale() from None
        raise


class Descriptors:
    """A bounded set of O_PATH descriptors, the least recently used closed first. With that of a large file which has
    lost its last name (`heavy`) all of its contents are given up, which takes a while: `close_heavy` does it."""

    def __init__(self, limit: int = 512) -> None:
        self.limit = limit
        self._used: OrderedDict[Node, None] = OrderedDict()
        self.most_pinned = 4096
        self.pinned: OrderedDict[Node, None] = OrderedDict()  # the oldest first
        self.heavy: set[Node] = set()
        self.close_heavy: Callable[[int], object] = os.close

    def of(self, node: Node) -> int:
        """The node's descriptor. It is good until control goes back to the event loop: use it at once, or dup it.

        Raises OSError: ESTALE when the file is gone.
        """
        fd = node.fd
        if fd >= 0:
            if node in self._used:
                self._used.move_to_end(node)
            return fd
        if node.parent is None:
            if node.name is None:
                raise stale()
            return node.area.fd
        missing = []
        step: Node | None = node
        while step is not None and step.fd < 0 and step.parent is not None:
            missing.append(step)
            step = step.parent
        assert step is not None
        if step.fd < 0 and step.name is None:
            raise stale()
        fd = step.fd if step.fd >= 0 else node.area.fd
        if len(missing) <= _FEW_ABOVE:
            return self._open_all(missing, fd)
        above = _descend(fd, missing[_FEW_ABOVE:])
        try:
            return self._open_all(missing[:_FEW_ABOVE], above)
        finally:
            os.close(above)

    def _open_all(self, missing: list[Node], fd: int) -> int:
        for each in reversed(missing):
            fd = self._open(each, fd)
        return fd

    def _open(self, node: Node, parent: int) -> int:
        if node.name is None:
            raise stale()
        try:
            fd = os.open(node.name, _O_PATH, dir_fd=parent)
        except FileNotFoundError:
            raise stale() from None
        if os.fstat(fd).st_ino != node.st_ino:
            os.close(fd)
            raise stale()
        self._make_room()  # first: the new one must not be the victim of its own arrival
        node.fd = fd
        self._used[node] = None
        return fd

    def pin(self, node: Node) -> None:
        """Keep the node's descriptor until it is forgotten: it is about to lose its name."""
        self.of(node)
        self._used.pop(node, None)
        self.pinned[node] = None
        node.area.pinned.add(node)

    def unpin(self, node: Node) -> None:
        """The node keeps its name after all."""
        self._forget_pinned(node)
        if node.fd >= 0 and node not in self._used:
            self._make_room()
            self._used[node] = None

    def _make_room(self) -> None:
        while len(self._used) >= self.limit:
            self.close(next(iter(self._used)))

    def close(self, node: Node) -> None:
        """Close the node's descriptor, if it has one."""
        self._used.pop(node, None)
        self._forget_pinned(node)
        if node.fd >= 0:
            fd, node.fd = node.fd, -1
            if node in self.heavy:
                self.heavy.discard(node)
                self.close_heavy(fd)
            else:
                os.close(fd)

    def _forget_pinned(self, node: Node) -> None:
        self.pinned.pop(node, None)
        node.area.pinned.discard(node)

    def close_area(self, area: Area) -> None:
        """Close every descriptor beneath an area's root, at once: it is about to look elsewhere."""
        self.heavy.difference_update(area.pinned)
        for node in [*(each for each in self._used if each.area is area), *area.pinned]:
            self.close(node)


class Keeper(Protocol):
    """Who keeps something of files that nobody has open."""

    def drop(self, node: Node) -> None:
        """Keep nothing of a file."""

    def drop_area(self, area: Area) -> None:
        """Keep nothing of what is in an area."""

    def passes(self, area: Area) -> bool:
        """Whether the kernel reads and writes files that are open in an area by itself."""


#: How many pinned descriptors are looked at for each that is one too many.
_FEW_OLD = 2
#: Below this many nodes no table is worth being made smaller.
_FEW = 10_000


def _shrink(table: dict[int, Node]) -> None:
    """Give back the room of what was removed; a dict does not by itself."""
    kept = dict(table)
    table.clear()
    table.update(kept)


async def _nothing_mapped(area: Area) -> int:
    return 0


class NodeTable:
    """All nodes, by inode number. `first` is the lowest number given out."""

    def __init__(self, first: int) -> None:
        self._next = first
        self.by_ino: dict[int, Node] = {}
        self.descriptors = Descriptors()
        self.keeper: Keeper | None = None
        self.outdated: Callable[[int], None] = lambda ino: None  # has the kernel ask for a file's attributes
        self.outlive: Callable[[Area], list[int]] = lambda area: []  # see `OpenFiles.outlive`
        self.mapped: Callable[[Area], Awaitable[int]] = _nothing_mapped  # see `OpenFiles.mapped`
        self._areas: WeakValueDictionary[int, Area] = WeakValueDictionary()
        self._area = 0
        self._most = 0  # how many nodes there have been since the tables were last made smaller

    def root(self, area: Area, number: int = 0) -> Node:
        """A new node for the root of an area, which also gets its number. `number`: that of a node which stood for
        the same before, and which the kernel has forgotten."""
        self._area = self._area % _MOST_AREAS + 1
        self._areas[self._area] = area
        area.shown = self._area << _AREA_AT
        node = self._new(area, None, b"", 0, stat.S_IFDIR)
        node.ino = number or node.ino
        self.by_ino[node.ino] = node
        return node

    def _new(self, area: Area, parent: Node | None, name: bytes, st_ino: int, kind: int) -> Node:
        ino = self._next
        self._next += 1
        return Node(ino, area, parent, name, st_ino, kind)

    def remember(self, parent: Node, name: bytes, st: os.stat_result) -> Node:
        """The node for an entry that was just found in a directory. Counts no lookup: `looked_up` does."""
        area, kind = parent.area, stat.S_IFMT(st.st_mode)
        node = area.by_st_ino.get(st.st_ino)
        if node is not None and node.kind == kind and (not area.frozen or area.is_as_told(node, parent, name, st)):
            if (node.name != name or node.parent is not parent) and node.parent is not None:
                self._also_named(node, parent, name)
            return node
        node = self._new(area, parent, name, st.st_ino, kind)
        parent.refs += 1
        self.by_ino[node.ino] = node
        area.by_st_ino[st.st_ino] = node
        area.present(parent, name)
        area.tell(node, st)
        return node

    def retire(self, node: Node) -> None:
        """What the node stands for gets a new number when it is next found; what is open goes on working."""
        self._keep_nothing(node)
        if node.area.by_st_ino.get(node.st_ino) is node:
            del node.area.by_st_ino[node.st_ino]
        if node.fd >= 0 and node.opens:
            self.pin(node)
        else:
            self.descriptors.close(node)
        node.name = None

    def part(self, node: Node) -> None:
        """The area of an open file is about to show something else: the file stays what it is until it is closed."""
        kept = -1
        with suppress(OSError):
            kept = os.dup(self.descriptors.of(node))
        self.descriptors.close(node)
        self.retire(node)
        node.area.outlived[node] = kept
        self.outdated(node.ino)

    def _keep_nothing(self, node: Node) -> None:
        if self.keeper is not None:
            self.keeper.drop(node)

    def let_go(self, area: Area) -> None:
        """An area is about to show something else, or to be as it is for ever: its files' descriptors are closed."""
        if self.keeper is not None:
            self.keeper.drop_area(area)

    def _also_named(self, node: Node, parent: Node, name: bytes) -> None:
        node.area.present(parent, name)
        if node.name is None or node.kind == stat.S_IFDIR:
            # A directory has one name: if we believe in another, it was renamed behind our back.
            if node.kind == stat.S_IFDIR and self._is_beneath(parent, node):
                raise stale()
            self._rename(node, parent, name)
            return
        if node.aliases is None:
            node.aliases = set()
        if (parent, name) not in node.aliases:
            node.aliases.add((parent, name))
            parent.refs += 1

    @staticmethod
    def _is_beneath(node: Node | None, above: Node) -> bool:
        while node is not None and node is not above:
            node = node.parent
        return node is above

    def _rename(self, node: Node, parent: Node, name: bytes | None) -> None:
        old = node.parent
        parent.refs += 1
        node.parent, node.name = parent, name
        if old is not None:
            self._released(old)

    def showing(self, number: int) -> Node | None:
        """The node that is shown under a number; its area's root when only the area is known any more."""
        if number < 1 << _AREA_AT:
            return self.by_ino.get(number)
        area = self._areas.get(number >> _AREA_AT)
        return None if area is None else area.by_st_ino.get(number ^ area.shown, area.root)

    def known(self, parent: Node, st_ino: int) -> Node | None:
        """The node of an entry of `parent`, if the kernel knows it."""
        return parent.area.by_st_ino.get(st_ino)

    def moved(self, node: Node, old: tuple[Node, bytes], new: tuple[Node, bytes]) -> None:
        """One of the node's names became another."""
        self.unnamed(node, *old)
        self._also_named(node, *new)

    def unnamed(self, node: Node, parent: Node, name: bytes) -> None:
        """The node lost one of its names. Another that we know takes its place; without one it stays nameless,
        to be reached by its pinned descriptor only."""
        self._keep_nothing(node)
        node.told = False
        if node.aliases and (parent, name) in node.aliases:
            node.aliases.discard((parent, name))
            self._released(parent)
        elif node.parent is parent and node.name == name:
            if node.aliases:
                other, other_name = node.aliases.pop()
                self._rename(node, other, other_name)
                self._released(other)  # the alias's own reference
            else:
                node.name = None
        self.unpin(node)  # if it has a name left

    def looked_up(self, node: Node) -> None:
        """The kernel has been given the node's number once more."""
        node.lookups += 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel gives numbers back."""
        node = self.by_ino.get(ino)
        if node is None:
            return
        if count > node.lookups:
            # A defect of ours, which is to be heard of; but ending here would cost everybody's builds.
            log.error("inode %d: %d lookups forgotten of %d; please report this", ino, count, node.lookups)
            count = node.lookups
        node.lookups -= count
        if node.lookups:
            return
        self._most = max(self._most, len(self.by_ino))
        self._drop_unused(node)
        if self._most > _FEW and len(self.by_ino) < self._most // 8:
            self._most = 0
            _shrink(self.by_ino)
            _shrink(node.area.by_st_ino)

    def _released(self, node: Node) -> None:
        node.refs -= 1
        self._drop_unused(node)

    def _drop_unused(self, node: Node) -> None:
        # Upwards and not by recursion: a tree may be deeper than Python's stack.
        pending = [node]
        while pending:
            each = pending.pop()
            if each.lookups or each.refs or each.opens or each.ino not in self.by_ino:
                continue
            area, parent = each.area, each.parent
            del self.by_ino[each.ino]
            if each.fd >= 0:
                self.descriptors.close(each)
            self._keep_nothing(each)
            if area.frozen:
                area.untold(each)
            if area.mapped and area.mapped.pop(each, None) is not None:
                area.changed = True  # perhaps: nobody has looked since it was mapped
            if area.by_st_ino.get(each.st_ino) is each:
                del area.by_st_ino[each.st_ino]
            for above, _ in each.aliases or ():
                above.refs -= 1
                pending.append(above)
            if parent is None:
                area.forgotten()
                continue
            parent.refs -= 1
            if not parent.refs:
                pending.append(parent)

    def hold(self, node: Node) -> None:
        """Keep a node whatever the kernel forgets, until `closed`."""
        node.opens += 1
        self.by_ino[node.ino] = node

    @contextmanager
    def holding(self, node: Node) -> Iterator[None]:
        """Keep a node meanwhile, as for whoever waits before he answers with it: that the kernel gives up what it was
        told of it before may be read after the request that asks anew."""
        self.hold(node)
        try:
            yield
        finally:
            self.closed(node)

    def closed(self, node: Node) -> None:
        """An open handle of the node went."""
        node.opens -= 1
        if not node.opens and node in node.area.pinned:
            self._needed_no_more(node)
        if not node.opens and node in node.area.outlived and (fd := node.area.outlived.pop(node)) >= 0:
            os.close(fd)
        if not node.lookups:
            self._drop_unused(node)

    def _needed_no_more(self, node: Node) -> None:
        """Nobody has a file open any more that was pinned for that: because its name could go, or was taken from it.
        One that has lost its last name stays pinned."""
        if node.name is None and node.area.by_st_ino.get(node.st_ino) is not node:  # see `retire`
            self.descriptors.close(node)
        else:
            self.unpin(node)

    def pin(self, node: Node) -> None:
        """See `Descriptors.pin`."""
        self.descriptors.pin(node)
        pinned = self.descriptors.pinned
        if len(pinned) > self.descriptors.most_pinned:
            for each in list(islice(pinned, _FEW_OLD)):
                self._make_way(each)

    def _make_way(self, node: Node) -> None:
        if node.opens:
            self.descriptors.pinned.move_to_end(node)
        elif node.name is not None:
            self.unpin(node)
        else:
            self.retire(node)

    def unpin(self, node: Node) -> None:
        """See `Descriptors.unpin`."""
        if node.name is not None and node in node.area.pinned:
            self.descriptors.unpin(node)

    def beneath(self, area: Area) -> Iterator[Node]:
        """All nodes of an area but its root, parents before their children."""
        depth: dict[Node, int] = {area.root: 0}

        def depth_of(node: Node) -> int:
            chain = []
            while node not in depth:
                chain.append(node)
                if node.parent is None:
                    depth[node] = 0
                    break
                node = node.parent
            known = depth[node]
            for steps, each in enumerate(reversed(chain), 1):
                depth[each] = known + steps
            return depth[chain[0]] if chain else known

        nodes = [node for node in area.by_st_ino.values() if node is not area.root]
        yield from sorted(nodes, key=depth_of)

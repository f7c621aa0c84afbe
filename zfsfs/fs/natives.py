"""Areas that somebody has natively: mounted in a namespace, beside the tree.

Guarantees
- While a build or session is native and writable, it is frozen here: what is read through the tree is read afresh,
  nothing is changed through it (EBUSY), and it is neither published nor released.
- Taking it is refused (Busy) while a file in it is open through the tree: the kernel would go on serving its pages.
- It ends when no mount of it is left in any namespace and no process is in it. Who has asked is not needed for
  that: what it has done with the mount, and how it ended, does not matter.

A hold counts as an open handle of its area, so whatever waits for the last handle waits for it too.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from time import monotonic
from weakref import WeakKeyDictionary

import trio

from zfsfs.driver import Driver
from zfsfs.errors import Busy, Refused
from zfsfs.fs import unseen
from zfsfs.fs.area import Area
from zfsfs.fs.kernel import Kernel
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.permission import WRITE, permits
from zfsfs.fs.places import BuildPlace, CachePlace, FailedPlace, ResultPlace
from zfsfs.fs.quiet import DRAIN, unmapped
from zfsfs.fs.tree import Tree
from zfsfs.handover import Native
from zfsfs.names import Dataset, Snapshot, shown
from zfsfs.native import locked
from zfsfs.native.watching import Found, Where, look, where
from zfsfs.native.wire import Peer
from zfsfs.store.layout import SNAP
from zfsfs.threads import UNLIMITED, in_thread

#: Seconds between two looks while nobody is known whose end would tell.
PAUSE = 0.5
#: Mounts that are locked at the same time, each by a process: who asks for many takes the processors from nobody.
LOCKING = 2


@dataclass(eq=False, slots=True)
class Held:
    """An area that is native. `granted`: mounts that were given out and whose taker is still at it; `living`:
    processes of it that we shall see end. `identity`: device and inode number of its root, natively."""

    area: Area
    where: Where
    identity: tuple[int, int]
    writable: bool
    wake: Callable[[], None]
    granted: int = 0
    living: int = 0
    turn: int = 0  # goes up with each change of the two
    found: list[Found] = field(default_factory=list)

    def names(self) -> list[str]:
        """Who it is, for people."""
        return [str(each) for each in self.found] or ["a process that is about to mount it"]

    def look(self) -> None:
        """Look soon whether it is still so."""
        self.wake()


@dataclass(slots=True)
class Grant:
    """What somebody gets."""

    held: Held
    native: Native


class Natives:
    """See the module."""

    def __init__(self, tree: Tree, files: Passthrough, kernel: Kernel) -> None:
        self._tree = tree
        self._files = files
        self._kernel = kernel
        self._held: dict[Area, Held] = {}
        # For each area, lest one that can't be had now keeps others waiting.
        self._freezing: WeakKeyDictionary[Area, trio.Lock] = WeakKeyDictionary()
        self._locking = trio.CapacityLimiter(LOCKING)
        self._woken = trio.Event()
        self._begun = self._ended = 0  # looks
        self._looked = trio.Event()

    # Taking.

    async def hold(self, identity: tuple[int, int], peer: Peer, *, read_only: bool) -> Grant | None:
        """Give out the directory with this device and inode number, which the peer has opened for reading; None when
        it is native already. Then it is held by who made it so, and seen to be as long as the peer has it open.

        Raises Refused, Busy, and what mounting raises. Whoever gets a Grant calls `attached` or `gone` for it.
        """
        if self.owns(identity):
            return None
        area = self._area(identity)
        writable = self._target(area)[1]
        self._allow(area, peer, writable=writable)
        if area.gate is not None and writable and not read_only:
            self._tree.sessions.ruling.claim(area, peer.uid, peer.groups)
        return await self._grant(area, read_only=read_only, lock=not trusted(peer.uid))

    async def _grant(self, area: Area, *, read_only: bool, lock: bool) -> Grant:
        """Give out an area, which is shown (it has a view) and open, without asking who may."""
        target, writable = self._target(area)
        writable = writable and not read_only
        held = await self._take(area, target, writable=writable)
        try:
            driver = self._tree.store.driver
            await self._tree.store.builds.naming.settle(area.place.dataset)
            mount = partial(_locked, driver) if lock else driver.native
            limiter = self._locking if lock else None
            native = await in_thread(lambda: mount(target, writable=writable), limiter=limiter)
            try:
                held.identity, held.where = self._seen_as(area, native)
            except BaseException:
                os.close(native.fd)
                raise
        except BaseException:
            self._untaken(held)
            raise
        return Grant(held, native)

    def _area(self, identity: tuple[int, int]) -> Area:
        device, ino = identity
        if device != self._tree.device:
            raise Refused("that directory is not in this tree")
        node = self._tree.table.showing(ino)
        if node is None:
            raise Refused("only builds, results and caches can be native")
        if node.parent is not None:
            raise Refused(f"only all of {_name(node.area)} can be native, not a directory in it")
        return node.area

    def _target(self, area: Area) -> tuple[Dataset | Snapshot, bool]:
        place = area.place
        if isinstance(place, ResultPlace):
            info = self._tree.store.builds.result(place.id)
            if info is not None:
                return Snapshot(info.dataset, SNAP), False
        elif isinstance(place, BuildPlace):
            build = self._tree.store.builds.running().get(place.name.id)
            if build is not None and not place.discarded:
                if area.read_only:
                    raise Busy(f"{_name(area)} is being published")
                return build.dataset, True
        elif isinstance(place, FailedPlace):
            if not place.deleted:
                return place.dataset, False
        elif place.session is not None and not place.discarded:
            return place.session.dataset, not area.read_only
        raise Refused(f"{_name(area)} has been removed")

    def _allow(self, area: Area, peer: Peer, *, writable: bool) -> None:
        """That it could open the directory it has shown. What it may write beneath the files' own modes decide; but
        only who may write can keep others from writing. What of a mount is read-only stays so: see `_locked`."""
        if trusted(peer.uid):
            return
        if not self._tree.store.driver.own_filesystems:
            # A mount that is hidden from us keeps a dataset from being destroyed, but no directory.
            raise Refused("a directory store can be native for root and for the user who has mounted it only")
        if writable and not permits(area.fd, WRITE, peer.uid, peer.groups):
            raise Refused(f"{_name(area)} is not yours to write, so it can be read through the tree only")

    async def _take(self, area: Area, target: Dataset | Snapshot, *, writable: bool) -> Held:
        # Between this and the check of who may there is nothing that others could come in by.
        area.opened(writable)
        self._tree.table.hold(area.root)
        try:
            if writable:
                await self._freeze(area)
        except BaseException:
            self._tree.table.closed(area.root)
            area.closed(writable)
            raise
        held = self._held.get(area)
        if held is None:
            held = self._held[area] = Held(area, Where(b"", b"", -1), (-1, -1), writable, self._wake)
            area.held = held
        else:
            # One handle stands for all: the wider of the two.
            self._tree.table.closed(area.root)
            area.closed(held.writable and writable)
            held.writable = held.writable or writable
        held.granted += 1
        return held

    async def _freeze(self, area: Area) -> None:
        # Not with the lock: those who wait for the same get the same answer, at the same time.
        await self._unkept(area)
        async with self._freezing.setdefault(area, trio.Lock()):
            if not area.frozen:
                await self._freeze_now(area)

    async def _unkept(self, area: Area) -> None:
        """Raises Busy when files are open through the tree, or mapped."""
        await unmapped(area, lambda: area.frozen or not self._files.kept(area), DRAIN)
        count = self._files.kept(area) + len(area.mapped)
        if count and not area.frozen:
            raise Busy(f"{_name(area)} can't become native: {count} files in it are open or mapped through the tree")

    async def _freeze_now(self, area: Area) -> None:
        if isinstance(area.place, CachePlace) and area.place.session is not None:
            await unseen.note(self._tree.store.driver, area, area.place.session.dataset)
        await self._unkept(area)
        names, folders = area.freeze()
        try:
            with trio.CancelScope(shield=True):
                await in_thread(self._kernel.look_up_again, names, folders, limiter=UNLIMITED)
                await trio.sleep(max(area.believed - monotonic(), 0.0))
        except BaseException:
            area.thaw()
            raise
        area.was_native = True

    def _seen_as(self, area: Area, native: Native) -> tuple[tuple[int, int], Where]:
        st = os.fstat(native.fd)
        own = self._tree.store.driver.own_filesystems
        return (st.st_dev, st.st_ino), where(native.fd if own else area.fd, own_filesystem=own)

    def _untaken(self, held: Held) -> None:
        held.granted -= 1
        held.turn += 1
        self._wake()

    def attached(self, held: Held, pid: int) -> None:
        """What was given out to a process is mounted now."""
        how = "through the tree it can only be read" if held.writable else "read-only"
        self._event("native", held, f"is native for pid {pid}: {how}")
        self._untaken(held)

    def gone(self, held: Held) -> None:
        """Whoever got it has hung up; whether something was mounted will show."""
        self._untaken(held)

    async def follow(self, pidfd: int, held: list[Held]) -> None:
        """Wait for the end of a process that has these."""
        for each in held:
            each.living += 1
        try:
            await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)
            for each in held:
                each.living -= 1
                each.turn += 1
            self._wake()

    def owns(self, identity: tuple[object, ...]) -> bool:
        """Whether a directory is the root of something native."""
        return any(held.identity == identity for held in self._held.values())

    # Ending.

    def _wake(self) -> None:
        self._woken.set()

    def wake(self) -> None:
        """Something may have been unmounted."""
        self._wake()

    async def run(self) -> None:
        """Find out what has ended, until cancelled."""
        while True:
            alone = any(not each.living and not each.granted for each in self._held.values())
            with trio.move_on_after(PAUSE if alone else float("inf")):
                await self._woken.wait()
            self._woken = trio.Event()
            self._begun += 1
            await self._look()
            self._ended = self._begun
            self._looked.set()
            self._looked = trio.Event()

    async def settle(self) -> None:
        """Wait until nothing is held that nobody had natively any more when this was called. Needs `run`."""
        next_look = self._begun + 1  # one that is under way may have missed it
        while self._held and self._ended < next_look:
            self._wake()
            await self._looked.wait()

    async def _look(self) -> None:
        turns = {each: each.turn for each in self._held.values()}
        wanted = {each.where: each.area.fd for each in turns if each.where.root and each.area.view}
        for thoroughly in (False, True):
            if not wanted:
                break
            found = await in_thread(lambda w, t: look(w, thoroughly=t), wanted, thoroughly)
            for held in self._held.values():
                held.found = found.get(held.where, held.found) if held.where in wanted else held.found
            free = {each.where for each in self._held.values() if not each.found and not each.living}
            wanted = {each: fd for each, fd in wanted.items() if each in free}
        for held, turn in turns.items():
            # What was mounted since we began to look was not seen.
            if held.turn == turn and not held.granted and not held.living and not held.found:
                self._end(held)

    def _end(self, held: Held) -> None:
        area = held.area
        del self._held[area]
        area.held = None
        if held.writable:
            area.thaw()
        self._event("native-ended", held, "is native no more")
        self._tree.table.closed(area.root)
        area.closed(held.writable)

    def _event(self, kind: str, held: Held, text: str) -> None:
        name = _name(held.area)
        self._tree.store.events.append(kind, name, f"{name} {text}")


def trusted(uid: int) -> bool:
    """Whether a user may do what the daemon may: root, and who has mounted the tree."""
    return uid in (0, os.geteuid())


def _locked(driver: Driver, target: Dataset | Snapshot, *, writable: bool) -> Native:
    """As Driver.native, for a user who would clear the mount's flags where he can: what he has read-only for being
    nobody's to write, or another's, he would write then."""
    native = driver.native(target, writable=writable)
    try:
        return native._replace(fd=locked.lock(native.fd))
    finally:
        os.close(native.fd)


def _name(area: Area) -> str:
    return shown(area.place.path())

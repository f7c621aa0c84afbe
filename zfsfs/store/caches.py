"""Caches and their sessions.

Guarantees
- A cache appears and disappears by one rename. Its version changes by the release swap (see `swap`).
- A session is a clone of one version and keeps its own contents to its end. The first to be released wins.
- Each cache has a lock: no clone is taken and nothing is deleted within a swap. Clones are taken side by side.
  Throwing a session away needs none.

After the last rename of a swap the release is over for who asked for it; the rest (`Swap.tidy`) is done by the
background task or by the next who needs the cache, whichever comes first. The same goes for a release that was
decided and could not be completed (no room to rename, a pool that is gone), and for a cache that recovery could not
repair: who has it decided has to see to it that nothing more is written in that session.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import suppress

import trio

from zfsfs.driver import Driver, Listing, View, viewing
from zfsfs.errors import Busy, Exists, Missing, StoreError, ZfsfsError
from zfsfs.names import CacheName, Dataset, Snapshot, cache, cache_of, cache_tmp
from zfsfs.store.arriving import Arrive, at_once
from zfsfs.store.entries import CacheInfo, Entry, Session, Spare
from zfsfs.store.events import EventLog, Outcome
from zfsfs.store.layout import NEXT, RULES, SNAP, Numbers, foreign, generation, junk, names, old_name, rules
from zfsfs.store.reaper import FIRST_DELAY, LONGEST_DELAY, Reaper, bury
from zfsfs.store.recovery import repair
from zfsfs.store.roots import give_root
from zfsfs.store.spares import Spares
from zfsfs.store.swap import Swap
from zfsfs.store.views import close_view
from zfsfs.threads import in_thread


class Caches:
    """See the module. Reads are plain; what changes something is async. `renewed` is called when a cache has got
    another version by something else than a release that returns."""

    def __init__(
        self,
        driver: Driver,
        events: EventLog,
        reaper: Reaper,
        numbers: Numbers,
        spares: Spares,
        clock: Callable[[], float],
    ) -> None:
        self.renewed: Callable[[CacheName], None] = lambda name: None
        self._driver = driver
        self._events = events
        self._reaper = reaper
        self._numbers = numbers
        self._clock = clock
        self._entries: dict[CacheName, Entry] = {}
        self._creating: set[CacheName] = set()
        self._broken: set[CacheName] = set()
        self._untidy = trio.Event()
        self.spares = spares
        self._said: dict[CacheName, str] = {}

    def load(self, listing: Listing, broken: Collection[CacheName] = ()) -> None:
        """Fill the tables. `broken` are those that recovery could not repair: they are tried again, and are in the
        tables as far as there is a whole version of them."""
        self._entries = {}
        self._broken = set(broken)
        for info in listing.values():
            name = cache_of(info.dataset) if info.dataset.group == "cache" and info.dataset.leaf else None
            if name is not None and info.snapshot(SNAP) is not None and info.snapshot(NEXT) is None:
                self._entries[name] = Entry(name, generation(info), info.created, rules(info))
                self._entries[name].understand()

    def names(self) -> list[CacheName]:
        """All caches."""
        return list(self._entries)

    def get(self, name: CacheName) -> CacheInfo | None:
        """A cache."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        where = cache(name) if entry.swap is None else entry.swap[0].whole
        ready = tuple(each.dataset for each in entry.spares)
        return CacheInfo(name, entry.generation, entry.created, len(entry.sessions), where, entry.rules, ready)

    def is_decided(self, session: Session) -> bool:
        """Whether a session is open still and is going to be published, whatever is done: nothing more may be written
        in it."""
        entry = self._entries.get(session.cache)
        return entry is not None and entry.swap is not None and entry.swap[1] is session and session.ended is None

    def sessions(self) -> list[Session]:
        """The sessions that are open."""
        return [each for entry in self._entries.values() for each in entry.sessions]

    def _entry(self, name: CacheName) -> Entry:
        entry = self._entries.get(name)
        if entry is None or entry.gone:
            raise Missing(f"there is no cache {name}")
        return entry

    def may_create(self, name: CacheName) -> None:
        """Raises Exists, Busy (what is left of it has to be repaired)."""
        if name in self._entries or name in self._creating:
            raise Exists(f"the cache {name} exists")
        if name in self._broken:
            raise Busy(f"the cache {name} has to be repaired first: {self._said.get(name, 'see the events')}")

    async def create(self, name: CacheName, owner: tuple[int, int], mode: int, arrive: Arrive = at_once) -> CacheInfo:
        """Make an empty cache. `arrive` is awaited when it is there, before the tables say so. Raises Exists,
        InvalidName (too long for ZFS), and what the verbs raise."""
        self.may_create(name)
        made = junk(self._numbers.take(), name.escaped())
        self._creating.add(name)
        try:
            with trio.CancelScope(shield=True):
                try:
                    await in_thread(self._make, name, made, owner, mode)
                except BaseException:
                    self._reaper.add(made, with_foreign=True)
                    raise
                await arrive()
                self._entries[name] = Entry(name, 0, self._clock())
        finally:
            self._creating.discard(name)
        self._events.append("cache-created", str(name), f"cache {name} is created")
        return CacheInfo(name, 0, self._entries[name].created, 0, cache(name))

    def _make(self, name: CacheName, made: Dataset, owner: tuple[int, int], mode: int) -> None:
        self._driver.info(cache_tmp(10**6, name))  # raises InvalidName where a session's name would be too long
        self._driver.create(made)
        # (1) A crash here: rubbish.
        with viewing(self._driver, made, writable=True) as root:
            give_root(root, made, owner, mode)
        # (2) A crash here: rubbish.
        self._driver.snapshot(Snapshot(made, SNAP))
        # (3) A crash here: rubbish.
        self._driver.rename(made, cache(name))
        # (4) A crash here: a cache.

    async def open(self, name: CacheName, label: bytes | None) -> Session:
        """A private copy of the newest version. Raises Missing, and what the verb raises."""
        async with self._entry(name).lock:
            entry = self._entry(name)  # it may have been deleted while we waited
            with trio.CancelScope(shield=True):
                await self._settle_if_possible(entry)
            generation, spare = entry.generation, self.spares.take(entry)
            if spare is not None:
                return self._opened(
                    entry, Session(name, label, spare.dataset, generation, self._clock(), view=spare.view)
                )
            entry.cloning += 1
        try:
            dataset = cache_tmp(self._numbers.take(), name)
            # One verb: after a crash the clone is there without a decision, and is destroyed. The lock is free, so
            # that those who open at once share a transaction group.
            with trio.CancelScope(shield=True):
                await in_thread(self._driver.clone, Snapshot(cache(name), SNAP), dataset)
            return self._opened(entry, Session(name, label, dataset, generation, self._clock()))
        finally:
            entry.has_cloned()

    def _opened(self, entry: Entry, session: Session) -> Session:
        entry.sessions.add(session)
        if entry.name not in self._broken:
            self.spares.opened(entry)
        self._events.append("opened", str(session), f"{session} is opened", generation=session.generation)
        return session

    async def release(
        self,
        session: Session,
        *,
        changed: bool,
        withheld: Outcome | None = None,
        view: View | None = None,
        untouched: bool = False,
    ) -> Outcome:
        """Close a session: PUBLISHED when it is the first since its version, else SUPERSEDED; UNCHANGED without
        `changed`, and else `withheld` where that is given (PRIVATE, UNSUCCESSFUL: the caller looked at the rules).
        The caller has seen to it that everything is written and nobody writes. `view` is one of what is replaced or
        thrown away: it is closed in time, unless this raises. `untouched`: it is a writable one of the session, which
        nobody has ever written in or will; then the next session may get it.

        Raises Missing (it is not open) and what the verbs raise, Busy when somebody has mounted a snapshot that has
        to move: the session is then still open, and can be released again; see also `is_decided`.
        """
        entry = self._entry(session.cache)
        async with entry.lock:
            if self.is_decided(session):
                with trio.CancelScope(shield=True):
                    await self._move(entry)
            if session.ended is Outcome.PUBLISHED:  # just now, or by who needed the cache before we came again
                await close_view(view)
                return session.ended
            if (unused := session.take_view()) is not None:
                await close_view(unused)
            if session not in entry.sessions:
                raise Missing(f"{session} is not open")
            with trio.CancelScope(shield=True):
                outcome = await self._end(entry, session, changed, withheld, view, untouched)
            return outcome  # noqa: RET504 - mypy believes that the scope may swallow an exception

    async def part(self, session: Session, view: View | None) -> None:
        """Let a session go on in a copy, which nobody has open: who has files of it open goes on with what it was,
        and goes nowhere. `view` is one of that, and will be closed, unless this raises. Raises Missing (it is not
        open), and what the verbs raise: it is then as before."""
        entry = self._entry(session.cache)
        async with entry.lock:
            if session not in entry.sessions or self.is_decided(session):
                raise Missing(f"{session} is not open, or is going to be published")
            former, copy = session.dataset, cache_tmp(self._numbers.take(), session.cache)
            with trio.CancelScope(shield=True):
                await in_thread(self._part, former, copy)
            session.dataset = copy
            self._reaper.add(former, with_foreign=False, view=view)

    def _part(self, former: Dataset, copy: Dataset) -> None:
        info = self._driver.info(former)
        if info is None:
            raise Missing(f"{former} is gone")
        apart = Snapshot(former, old_name(0, names(info)))
        self._driver.snapshot(apart)
        # In pictures, with C the cache; after a crash all but C goes, for nothing is decided.
        try:
            # (1)  C[snap] <- former[apart]
            self._driver.clone(apart, copy)
            # (2)  C[snap] <- former[apart] <- copy
            self._driver.promote(copy)
            # (3)  C[snap] <- copy[apart] <- former: a clone of the cache as it has to be to be published
        except BaseException:
            with suppress(StoreError):
                self._driver.destroy(copy)
            with suppress(StoreError):
                self._driver.destroy_snapshot(apart, defer=True)
            raise

    def _keeps(self, entry: Entry, session: Session, view: View | None) -> bool:
        """Keep the clone of a session that ends ready for the next one, if that is wanted."""
        if view is None or entry.name in self._broken:
            return False
        return self.spares.keep(entry, Spare(session.dataset, session.generation, view))

    async def _end(
        self,
        entry: Entry,
        session: Session,
        changed: bool,
        withheld: Outcome | None,
        view: View | None,
        untouched: bool,
    ) -> Outcome:
        if untouched and self._keeps(entry, session, view):
            return self._over(entry, session, Outcome.UNCHANGED)
        if not changed or withheld is not None:
            return self._throw_away(entry, session, withheld if changed and withheld else Outcome.UNCHANGED, view)
        if session.generation == entry.generation:  # else it waits for nobody's tidying
            await self._settle(entry)
        if session.generation != entry.generation:
            return self._throw_away(entry, session, Outcome.SUPERSEDED, view)
        await self._no_cloning(entry)
        old = cache_tmp(self._numbers.take(), session.cache)
        swap = Swap(session.dataset, cache(session.cache), old, entry.generation + 1, dict(entry.properties))
        await in_thread(swap.decide, self._driver)
        swap.view = view
        entry.swap = (swap, session)
        self._untidy.set()
        await self._move(entry)
        return Outcome.PUBLISHED

    async def _move(self, entry: Entry) -> None:
        """Complete the renames of a decided release."""
        assert entry.swap is not None
        swap, session = entry.swap
        if swap.moved:
            return
        await in_thread(swap.move, self._driver)
        session.dataset = swap.cache
        entry.generation = swap.generation
        self.spares.outdated(entry)
        entry.sessions.discard(session)
        self._released(session, Outcome.PUBLISHED)

    async def _settle_if_possible(self, entry: Entry) -> None:
        """Repair or tidy. What can't be repaired now serves the version that it has. Raises when a release of ours is
        in the way."""
        try:
            await self._settle(entry)
        except ZfsfsError:
            if entry.swap is not None:
                raise

    async def _settle(self, entry: Entry) -> None:
        """Complete a release that is decided, tidying included. The lock is held."""
        if entry.name in self._broken:
            await self._no_cloning(entry)
            await self._repair(entry.name)
        if entry.swap is not None:
            swap = entry.swap[0]
            if not swap.moved:
                await self._move(entry)
                self.renewed(entry.name)
            destroyed = await in_thread(swap.tidy, self._driver)
            entry.swap = None
            self.spares.ended(entry)
            if destroyed:
                self._reaper.destroyed(swap.old_head)
            else:
                self._reaper.add(swap.old_head, with_foreign=False)

    async def _repair(self, name: CacheName) -> None:
        """Do what recovery could not do at the start. The lock is held, where there is one. Raises StoreError."""
        entry = self._entries.get(name)
        sessions = {each.dataset for each in entry.sessions} if entry is not None else set()
        number = self._numbers.take()
        if entry is not None:
            self.spares.drop(entry)
        with trio.CancelScope(shield=True):
            listing = await in_thread(repair, self._driver, name, sessions, number)
        self._broken.discard(name)
        info = listing.get(cache(name))
        if info is not None:
            if entry is None:
                entry = self._entries[name] = Entry(name, 0, info.created)
            entry.generation = generation(info)
            entry.properties = rules(info)
            entry.understand()
        self._give_up_rest(name, listing, sessions, with_foreign=False)
        self._events.append("recovered", str(name), f"cache {name} is repaired")
        self.renewed(name)

    def _give_up_rest(
        self, name: CacheName, listing: Listing, sessions: Collection[Dataset], *, with_foreign: bool
    ) -> None:
        for dataset in listing:
            if dataset.group == "cache-tmp" and cache_of(dataset) == name and dataset not in sessions:
                self._reaper.add(dataset, with_foreign=with_foreign)

    @staticmethod
    async def _no_cloning(entry: Entry) -> None:
        """Wait until nobody is taking a clone. The lock is held, so nobody begins to."""
        while entry.cloning:
            entry.cloned = trio.Event()
            await entry.cloned.wait()

    async def bequeath(self, session: Session) -> bool:
        """Decide a release that can't be made as long as this process lives: the next start completes it. False when
        another session was first. Raises Missing (it is not open), and what the verbs raise."""
        entry = self._entry(session.cache)
        async with entry.lock:
            if session not in entry.sessions:
                raise Missing(f"{session} is not open")
            if self.is_decided(session):
                return True
            if session.generation != entry.generation:
                return False
            clone = session.dataset
            swap = Swap(clone, cache(session.cache), clone, entry.generation + 1, dict(entry.properties))
            with trio.CancelScope(shield=True):
                await in_thread(swap.bequeath, self._driver)
            entry.sessions.discard(session)
        self._events.append("warning", str(session), f"{session} can't be published now: the next mount will do it")
        return True

    async def set_rule(self, name: CacheName, rule: str, value: str) -> None:
        """Give a cache a rule, one of RULES, with a value that is one. Raises Missing, and what the verb raises."""
        assert rule in RULES
        async with self._entry(name).lock:
            entry = self._entry(name)
            with trio.CancelScope(shield=True):
                # What is decided has the rules of before, and is about to become the cache.
                await self._settle(entry)
                # One verb: a crash before it leaves the rule as it was.
                await in_thread(self._driver.set_property, cache(name), rule, value)
                entry.properties[rule] = value
                entry.understand()
        what = rule.partition(":")[2]
        self._events.append("cache-rules", str(name), f"cache {name} has the {what} {value}")

    def _released(self, session: Session, outcome: Outcome) -> None:
        session.ended = outcome
        text = f"{session} is {outcome.value}"
        self._events.append("released", str(session), text, outcome=outcome.value, generation=session.generation)

    def _throw_away(self, entry: Entry, session: Session, outcome: Outcome, view: View | None) -> Outcome:
        # The clone carries no decision: after a crash it is destroyed, or waits for foreign snapshots to go.
        self._reaper.add(session.dataset, with_foreign=False, view=view)
        return self._over(entry, session, outcome)

    def _over(self, entry: Entry, session: Session, outcome: Outcome) -> Outcome:
        entry.sessions.discard(session)
        self.spares.ended(entry)
        self._released(session, outcome)
        return outcome

    async def discard(self, session: Session, view: View | None = None) -> Outcome:
        """Close a session because its user has removed it: foreign snapshots of it go too. `view` is one of it, and
        will be closed. Raises Missing."""
        entry = self._entry(session.cache)
        async with entry.lock:
            if session not in entry.sessions or self.is_decided(session):
                raise Missing(f"{session} is not open, or is going to be published")
            if (unused := session.take_view()) is not None:
                await close_view(unused)
            with trio.CancelScope(shield=True):
                info = await in_thread(self._driver.info, session.dataset)
                if info is not None and info.snapshots:
                    # A crash before this: a left-over that waits for somebody's snapshots. After it: rubbish.
                    grave = junk(self._numbers.take(), session.cache.escaped())
                    await in_thread(self._driver.rename, session.dataset, grave)
                    session.dataset = grave
                entry.sessions.discard(session)
                self.spares.ended(entry)
                self._reaper.add(session.dataset, with_foreign=True, view=view)
        self._released(session, Outcome.DISCARDED)
        return Outcome.DISCARDED

    async def delete(self, name: CacheName, arrive: Arrive = at_once) -> None:
        """Delete a cache, with foreign snapshots of it and of what its releases left behind. `arrive` is awaited, and
        nobody waits for the cache's lock meanwhile, before the tables say so.

        Raises Missing, Busy (a session is open), and what the verb raises.
        """
        async with self._entry(name).lock:
            entry = self._entry(name)
            await self._no_cloning(entry)
            if entry.sessions:
                labels = ", ".join(sorted(map(str, entry.sessions)))
                raise Busy(f"the cache {name} is in use: {labels}")
            with trio.CancelScope(shield=True):
                await self._settle_if_possible(entry)
                self.spares.drop(entry, with_foreign=True)
                info = await in_thread(self._driver.info, cache(name))
                if info is not None:
                    # One verb: before it the cache is there, after it there is rubbish, and clones of rubbish.
                    grave = await in_thread(bury, self._driver, cache(name), self._numbers.take(), name.escaped())
                    self._reaper.add(grave, with_foreign=True)
                entry.gone = True
                if name in self._broken:
                    self._broken.discard(name)
                    listing = await in_thread(self._driver.list)
                    self._give_up_rest(name, listing, (), with_foreign=True)
                self._reaper.forgive(name)
        await arrive()
        del self._entries[name]
        others = foreign(info) if info is not None else []
        along = f", and its snapshots {', '.join(others)} with it" if others else ""
        self._events.append("cache-deleted", str(name), f"cache {name} is deleted{along}", foreign=others)

    async def settle(self) -> bool:
        """Tidy after every release, and repair what is broken. What can't be is a warning, and is tried again when it
        is needed. Returns whether there is nothing more to do."""
        left = [self._entries.get(name) or name for name in self._broken]
        left += [each for each in self._entries.values() if each.swap is not None and each not in left]
        done = True
        for each in left:
            name = each if isinstance(each, CacheName) else each.name
            try:
                with trio.CancelScope(shield=True):
                    if isinstance(each, CacheName):
                        await self._repair(each)
                    else:
                        async with each.lock:
                            await self._settle(each)
                self._said.pop(name, None)
            except ZfsfsError as error:
                done = False
                text = f"cache {name} could not be repaired or tidied yet: {error}"
                if self._said.get(name) != text:
                    self._said[name] = text
                    self._events.append("warning", str(name), text)
        return done

    async def run(self) -> None:
        """Tidy as soon as there is something to tidy, and try again ever more rarely, until cancelled."""
        delay = FIRST_DELAY
        while True:
            self._untidy = trio.Event()
            delay = math.inf if await self.settle() else min(delay * 2, LONGEST_DELAY)
            with trio.move_on_after(delay):
                await self._untidy.wait()
                delay = FIRST_DELAY

"""Builds and results.

Guarantees
- An id is a result from the moment its @snap is there, and the tables say so only after the verb has returned.
- A result that others are based on is not deleted. What is destroyed becomes rubbish first, by one rename: after
  a crash a result is there whole, or gone.

Checks and table changes are plain code between two awaits, so nothing comes between them; an id that a verb is
under way for is in `_flying`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import trio

from zfsfs.driver import DatasetInfo, Driver, Listing, View
from zfsfs.errors import Busy, Exists, Missing, StoreError
from zfsfs.names import BuildId, BuildName, Dataset, Snapshot, build_of, result
from zfsfs.store.arriving import Arrive, at_once
from zfsfs.store.check import base_of
from zfsfs.store.entries import BuildInfo, FailedInfo, ResultInfo, failed_info
from zfsfs.store.events import EventLog
from zfsfs.store.fresh import Fresh, make
from zfsfs.store.layout import (
    FAILED,
    SNAP,
    Numbers,
    clones_of,
    failed_id,
    failed_number,
    failure,
    foreign,
    former_leaf,
    is_junk,
)
from zfsfs.store.naming import Naming
from zfsfs.store.reaper import Reaper, bury
from zfsfs.store.roots import give_root
from zfsfs.store.together import Together
from zfsfs.store.views import close_view
from zfsfs.threads import in_thread


def _doomed(listing: Listing, dataset: Dataset, running: set[Dataset]) -> list[Dataset]:
    """A dataset and the clones that go with it, clones first. Raises Busy when one of them has to stay."""
    found: list[Dataset] = []
    pending = [listing[dataset]]
    while pending:
        info = pending.pop()
        for clone in clones_of(listing, info.dataset):
            if is_junk(clone.dataset):
                continue
            if clone.dataset in running:
                raise Busy(f"the build {clone.dataset.leaf} is based on {info.dataset.leaf}")
            if clone.dataset.group == "result" and clone.snapshot(SNAP) is not None:
                raise Busy(f"the result {clone.dataset.leaf} is based on {info.dataset.leaf}")
            if clone.dataset.group != "result" and failed_id(clone.dataset) is None:
                raise Busy(f"{clone.dataset} is a clone of {info.dataset}")
            pending.append(clone)
        found.append(info.dataset)
    return found[::-1]


class Builds:
    """See the module. Reads are plain; what changes something is async."""

    def __init__(
        self,
        driver: Driver,
        events: EventLog,
        reaper: Reaper,
        numbers: Numbers,
        fresh: Fresh,
        clock: Callable[[], float],
    ) -> None:
        self._clock = clock
        self._driver = driver
        self._events = events
        self._reaper = reaper
        self._numbers = numbers
        self._results: dict[BuildId, ResultInfo] = {}
        self._failed: dict[BuildId, FailedInfo] = {}
        self._running: dict[BuildId, BuildInfo] = {}
        self.fresh = fresh
        self.naming = Naming(self._rename)
        self._snapshots = Together(driver.snapshot_each)
        self._flying: dict[BuildId, BuildId | None] = {}  # and the base that must stay meanwhile

    def load(self, listing: Listing) -> None:
        """Fill the tables."""
        self._results = {}
        self._failed = {}
        kept = [info for info in listing.values() if failed_id(info.dataset) is not None]
        for info in sorted(kept, key=lambda each: failed_number(each.dataset)):
            ident = failed_id(info.dataset)
            assert ident is not None
            if ident in self._failed:
                # (c) of `keep`.
                self._reaper.add(self._failed[ident].dataset, with_foreign=True)
            self._failed[ident] = failed_info(ident, info)
        for info in listing.values():
            ident = build_of(info.dataset)
            if ident is not None and info.snapshot(SNAP) is not None:
                self._results[ident] = self._registered(ident, info)

    @staticmethod
    def _registered(ident: BuildId, info: DatasetInfo) -> ResultInfo:
        return ResultInfo(ident, base_of(info), info.created, info.dataset, info.guid)

    def result(self, id: BuildId) -> ResultInfo | None:
        """A registered result."""
        return self._results.get(id)

    def results(self) -> list[BuildId]:
        """All results."""
        return list(self._results)

    def failed(self) -> dict[BuildId, FailedInfo]:
        """The failed builds that are kept."""
        return dict(self._failed)

    def running(self) -> dict[BuildId, BuildInfo]:
        """The builds that run."""
        return dict(self._running)

    async def guid(self, id: BuildId) -> int:
        """The number of a running build's dataset, which no other ever has. Raises Missing. Costs a look at it."""
        info = None
        if id in self._running:
            await self.named(id)
            info = await in_thread(self._driver.info, result(id))
        if info is None:
            raise Missing(f"{id} is not being built")
        return info.guid

    async def named(self, id: BuildId) -> None:
        """Wait until a running build's dataset has its name, which it may get after it has begun. Raises what the
        verb raises."""
        await self.naming.settle(result(id))

    @contextmanager
    def _flight(self, ident: BuildId, base: BuildId | None = None) -> Iterator[None]:
        self._flying[ident] = base
        try:
            # What was begun is brought to its end: half of it would be for recovery.
            with trio.CancelScope(shield=True):
                yield
        finally:
            del self._flying[ident]

    def _not_flying(self, ident: BuildId) -> None:
        if ident in self._flying:
            raise Busy(f"{ident}: something else is being done with it")

    async def start(self, name: BuildName, owner: tuple[int, int], mode: int) -> BuildInfo:
        """See `begin`, for who wants to look into it by its name."""
        build, view = await self.begin(name, owner, mode)
        view.close()
        await self.named(build.id)
        return build

    def may_begin(self, name: BuildName) -> None:
        """Raises Exists (it is a result, is being built or started), Missing (no such base)."""
        ident, base = name.id, name.base
        if ident in self._results or ident in self._running or ident in self._flying:
            kind = "a result" if ident in self._results else "being built"
            raise Exists(f"{ident} is {kind}")
        if base is not None and (base not in self._results or base in self._flying):
            raise Missing(f"{base} is no result")

    async def begin(self, name: BuildName, owner: tuple[int, int], mode: int) -> tuple[BuildInfo, View]:
        """Start a build, from nothing or as a clone of its base; what a crash left of it is cleared first. The view,
        a writable one, is the caller's to close. Its dataset may get its name a moment later: see `named`.

        Raises what `may_begin` does, Busy (a result is based on what is left over), and what the verbs raise.
        """
        self.may_begin(name)
        ident, base, dataset = name.id, name.base, result(name.id)
        with self._flight(ident, base):
            view = await self._kept_ready(dataset, base, owner, mode)
            if view is None:
                view = await self._made(dataset, base, owner, mode)
            build = BuildInfo(ident, base, self._clock(), dataset)
            self._running[ident] = build
        origin = f" from {base}" if base else ""
        self._events.append("build-started", str(ident), f"build {ident} is started{origin}", base=str(base or ""))
        return build, view

    async def _kept_ready(
        self, dataset: Dataset, base: BuildId | None, owner: tuple[int, int], mode: int
    ) -> View | None:
        """Give a dataset that was kept ready to a build; None when there is none, or that can't be: the name may be
        taken, or somebody has destroyed it."""
        found = self.fresh.take(base)
        if found is None:
            return None
        ready, view = found

        def prepare() -> None:
            if self._driver.info(dataset) is not None:
                raise Exists(f"{dataset} exists")
            if base is None:
                give_root(view.fd, ready, owner, mode)

        try:
            await in_thread(prepare)
            # A crash before it has its name leaves rubbish, after it (2) of `_made`.
            await self.naming.give(ready, dataset)
        except BaseException as failure:
            self.fresh.give_up(ready, view)
            if isinstance(failure, StoreError):
                return None
            raise
        return view

    async def _rename(self, old: Dataset, dataset: Dataset) -> None:
        await self._in_place_of_left_over(dataset, self._driver.rename, old, dataset)

    async def _in_place_of_left_over(self, dataset: Dataset, verb: Callable[..., None], *arguments: Any) -> None:
        """A verb that makes a dataset, or gives one that name; what a crash left there is cleared first."""
        try:
            await in_thread(verb, *arguments)
        except Exists:
            # A crash after (1) or (2) of `_made`: a dataset without @snap.
            await self._clear(dataset)
            await in_thread(verb, *arguments)

    async def _made(self, dataset: Dataset, base: BuildId | None, owner: tuple[int, int], mode: int) -> View:
        await self._in_place_of_left_over(dataset, make, self._driver, dataset, base)
        # (1) A crash here: a left-over that belongs to root.
        try:
            return await in_thread(self._look, dataset, None if base else owner, mode)
            # (2) A crash here and until it is published: a left-over.
        except BaseException:
            await self._entomb([dataset])
            raise

    def _look(self, dataset: Dataset, owner: tuple[int, int] | None, mode: int) -> View:
        with ExitStack() as stack:
            view = self._driver.view(dataset, writable=True)
            stack.callback(view.close)
            if owner is not None:
                give_root(view.fd, dataset, owner, mode)
            stack.pop_all()
        return view

    async def _clear(self, dataset: Dataset) -> None:
        listing = await in_thread(self._driver.list)
        info = listing.get(dataset)
        if info is None:
            return
        if info.snapshot(SNAP) is not None:
            raise Exists(f"{dataset.leaf} is a result that somebody else has made")
        await self._entomb(_doomed(listing, dataset, self._busy_datasets()))

    def _busy_datasets(self) -> set[Dataset]:
        return {result(each) for each in (*self._running, *self._flying)}

    async def _entomb(self, datasets: list[Dataset], arrive: Arrive = at_once, view: View | None = None) -> Dataset:
        """Give datasets up, clones first: each becomes rubbish by one rename, and is destroyed by and by, once
        `arrive` has returned. Returns what the last of them is called now; `view` is one of that, and is closed
        before. What is given up goes from the list, and so does a clone that somebody else gives up meanwhile."""
        graves: list[Dataset] = []
        try:
            while datasets:
                # A crash between two of them: what is based on a result is given up and the result is still there.
                number = self._numbers.take()
                try:
                    graves.append(await in_thread(bury, self._driver, datasets[0], number, former_leaf(datasets[0])))
                except Missing:
                    if len(datasets) == 1:
                        raise
                del datasets[0]
            await arrive()
        finally:
            for grave in graves:
                last = not datasets and grave is graves[-1]
                self._reaper.add(grave, with_foreign=True, view=view if last else None)
        return graves[-1]

    async def publish(self, id: BuildId, arrive: Arrive = at_once) -> ResultInfo:
        """A build becomes a result. The caller has seen to it that everything is written and nobody writes. `arrive`
        is awaited when it is on the disk, before the tables say so.

        Raises Missing (it does not run), Busy (something else is done with it), and what the verb raises: the build
        then goes on.
        """
        self._not_flying(id)
        build = self._running.get(id)
        if build is None:
            raise Missing(f"{id} is not being built")
        with self._flight(id):
            await self.named(id)
            # One verb: a crash before it leaves a left-over, a crash after it a result.
            await self._snapshots.carry_out(Snapshot(build.dataset, SNAP))
            await arrive()
            found = ResultInfo(id, build.base, build.created, build.dataset)
            del self._running[id]
            self._results[id] = found
        self._events.append("published", str(id), f"build {id} is published")
        return found

    async def discard(self, id: BuildId, arrive: Arrive = at_once, view: View | None = None) -> Dataset:
        """A build has failed: it is gone, and destroyed as soon as nothing holds it. `arrive` is awaited before the
        tables say so. `view` is one of it: it is closed in time, unless this raises. Returns what its dataset is
        called until then.

        Raises Missing, Busy (something else is done with it), and what the verb raises: the build then goes on.
        """
        self._not_flying(id)
        build = self._running.get(id)
        if build is None:
            raise Missing(f"{id} is not being built")
        with self._flight(id):
            # One verb: a crash before it leaves a left-over, a crash after it rubbish.
            grave = await self._entomb([await self.naming.current(build.dataset)], arrive, view)
            self.naming.forget(build.dataset)
            del self._running[id]
        self._events.append("discarded", str(id), f"build {id} is discarded")
        return grave

    async def keep(self, id: BuildId, facts: Mapping[str, Any], ended: float, arrive: Arrive = at_once) -> FailedInfo:
        """A build has failed, and is kept to be looked at; an earlier one of that id makes way. No result, and no
        base, can be made of it but by `reopen`. `arrive` is awaited before the tables say so.

        Raises Missing, Busy, InvalidName (its name would be too long), and what the verbs raise: the build goes on.
        """
        self._not_flying(id)
        build = self._running.get(id)
        if build is None:
            raise Missing(f"{id} is not being built")
        with self._flight(id):
            guid = await self.guid(id)
            kept = failure(self._numbers.take(), id)
            text = json.dumps({**facts, "ended": ended})
            # (a) A crash here: a left-over.
            await in_thread(self._driver.set_property, build.dataset, FAILED, text)
            # (b) A crash here: a left-over, for what it has is only a property.
            await in_thread(self._driver.rename, build.dataset, kept)
            # (c) A crash here: it is kept, and an earlier one is given up by `load`.
            older = self._failed.get(id)
            found = FailedInfo(id, build.base, build.created, guid, kept, ended, dict(facts))
            try:
                await (arrive() if older is None else self._entomb([older.dataset], arrive))
            finally:
                del self._running[id]
                self._failed[id] = found
        self._events.append("failed", str(id), f"build {id} has failed and is kept", guid=guid)
        return found

    def may_reopen(self, id: BuildId) -> FailedInfo:
        """What is kept of it. Raises Missing, Exists (there is a result or a build of that id), Busy (its base, which
        it would go with, is being deleted)."""
        kept = self._failed.get(id)
        if kept is None:
            raise Missing(f"{id} is no failed build")
        if id in self._results or id in self._running or id in self._flying:
            raise Exists(f"{id} is {'a result' if id in self._results else 'being built'}")
        if kept.base in self._flying:
            raise Busy(f"{kept.base}, the base of {id}, is being deleted")
        return kept

    async def reopen(self, id: BuildId, arrive: Arrive = at_once) -> BuildInfo:
        """A failed build runs again, by whom it will be ended as any other. `arrive` is awaited before the tables say
        so. Raises what `may_reopen` does, Busy, and what the verb raises: it is then still kept."""
        kept = self.may_reopen(id)
        with self._flight(id, kept.base):
            await self._rename(kept.dataset, result(id))
            # A crash here and until it is ended: a left-over.
            build = BuildInfo(id, kept.base, kept.created, result(id))
            await arrive()
            del self._failed[id]
            self._running[id] = build
        self._events.append("reopened", str(id), f"failed build {id} is opened again")
        return build

    async def forget(self, id: BuildId, arrive: Arrive = at_once, view: View | None = None) -> Dataset:
        """Delete a failed build. Returns what its dataset is called until it is destroyed; `arrive` and `view` are as
        for `discard`. Raises Missing, Busy."""
        self._not_flying(id)
        kept = self._failed.get(id)
        if kept is None:
            raise Missing(f"{id} is no failed build")
        with self._flight(id):
            # One verb: a crash before it leaves the failed build, a crash after it rubbish.
            try:
                grave = await self._entomb([kept.dataset], arrive, view)
            except Missing:  # somebody else has destroyed it
                grave = kept.dataset
                await close_view(view)
                await arrive()
            mine = self._failed.pop(id, None)
        if mine is not None:  # else it was deleted with its base meanwhile
            self._events.append("failed-deleted", str(id), f"failed build {id} is deleted", guid=kept.guid)
        return grave

    def may_delete(self, id: BuildId) -> None:
        """Raises Missing, Busy (a registered result or a running build is based on it, or something else is done
        with it)."""
        self._not_flying(id)
        if id not in self._results:
            raise Missing(f"{id} is no result")
        based = [each.id for each in self._results.values() if each.base == id]
        based += [each.id for each in self._running.values() if each.base == id]
        based += [each for each, base in self._flying.items() if base == id]
        if based:
            raise Busy(f"{id} is the base of {', '.join(sorted(map(str, based)))}")

    async def delete(self, id: BuildId, arrive: Arrive = at_once, view: View | None = None) -> Dataset | None:
        """Delete a result; unregistered clones of it (a crash's) and foreign snapshots go with it. Whatever else
        needs it (a hold, a clone elsewhere, who looks into it) delays only that its space comes back. `arrive` and
        `view` are as for `discard`. Returns what its dataset is called until then.

        Raises what `may_delete` does, and what the verbs raise: the result is then still there.
        """
        self.may_delete(id)
        self.fresh.drop(id)
        found, grave = self._results[id], None
        with self._flight(id):
            running = self._busy_datasets()
            info = await in_thread(self._driver.info, found.dataset)
            listing: Listing = {} if info is None else {info.dataset: info}
            if info is not None and any(each.clones for each in info.snapshots):
                listing = await in_thread(self._driver.list)
            if found.dataset in listing:
                info = listing[found.dataset]
                doomed = _doomed(listing, found.dataset, running)
                gone = set(doomed)
                try:
                    grave = await self._entomb(doomed, arrive, view)
                finally:
                    gone -= set(doomed)
                    for kept in [each for each in self._failed.values() if each.dataset in gone]:
                        del self._failed[kept.id]
                        text = f"failed build {kept.id} is deleted with its base"
                        self._events.append("failed-deleted", str(kept.id), text, guid=kept.guid)
            else:
                await close_view(view)  # somebody else has destroyed it
                await arrive()
            del self._results[id]
        others = foreign(info) if info is not None else []
        along = f", and its snapshots {', '.join(others)} with it" if others else ""
        self._events.append("deleted", str(id), f"result {id} is deleted{along}", foreign=others)
        return grave

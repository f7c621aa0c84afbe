"""Users of a tree against a plain model in memory: random steps, crashes between and within them, the same contents.

The tree is the real one, down to the storage, without the kernel: a thread runs it, and a step calls what the edge to
FUSE would call. A crash is the end of that thread with nothing closed; within a step it comes before one of the
driver's calls. Then each result and each cache must be as before the step or as after it.
"""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from unittest import mock

import trio
from faults import PowerCut
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from suites.crash_suite import PLENTY, Armed

from zfsfs.driver import Driver
from zfsfs.errors import ZfsfsError
from zfsfs.fs import quiet
from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import CachePlace
from zfsfs.fs.tree import BUILDS, CACHES, RESULTS, Tree
from zfsfs.fs.users import BUILD, FILE, OWN, SESSION, WAIT, Users
from zfsfs.fs.workers import Workers
from zfsfs.store import CacheInfo, Store, check
from zfsfs.store.demand import QUIET

ME = Caller(os.getuid(), os.getgid())
Files = dict[str, str]
Step = Callable[[], Awaitable[object]]


class Died(Exception):
    """The tree's process is gone."""


class World:
    """The process that serves a tree, until it is ended or dies."""

    def __init__(self, driver: Driver) -> None:
        self.driver = Armed(driver)
        self.handles: dict[bytes, int] = {}
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._ready.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as failure:
            self._failure = failure
        self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._end = trio.Event()
        self._leaving = False
        self.store = Store(self.driver)
        await self.store.start()
        workers = Workers(1)
        try:
            users = Users({kind: PLENTY for kind in (BUILD, SESSION, FILE, OWN, WAIT)}, lambda user, text: None)
            self.tree = Tree(self.store, 0.0, self._tell, users)
            self.files = Passthrough(self.tree.table, workers, users)
            await self.tree.start()
            async with trio.open_nursery() as nursery:
                self.tree.sessions.nursery = nursery
                self._ready.set()
                await self._end.wait()
                if self._leaving:
                    await self.tree.close()
                nursery.cancel_scope.cancel()
        except* PowerCut:
            pass
        finally:
            workers.close()
            for number in list(self.files.handles):
                os.close(number)
            self._forget()
            await self.store.close()

    def _forget(self) -> None:
        """What a dead process had open is closed."""
        tree = self.tree
        areas = [*tree.sessions.open_areas, *tree.builds.values(), *tree._results.values(), *tree._lingering]
        for area in areas:
            view = area.detach()
            if view is not None:
                view.close()
        for shared in tree.sessions._shared.values():
            if shared.view is not None:
                shared.view.close()
        if tree._state is not None:
            tree._state.close()

    @staticmethod
    async def _tell(name: bytes, inodes: list[int]) -> None:
        """There is no kernel that could have anything to forget."""

    def call(self, step: Step) -> object:
        """Carry out a step in the tree. Raises Died, and what the step raises."""
        try:
            return trio.from_thread.run(step, trio_token=self._token)
        except (PowerCut, trio.RunFinishedError, trio.Cancelled):
            raise Died from None
        except BaseExceptionGroup as group:
            if group.split(PowerCut)[1] is None:
                raise Died from None
            raise

    def end(self, *, leaving: bool) -> None:
        """Stop, as daemons do when they are told to, or with nothing closed. Raises Died."""
        self._leaving = leaving
        with contextlib.suppress(trio.RunFinishedError):
            trio.from_thread.run_sync(self._end.set, trio_token=self._token)
        self._thread.join()
        if self._failure is not None:
            raise self._failure
        if leaving and self.driver.cut:
            raise Died

    # What users do.

    async def write(self, area: Area, name: str, text: str) -> None:
        await self.tree.begin(area, ME)
        flags = os.O_WRONLY | os.O_TRUNC
        try:
            node, _ = self.files.lookup(area.root, name.encode())
            handle = self.files.open(node, flags, ME)
        except FileNotFoundError:
            handle, _ = self.files.create(area.root, name.encode(), 0o644, flags | os.O_CREAT, ME)
        try:
            await self.files.write(handle, 0, text.encode())
        finally:
            self.files.close(handle.fd)
        await self.ended(area)

    async def unlink(self, area: Area, name: str) -> None:
        await self.tree.begin(area, ME)
        self.files.unlink(area.root, name.encode())
        await self.ended(area)

    async def hold(self, area: Area) -> None:
        await self.tree.begin(area, ME)
        self.handles[bytes(area.place.name)] = self.files.opendir(area.root, ME).fd  # type: ignore[union-attr]

    async def let_go(self, area: Area) -> None:
        self.files.close(self.handles.pop(bytes(area.place.name)))  # type: ignore[union-attr]
        await self.ended(area)

    async def ended(self, area: Area) -> None:
        """Wait until a session that nobody holds has ended."""
        place = area.place
        while isinstance(place, CachePlace) and place.session is not None and not area.opens:
            if self.driver.cut:
                raise PowerCut
            await trio.sleep(0.0005)

    async def show(self, group: bytes, name: bytes) -> Files:
        area = self.tree.find(group, name)
        if area.view is None:
            await self.tree.ready(area)
        found = {}
        for each in os.listdir(area.fd):
            fd = os.open(each, os.O_RDONLY, dir_fd=area.fd)
            found[each] = os.read(fd, 100).decode()
            os.close(fd)
        return found

    async def show_all(self, group: bytes) -> dict[str, Files]:
        return {name.decode(): await self.show(group, name) for name in self.tree.names(group)}

    def caches(self) -> list[CacheInfo]:
        store = self.store.caches
        return [info for name in store.names() if (info := store.get(name)) is not None]

    async def generations(self) -> dict[str, int]:
        return {str(info.name): info.generation for info in self.caches()}

    async def rest(self) -> None:
        """What the background does while nobody asks for anything."""
        await self.store.caches.settle()
        await self.store.caches.spares.provide(trio.current_time() + QUIET)
        await self.store.builds.fresh.provide(trio.current_time() + QUIET)

    async def problems(self) -> list[str]:
        await self.store.complete_deletes()
        known = {each.dataset for each in self.store.caches.sessions()} | set(self.store.reaper.queue)
        known |= set(self.store.ready())
        return check(self.driver.list(), known=known)


@dataclass
class Cache:
    generation: int = 0
    files: Files = field(default_factory=dict)


@dataclass
class Session:
    generation: int
    files: Files
    changed: bool = False


@dataclass
class Model:
    """What users have been promised."""

    builds: dict[str, Files] = field(default_factory=dict)  # by ID[@BASE]
    results: dict[str, Files] = field(default_factory=dict)
    bases: dict[str, str] = field(default_factory=dict)  # of results
    caches: dict[str, Cache] = field(default_factory=dict)
    sessions: dict[str, Session] = field(default_factory=dict)  # those that are held, by NAME[@LABEL]

    def opened(self, name: str) -> Session:
        cache = self.caches[name.partition("@")[0]]
        return self.sessions.get(name) or Session(cache.generation, dict(cache.files))

    def closed(self, name: str, session: Session) -> None:
        cache = self.caches[name.partition("@")[0]]
        if session.changed and session.generation == cache.generation:
            cache.generation, cache.files = cache.generation + 1, dict(session.files)

    def needs(self, ident: str) -> bool:
        """Whether something is based on a result."""
        return ident in self.bases.values() or any(name.partition("@")[2] == ident for name in self.builds)


NAMES = st.sampled_from(["f", "g"])
TEXTS = st.sampled_from(["1", "2", "3"])
IDS = st.sampled_from(["a", "b", "c"])
CACHES_ = st.sampled_from(["x", "x", "y"])
LABELS = st.sampled_from(["", "@l", "@m"])
#: Mostly a step is carried out; sometimes the process dies before one of its calls.
BUDGETS = st.one_of(*[st.none()] * 5, st.integers(0, 8))


class UsersModel(RuleBasedStateMachine):
    """A subclass makes a storage in `setup`, and its drivers in `driver`."""

    def __init__(self) -> None:
        super().__init__()
        self.patience = mock.patch.object(quiet, "DRAIN", 0.0)
        self.patience.start()
        self.setup()
        self.model = Model()
        self.world = World(self.driver())

    def setup(self) -> None:
        raise NotImplementedError

    def driver(self) -> Driver:
        raise NotImplementedError

    def teardown(self) -> None:
        try:
            self.world.end(leaving=False)
        finally:
            self.patience.stop()

    # Steps.

    def attempt(self, step: Step, effect: Callable[[Model], None], budget: int | None) -> None:
        """A step that changes the model so, or dies on the way."""
        after = copy.deepcopy(self.model)
        effect(after)
        self.world.driver.arm(PLENTY if budget is None else budget)
        try:
            self.world.call(step)
        except Died:
            self.restarted([self.model, after])
            return
        self.world.driver.revive()
        self.model = after

    def restarted(self, may: list[Model]) -> None:
        """A new process after a crash: each result and cache is as one of these has it."""
        with contextlib.suppress(Died):
            self.world.end(leaving=False)
        self.world = World(self.driver())
        results = self.world.call(lambda: self.world.show_all(RESULTS))
        caches = self.world.call(lambda: self.world.show_all(CACHES))
        generations = self.world.call(self.world.generations)
        assert isinstance(results, dict)
        assert isinstance(caches, dict)
        assert isinstance(generations, dict)
        found = Model(results=results, caches={name: Cache(generations[name], caches[name]) for name in caches})
        for ident in {"a", "b", "c"}:
            assert found.results.get(ident) in [each.results.get(ident) for each in may]
        for name in {"x", "y"}:
            assert found.caches.get(name) in [each.caches.get(name) for each in may]
        for each in may:
            found.bases |= {ident: base for ident, base in each.bases.items() if ident in results}
        self.model = found

    def area(self, group: bytes, name: str) -> Area:
        return self.world.tree.find(group, name.encode())

    # Builds.

    @rule(ident=IDS, base=st.one_of(st.just(""), IDS), budget=BUDGETS)
    def start_a_build(self, ident: str, base: str, budget: int | None) -> None:
        model = self.model
        taken = ident in model.results or any(each.partition("@")[0] == ident for each in model.builds)
        name = f"{ident}@{base}" if base else ident
        step = lambda: self.world.tree.mkdir(BUILDS, name.encode(), 0o755, ME)  # noqa: E731
        if taken or (base and base not in model.results):
            self.refused(step)
            return
        start = dict(model.results[base]) if base else {}
        self.attempt(step, lambda after: after.builds.update({name: start}), budget)

    def refused(self, step: Step) -> None:
        try:
            self.world.call(step)
        except (ZfsfsError, OSError):
            return
        raise AssertionError("it should have been refused")

    @precondition(lambda self: self.model.builds)
    @rule(data=st.data(), file=NAMES, text=TEXTS)
    def write_in_a_build(self, data: st.DataObject, file: str, text: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.builds)))
        area = self.area(BUILDS, name)
        effect = lambda after: after.builds[name].update({file: text})  # noqa: E731
        self.attempt(lambda: self.world.write(area, file, text), effect, None)

    @precondition(lambda self: self.model.builds)
    @rule(data=st.data(), budget=BUDGETS)
    def publish(self, data: st.DataObject, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.builds)))
        ident, _, base = name.partition("@")

        def effect(after: Model) -> None:
            after.results[ident] = after.builds.pop(name)
            if base:
                after.bases[ident] = base

        self.attempt(lambda: self.world.tree.publish(name.encode(), ident.encode()), effect, budget)

    @precondition(lambda self: self.model.builds)
    @rule(data=st.data(), budget=BUDGETS)
    def discard(self, data: st.DataObject, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.builds)))
        step = lambda: self.world.tree.rmdir(BUILDS, name.encode())  # noqa: E731
        self.attempt(step, lambda after: after.builds.pop(name), budget)  # type: ignore[arg-type, return-value]

    @precondition(lambda self: self.model.results)
    @rule(data=st.data(), budget=BUDGETS)
    def delete_a_result(self, data: st.DataObject, budget: int | None) -> None:
        ident = data.draw(st.sampled_from(sorted(self.model.results)))
        step = lambda: self.world.tree.rmdir(RESULTS, ident.encode())  # noqa: E731
        if self.model.needs(ident):
            self.refused(step)
            return

        def effect(after: Model) -> None:
            del after.results[ident]
            after.bases.pop(ident, None)

        self.attempt(step, effect, budget)

    # Caches.

    @rule(name=CACHES_, budget=BUDGETS)
    def make_a_cache(self, name: str, budget: int | None) -> None:
        step = lambda: self.world.tree.mkdir(CACHES, name.encode(), 0o755, ME)  # noqa: E731
        if name in self.model.caches:
            self.refused(step)
            return
        self.attempt(step, lambda after: after.caches.update({name: Cache()}), budget)

    @precondition(lambda self: self.model.caches)
    @rule(data=st.data(), label=LABELS, file=NAMES, text=TEXTS, budget=BUDGETS)
    def write_in_a_session(self, data: st.DataObject, label: str, file: str, text: str, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.caches))) + label
        area = self.area(CACHES, name)

        def effect(after: Model) -> None:
            session = after.opened(name)
            session.files[file], session.changed = text, True
            if name not in after.sessions:
                after.closed(name, session)

        self.attempt(lambda: self.world.write(area, file, text), effect, budget)

    @precondition(lambda self: self.model.caches)
    @rule(data=st.data(), label=LABELS, text=st.one_of(st.none(), TEXTS, TEXTS), budget=BUDGETS)
    def open_a_session(self, data: st.DataObject, label: str, text: str | None, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.caches))) + label
        if name in self.model.sessions:
            return
        area = self.area(CACHES, name)

        async def step() -> None:
            await self.world.hold(area)
            if text is not None:
                await self.world.write(area, "f", text)

        def effect(after: Model) -> None:
            session = after.sessions[name] = after.opened(name)
            if text is not None:
                session.files["f"], session.changed = text, True

        self.attempt(step, effect, budget)

    @precondition(lambda self: self.model.sessions)
    @rule(data=st.data(), budget=BUDGETS)
    def close_a_session(self, data: st.DataObject, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.sessions)))
        area = self.area(CACHES, name)
        effect = lambda after: after.closed(name, after.sessions.pop(name))  # noqa: E731
        self.attempt(lambda: self.world.let_go(area), effect, budget)

    @precondition(lambda self: any("@" in name for name in self.model.sessions))
    @rule(data=st.data(), budget=BUDGETS)
    def remove_a_session(self, data: st.DataObject, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(each for each in self.model.sessions if "@" in each)))
        area = self.area(CACHES, name)

        async def step() -> None:
            await self.world.tree.rmdir(CACHES, name.encode())
            await self.world.let_go(area)

        self.attempt(step, lambda after: after.sessions.pop(name), budget)  # type: ignore[arg-type, return-value]

    @precondition(lambda self: self.model.caches)
    @rule(data=st.data(), budget=BUDGETS)
    def delete_a_cache(self, data: st.DataObject, budget: int | None) -> None:
        name = data.draw(st.sampled_from(sorted(self.model.caches)))
        step = lambda: self.world.tree.rmdir(CACHES, name.encode())  # noqa: E731
        if any(each.partition("@")[0] == name for each in self.model.sessions):
            self.refused(step)
            return
        self.attempt(step, lambda after: after.caches.pop(name), budget)  # type: ignore[arg-type, return-value]

    @rule(budget=BUDGETS)
    def nothing_happens_for_a_while(self, budget: int | None) -> None:
        self.attempt(self.world.rest, lambda after: None, budget)

    # The end.

    @rule()
    def crash(self) -> None:
        self.restarted([self.model])

    @rule(budget=BUDGETS)
    def leave(self, budget: int | None) -> None:
        self.world.driver.arm(PLENTY if budget is None else budget)
        # Sessions close as if their holders had gone, in any order; which of a cache is the first, nobody promised.
        may = []
        for name, session in self.model.sessions.items():
            after = copy.deepcopy(self.model)
            after.closed(name, session)
            may.append(after)
        died = False
        try:
            self.world.end(leaving=True)
        except Died:
            died = True
        self.world = World(self.driver())
        self.arrived(may, died=died)

    def arrived(self, may: list[Model], *, died: bool) -> None:
        """After leaving: what won is published; after dying on the way, it or what was before."""
        before = self.model
        self.restarted([before, *may])
        for name, cache in before.caches.items():
            won = [each.caches[name] for each in may if each.caches[name] != cache]
            assert died or not won or self.model.caches[name] in won

    # What holds at any time.

    @invariant()
    def what_is_there_is_what_was_promised(self) -> None:
        call, world, model = self.world.call, self.world, self.model
        assert call(lambda: world.show_all(BUILDS)) == model.builds
        assert call(lambda: world.show_all(RESULTS)) == model.results
        shown = {name: cache.files for name, cache in model.caches.items() if name not in model.sessions}
        shown |= {name: session.files for name, session in model.sessions.items()}
        assert call(lambda: world.show_all(CACHES)) == shown
        assert call(world.generations) == {name: cache.generation for name, cache in model.caches.items()}

    @invariant()
    def the_store_is_sound(self) -> None:
        assert self.world.call(self.world.problems) == []

"""Builds that a builder does: `mkdir builds/BUILDER+ID[@BASE]`, and the result appears.

Guarantees
- A build ends by the same verbs that a person would use: its builder's success is a rename to results/ID and its
  failure a rmdir, through the mount. So every name in the kernel is right and inotify tells of both.
- Nothing of a builder runs any more when its build has ended.
- Whatever goes wrong with one build is said of it, and ends it alone.
"""

from __future__ import annotations

import logging
import math
import os
import pwd
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import trio

from zfsfs.builders.running import Records, supervise
from zfsfs.builders.supervisor import Ended, Job
from zfsfs.config import Builder, CacheUse, KeepFailed, Publish
from zfsfs.errors import Busy, Exists, Missing, ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.fs.caller import NOBODY, Caller
from zfsfs.fs.insisting import LONGEST, insist
from zfsfs.fs.logs import Logs
from zfsfs.fs.places import BuildPlace
from zfsfs.fs.quiet import abandoned
from zfsfs.fs.tree import BUILDS, Tree
from zfsfs.fs.waiting import Ends
from zfsfs.names import BuildId, SessionName, shown
from zfsfs.store import FailedInfo
from zfsfs.threads import UNLIMITED, in_thread

log = logging.getLogger(__name__)

#: Seconds between two looks at failed builds, at the least.
_SOON = 1.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(eq=False, slots=True)
class Run:
    """A builder at work on a build. `ended` says how, once nothing of it is left."""

    area: Area
    builder: Builder
    user: Caller
    guid: int
    cancelled: trio.Event = field(default_factory=trio.Event)
    ended: Ended | None = None
    failure: str = ""

    def cancel(self) -> None:
        """End it soon."""
        self.cancelled.set()

    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        """Whether it has ended well, and its build is to be published."""
        return self.ended is not None and self.ended.success and not self.failure


class Builders:
    """See the module. `mountpoint` is where the daemon's own requests go, `socket` where its clients find it."""

    def __init__(
        self,
        tree: Tree,
        builders: Mapping[str, Builder],
        mountpoint: str,
        socket: str,
        ends: Ends,
        logs: Logs,
        records: Records,
        keep: KeepFailed,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._tree = tree
        self._builders = builders
        self._mountpoint = mountpoint
        self._socket = socket
        self._ends = ends
        self.logs = logs
        self._records = records
        self._runs: set[Run] = set()
        self._idle = trio.Event()
        self._end = trio.Event()
        self._keep = keep
        self._clock = clock
        self._tidying = trio.Event()
        self.nursery: trio.Nursery

    def user(self, name: str, caller: Caller) -> Caller:
        """As whom a builder runs for a caller. Raises Missing: there is no such builder; Busy."""
        builder = self._builders.get(name)
        if builder is None:
            raise Missing(f"there is no builder {name}")
        if self._end.is_set():
            raise Busy("the daemon is ending")
        uid = caller.uid if builder.user is None else builder.user
        gid = caller.gid
        if builder.user is not None:
            with suppress(KeyError):
                gid = pwd.getpwuid(uid).pw_gid
        return Caller(uid, gid if builder.group is None else builder.group)

    def begin(self, area: Area, name: str, user: Caller, caller: Caller, guid: int) -> None:
        """Set a builder to work on a build that has just begun."""
        run = Run(area, self._builders[name], user, guid)
        place = _place(area)
        place.run = run
        self._runs.add(run)
        # At its end the log is the caller's, whoever runs the command.
        self.nursery.start_soon(self._run, run, (caller.uid, caller.gid))

    async def _run(self, run: Run, owner: tuple[int, int]) -> None:
        place = _place(run.area)
        ident = place.name.id
        try:
            try:
                run.ended = await self._worked(run, owner)
                self._tell(run)
            except Exception as failure:
                # Whatever it is: it ends this build, and not the daemon with all others.
                self._complain(ident, f"its builder failed in a way that nobody expected: {failure!r}")
                run.ended = Ended(reason=f"the daemon has failed: {failure!r}")
                self._ends.details[ident] = self._line(run)
            with trio.CancelScope(shield=True):
                discard = await self._finish(run)
            if discard is not None:
                await self._insist(ident, discard)
        except Exception as failure:
            self._complain(ident, f"it could not be ended: {failure}")
        finally:
            self._ends.details.pop(ident, None)
            self._runs.discard(run)
            if not self._runs:
                self._idle.set()
                self._idle = trio.Event()

    def _complain(self, ident: BuildId, text: str) -> None:
        log.exception("build %s: %s", ident, text)
        self._tree.store.events.append("warning", str(ident), f"build {ident}: {text}")

    async def _worked(self, run: Run, owner: tuple[int, int]) -> Ended:
        try:
            return await self._work(run, owner)
        except (ZfsfsError, OSError) as failure:
            return Ended(reason=f"it could not be supervised: {failure}")

    async def _work(self, run: Run, owner: tuple[int, int]) -> Ended:
        place, builder = _place(run.area), run.builder
        ident = place.name.id
        try:
            fd = self.logs.create(ident, run.guid, owner)
        except OSError as failure:
            return Ended(reason=f"its output can't be kept: {failure.strerror}")
        opened: list[tuple[CacheUse, Area]] = []
        ended = Ended(reason="it was not supervised to its end")
        try:
            environment = self._environment(run)
            # In this order by all, or two could wait for each other's locked caches.
            for use in sorted(builder.caches, key=lambda use: use.name.name):
                try:
                    area = await self._opened(use, run)
                except (ZfsfsError, OSError) as failure:
                    ended = Ended(reason=f"cache {use.name} can't be opened: {failure}")
                    return ended
                if area is None:
                    ended = Ended(reason="cancelled")
                    return ended
                opened.append((use, area))
                name = use.variable or f"ZFSFS_CACHE_{use.name.name.decode('utf-8', 'surrogateescape').upper()}"
                environment[name] = self._path(area.place.path())
            job = Job(
                command=self._command(run), directory=self._path(place.path()), environment=environment,
                log=fd, log_size=builder.log_size, user=_identity(run.user), time_limit=builder.time_limit,
                grace=builder.kill_grace, limits=dict(builder.limits), processes=builder.max_processes,
                native=[self._path(path) for path in self._native(run, opened)], socket=self._socket,
            )  # fmt: skip
            self._tree.store.events.append(
                "builder-started", str(ident), f"builder {place.name.builder} works on {ident}"
            )

            def begins(pid: int) -> None:
                for _, area in opened:
                    self._tree.sessions.admit(area, pid)

            ended = await supervise(job, str(run.guid), self._records, run.cancelled, begins)
        finally:
            os.close(fd)
            for use, area in opened:
                publishes = _publishes(use, ended.success)
                self._tree.sessions.release(area, success=ended.success, publishes=publishes)
        for use, area in opened:
            if not _publishes(use, ended.success):
                await self._discard(area, ident)
        return ended

    def _native(self, run: Run, opened: list[tuple[CacheUse, Area]]) -> list[bytes]:
        """What the command gets natively: where that may be, and what it has for itself."""
        driver = self._tree.store.driver
        if run.builder.native is False or (os.geteuid() != 0 and not driver.own_filesystems):
            return []
        mine = [area.place.path() for use, area in opened if use.label is not None]
        return [_place(run.area).path(), *mine]

    def _path(self, path: bytes) -> str:
        return os.path.join(self._mountpoint, os.fsdecode(path))

    def _command(self, run: Run) -> list[str]:
        name = _place(run.area).name
        values = {
            "{directory}": [self._path(_place(run.area).path())],
            "{id}": [str(name.id)],
            "{base}": [str(name.base or "")],
            "{command}": list(run.builder.command),
        }
        sandbox = list(run.builder.sandbox)
        if not sandbox:
            return values["{command}"]
        if "{command}" not in sandbox:
            sandbox.append("{command}")
        return [word for each in sandbox for word in values.get(each, [each])]

    def _environment(self, run: Run) -> dict[str, str]:
        name = _place(run.area).name
        found = {"PATH": _PATH, "HOME": "/"}
        with suppress(KeyError):
            entry = pwd.getpwuid(run.user.uid)
            found |= {"HOME": entry.pw_dir, "USER": entry.pw_name, "LOGNAME": entry.pw_name}
        found |= {
            "ZFSFS_ID": str(name.id),
            "ZFSFS_BASE": str(name.base or ""),
            "ZFSFS_BUILD": self._path(_place(run.area).path()),
        }
        return found | dict(run.builder.environment)

    async def _opened(self, use: CacheUse, run: Run) -> Area | None:
        """A cache's session for a run; None when it was cancelled while it waited for its turn."""
        area = failure = None
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                await run.cancelled.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            try:
                area = await self._open(use, run)
            except (ZfsfsError, OSError) as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure
        return area

    async def _open(self, use: CacheUse, run: Run) -> Area:
        sessions, owner = self._tree.sessions, (run.user.uid, run.user.gid)
        label = use.label.replace(b"{id}", _place(run.area).name.id.name) if use.label is not None else None
        if self._tree.store.caches.get(use.name) is None:
            with suppress(Exists):
                await self._tree.store.caches.create(use.name, owner, 0o755)
        area = sessions.area(SessionName(use.name, label))
        with self._tree.table.holding(area.root):  # the kernel may forget it while we wait for our turn
            await sessions.begin(area, Caller(run.user.uid, run.user.gid, NOBODY), opens=True)
        _, _, groups = _identity(run.user) or (0, 0, [run.user.gid])
        sessions.use(area, run.user.uid, groups)
        return area

    async def _discard(self, area: Area, ident: BuildId) -> None:
        path = area.place.path()
        if b"@" not in path:
            return
        try:
            await self._by_path(lambda root: os.rmdir(path, dir_fd=root))
        except FileNotFoundError:
            pass  # with its cache
        except (ZfsfsError, OSError) as failure:
            # Whenever it ends, it is not published: `Sessions.release` has seen to that.
            text = f"{shown(path)} is left by build {ident}, and can't be discarded: {failure}"
            self._tree.store.events.append("warning", str(ident), text)

    def _tell(self, run: Run) -> None:
        """Say how it ended, before the build does."""
        place, ended = _place(run.area), run.ended
        assert ended is not None
        ident, builder = place.name.id, place.name.builder
        if ended.success:
            how = "has succeeded"
        elif ended.reason:
            how = f"has failed: {ended.reason}"
        else:
            how = f"has failed: signal {ended.signal}" if ended.signal else f"has failed: exit code {ended.exit}"
        line = self._ends.details[ident] = self._line(run)
        run.facts = {key: value for key, value in line.items() if key != "outcome"}
        self._tree.store.events.append("builder-ended", str(ident), f"builder {builder} on {ident} {how}")

    @staticmethod
    def _line(run: Run) -> dict[str, Any]:
        ended = run.ended
        assert ended is not None
        line: dict[str, Any] = {
            "builder": _place(run.area).name.builder, "exit": ended.exit, "signal": ended.signal,
            "reason": ended.reason, "duration": ended.duration,
        }  # fmt: skip
        if not ended.success:
            line["outcome"] = "cancelled" if ended.reason == "cancelled" else "failed"
        return line

    async def _finish(self, run: Run) -> Callable[[], Awaitable[None]] | None:
        """Publish it or keep it; else returned is what discards it."""
        place = _place(run.area)
        old, ident = b"builds/" + bytes(place.name), place.name.id
        if not self._end.is_set():
            await abandoned(run.area)
        if place.cancelled:
            return lambda: self._tree.discard_cancelled(run.area)
        if run.success:
            try:
                await self._by_path(
                    lambda root: os.rename(old, b"results/" + ident.name, src_dir_fd=root, dst_dir_fd=root),
                    lambda: self._tree.publish(bytes(place.name), ident.name),
                )
                return None
            except (ZfsfsError, OSError) as failure:
                run.failure = f"it can't be published: {failure}"
                self._ends.details[ident] |= {"outcome": "failed", "reason": run.failure}
                self._tree.store.events.append("warning", str(ident), f"build {ident} can't be published: {failure}")
        if self._keep.count and not place.cancelled and not self._end.is_set():
            try:
                kept = b"builds/.failed/" + ident.name
                await self._by_path(
                    lambda root: os.rename(old, kept, src_dir_fd=root, dst_dir_fd=root),
                    lambda: self._tree.failures.keep(bytes(place.name), ident.name),
                )
                return None
            except (ZfsfsError, OSError) as failure:
                self._tree.store.events.append("warning", str(ident), f"build {ident} can't be kept: {failure}")
        return lambda: self._by_path(
            lambda root: os.rmdir(old, dir_fd=root), lambda: self._tree.rmdir(BUILDS, bytes(place.name))
        )

    async def _insist(self, ident: BuildId, verb: Callable[[], Awaitable[None]]) -> None:
        """Its id is taken until a build is discarded; what can't be at our end is a left-over for the next start."""
        events = self._tree.store.events
        await insist(
            verb,
            lambda why: events.append("warning", str(ident), f"build {ident} can't be discarded yet: {why}"),
            self._end,
        )

    async def _by_path(self, verb: Callable[[int], None], directly: Callable[[], Any] | None = None) -> None:
        """Do something through the mount; where that is not to be reached any more, on the tree. Raises OSError."""

        def through() -> bool:
            try:
                root = os.open(self._mountpoint, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError:
                return False
            try:
                if os.fstat(root).st_dev != self._tree.device:
                    return False
                verb(root)
                return True
            finally:
                os.close(root)

        # In a thread: it is we who answer.
        if not await in_thread(through, abandon_on_cancel=True, limiter=UNLIMITED) and directly is not None:
            await directly()

    def tidy_soon(self) -> None:
        """There is one more failed build."""
        self._tidying.set()

    async def tidy(self) -> None:
        """Delete failed builds that are too many or too old, until cancelled. What somebody holds is tried ever more
        rarely."""
        keep, tree = self._keep, self._tree
        said: dict[BuildId, str] = {}
        pause = _SOON
        while True:
            stay: dict[BuildId, str] = {}
            for each in surplus(tree.store.builds.failed().values(), keep, self._clock()):
                path = b"builds/.failed/" + each.id.name
                try:
                    await self._by_path(
                        lambda root, path=path: os.rmdir(path, dir_fd=root),  # type: ignore[misc]
                        lambda each=each: tree.failures.forget(each.id),  # type: ignore[misc]
                    )
                except (ZfsfsError, OSError) as failure:
                    text = stay[each.id] = f"failed build {each.id} can't be deleted yet: {failure}"
                    if said.get(each.id) != text:
                        tree.store.events.append("warning", str(each.id), text)
            said, pause = stay, min(pause * 2, LONGEST) if stay else _SOON
            failed = [each for each in tree.store.builds.failed().values() if each.id not in stay]
            left = [each.ended + keep.seconds - self._clock() for each in failed]
            self._tidying = trio.Event()
            with trio.move_on_after(min(max(min(left, default=math.inf), _SOON), pause if stay else math.inf)):
                await self._tidying.wait()

    async def close(self) -> None:
        """The end: cancel all, and wait until nothing of them is left."""
        self._end.set()
        for run in self._runs:
            run.cancel()
        while self._runs:
            await self._idle.wait()


def surplus(failed: Iterable[FailedInfo], keep: KeepFailed, now: float) -> list[FailedInfo]:
    """The failed builds that are more than are kept, or older, the newest first."""
    newest = sorted(failed, key=lambda each: each.ended, reverse=True)
    return [each for number, each in enumerate(newest) if number >= keep.count or each.ended + keep.seconds <= now]


def _publishes(use: CacheUse, success: bool) -> bool:
    """Whether what a builder did in a cache may be published, as far as its own configuration says."""
    return use.publish is Publish.ALWAYS or (use.publish is Publish.ON_SUCCESS and success)


def _identity(user: Caller) -> tuple[int, int, list[int]] | None:
    if os.geteuid() != 0:
        return None
    groups = [user.gid]
    with suppress(KeyError):
        groups = os.getgrouplist(pwd.getpwuid(user.uid).pw_name, user.gid)
    return user.uid, user.gid, groups


def _place(area: Area) -> BuildPlace:
    assert isinstance(area.place, BuildPlace)
    return area.place

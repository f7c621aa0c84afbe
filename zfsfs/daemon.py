"""The daemon: choose the driver, recover, mount, serve, and end such that nothing is lost.

The end, whatever caused it (a signal, umount): what the kernel has gathered for open files is written, no more
requests are answered, every session is closed as if its holders had gone, running builds are discarded, and only then
is the store given up. Nobody is waited for on the way but the storage: what users go on doing can't hold it up. A
SIGKILL before the end is a crash like any other.
"""

from __future__ import annotations

import itertools
import logging
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass, field

import pyfuse3
import trio

from zfsfs import garbage
from zfsfs import mountpoint as mountpoints
from zfsfs.builders.running import Records
from zfsfs.config import Config
from zfsfs.drivers import choose_driver
from zfsfs.errors import DriverError, MountError
from zfsfs.fs import awake, door, mapped, status, who
from zfsfs.fs.awake import Awake
from zfsfs.fs.building import Builders
from zfsfs.fs.control import CONTROL, Control, Text
from zfsfs.fs.handles import FileHandle
from zfsfs.fs.kernel import Kernel
from zfsfs.fs.lane import Lane
from zfsfs.fs.line import Line, descriptors
from zfsfs.fs.logs import LogFolder, Logs
from zfsfs.fs.natives import Natives
from zfsfs.fs.operations import Operations
from zfsfs.fs.outputs import Outputs
from zfsfs.fs.own_lane import WireOperations
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.tree import Tree
from zfsfs.fs.unlocked import Unlocked
from zfsfs.fs.users import BUILD, FILE, MOST_OWN, MOST_WAITING, OWN, SESSION, WAIT, Users
from zfsfs.fs.waiting import Ends, WaitFolder
from zfsfs.fs.workers import Workers
from zfsfs.names import Dataset
from zfsfs.store import Store
from zfsfs.store.events import Event
from zfsfs.threads import UNLIMITED, in_thread, lasting
from zfsfs.watch import watching
from zfsfs.watchdog import Watchdog

log = logging.getLogger(__name__)

#: Seconds that the kernel may take to write what it has gathered, then the requests that are under way to end, and
#: then the look at who has something natively.
_PATIENCE = 10.0
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a mount is made of; `linger` in seconds. `options` go to FUSE as they are. `max_…` are the most that an
    ordinary user may have."""

    store: str
    mountpoint: str
    linger: float = 2.0
    options: frozenset[str] = frozenset()
    max_builds: int = 256
    max_sessions: int = 256
    config: Config = field(default_factory=Config)


def _is_withdrawn(record: logging.LogRecord) -> bool:
    """Whether pyfuse3 complains of a request that the kernel no longer wants an answer to (its caller was killed)."""
    return "fuse_reply" in record.getMessage() and "No such file" in record.getMessage()


def serve(settings: Settings, ready: Callable[[], None]) -> None:
    """Mount and serve until unmounted or told to end; `ready` is called when the tree is usable.

    Raises Locked, Unavailable, MountError, InvalidName; nothing is mounted then.
    """
    logging.getLogger("pyfuse3").addFilter(lambda record: not _is_withdrawn(record))
    # Whoever has started us may have blocked what ends us, or ignored the end of children.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(0)  # modes come from the callers
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    watchdog = Watchdog()

    def mounted(device: int) -> None:
        watchdog.watch(device)
        garbage.put_off()
        ready()

    try:
        trio.run(_serve, settings, mounted)
    finally:
        watchdog.dismiss()


async def _serve(settings: Settings, ready: Callable[[int], None]) -> None:
    mountpoint = mountpoints.prepare(settings.mountpoint)
    driver = choose_driver(settings.store)

    async def explain(dataset: Dataset) -> str:
        return await who.explain(tree, dataset)

    store = Store(driver, explain=explain)
    store.events.subscribers.append(_log)
    users = _users(settings, store)
    kernel = Kernel()
    tree = Tree(store, settings.linger, kernel.changed, users, settings.config.caches)
    _keep_few_open(tree)
    workers = Workers()
    try:
        await store.start()
        await tree.start()
        end_watch = watching(driver, store.events, tree.storage_seen)
        try:
            with door.opened() as knock:
                await _mounted(settings, mountpoint, tree, workers, kernel, ready, knock)
        finally:
            end_watch()
            await tree.close()
    finally:
        with trio.CancelScope(shield=True):
            await store.close()
        workers.close()


def _users(settings: Settings, store: Store) -> Users:
    """What ordinary users may have. A quarter of all descriptors is enough for one of them."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    most = {
        BUILD: settings.max_builds,
        SESSION: settings.max_sessions,
        FILE: files,
        OWN: MOST_OWN,
        WAIT: MOST_WAITING,
    }
    return Users(most, lambda user, text: store.events.append("warning", user, text))


def _keep_few_open(tree: Tree) -> None:
    """What is open for the tree's own sake takes no more than half of the descriptors, and what users only name a
    quarter."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4
    tree.table.descriptors.most_pinned = most
    for kept in (tree.idle.recent, tree.sessions.showing.recent):
        kept.most = min(kept.most, most // 2)
    tree.table.descriptors.limit = min(tree.table.descriptors.limit, most)


async def _mounted(
    settings: Settings,
    mountpoint: str,
    tree: Tree,
    workers: Workers,
    kernel: Kernel,
    ready: Callable[[int], None],
    knock: door.Listening,
) -> None:
    files = Passthrough(tree.table, workers, tree.users)
    own, builders, logs = await _builders(settings, mountpoint, tree, knock.path)
    unlocked = Unlocked(kernel.look_up_again)
    tree.failures.look_again = kernel.look_up_again
    may_pass = await _may_pass(tree)
    before = descriptors()
    # pyfuse3 takes ASCII only, and libfuse takes a byte in this way.
    name = "".join(f"\\{byte:03o}" for byte in os.fsencode(settings.store))
    options = {f"fsname={name}", "subtype=zfsfs", "default_permissions", "nosuid", "nodev", *settings.options}
    if os.geteuid() == 0:
        options.add("allow_other")
    parts = tree, files, own, unlocked, kernel.grown
    try:
        pyfuse3.init(Operations(*parts), mountpoint, options)
    except RuntimeError as failure:
        raise MountError(f"{mountpoint} can't be mounted: {failure}; is there a /dev/fuse for you?") from None
    line = Line.take_over(before)
    if line is not None:
        line.lane = Lane(tree, files, WireOperations(*parts), line.answer)
        line.may_pass = may_pass
        line.awake = Awake(awake.device() if settings.config.awake else -1)
    kernel.attach()
    files.outdated = files.table.outdated = kernel.outdated
    files.full, files.stopped = tree.troubles.tell, lambda: tree.stopped
    files.set_id_goes_if_executable = tree.store.driver.set_id_goes_if_executable
    try:
        async with trio.open_nursery() as nursery:
            tree.sessions.nursery = builders.nursery = unlocked.nursery = nursery
            natives = Natives(tree, files, kernel)
            nursery.start_soon(lasting, natives.run)
            nursery.start_soon(door.Door(natives, Outputs(tree, logs), knock.socket).serve)
            nursery.start_soon(tree.store.run)
            nursery.start_soon(lasting, builders.tidy)
            nursery.start_soon(_announce, mountpoint, tree, ready)
            idle = (lambda: True) if line is None else line.is_idle
            nursery.start_soon(garbage.collect_when_idle, idle, lambda: len(tree.table.by_ino))
            with trio.CancelScope() as serving:
                if line is not None:
                    nursery.start_soon(_answer, line, serving)
                nursery.start_soon(_end_on_signal, files, kernel, builders, serving)
                await pyfuse3.main(max_tasks=1000)
            # First builders, who use sessions; then these, for what they publish is what the mount has shown.
            await builders.close()
            await unlocked.close()
            # What somebody has natively at the end is dropped; he may have gone since we looked.
            with trio.move_on_after(_PATIENCE):
                await natives.settle()
            files.notice()
            await tree.close()
            nursery.cancel_scope.cancel()
    finally:
        kernel.detach()
        files.backings = tree.table.keeper = None  # they end with the line
        if line is not None:
            line.close()
        pyfuse3.close(unmount=mountpoints.mounted_type(mountpoint) == mountpoints.FSTYPE)
        for number in list(files.handles):
            files.close(number)


async def _builders(
    settings: Settings, mountpoint: str, tree: Tree, socket_path: str
) -> tuple[Control, Builders, Logs]:
    """The tree's own directories and files, and who works in it; what a daemon before us left running is ended."""
    records = Records(tree.state("zfsfs-builders"))
    for name in await in_thread(records.end_all):
        tree.store.events.append("recovered", name, "a builder of the daemon before was still running, and is ended")
    ends = Ends(tree.store, tree.users)
    logs = Logs(tree.store, tree.state("zfsfs-logs"))
    logs.start(tree.store.builds.failed())
    tree.builders = Builders(
        tree, settings.config.builders, mountpoint, socket_path, ends, logs, records, settings.config.keep_failed
    )
    own = Control()
    numbers = itertools.count(CONTROL + 1)
    files = {**status.files(tree), b"socket": lambda: os.fsencode(socket_path) + b"\n"}
    for file, make in files.items():
        own.put(own.folder, CONTROL, next(numbers), file, Text(make))
    own.put(own.folder, CONTROL, next(numbers), b"log", LogFolder(logs))
    own.put(own.folder, CONTROL, next(numbers), b"wait", WaitFolder(ends))
    return own, tree.builders, logs


async def _may_pass(tree: Tree) -> bool:
    """Whether files may be passed through: as long as one is mapped somebody has to know."""
    folder = tree.state(".")
    try:
        return await in_thread(mapped.can_tell, folder)
    finally:
        os.close(folder)


async def _answer(line: Line, serving: trio.CancelScope) -> None:
    await line.serve()
    # It is unmounted: who asked for what is still under way waits for no answer.
    serving.deadline = trio.current_time() + _PATIENCE


async def _announce(mountpoint: str, tree: Tree, ready: Callable[[int], None]) -> None:
    """Once the tree answers, say so. In a thread, for it is we who answer."""
    found = await in_thread(os.stat, mountpoint, abandon_on_cancel=True, limiter=UNLIMITED)
    tree.device = found.st_dev
    ready(tree.device)


async def _end_on_signal(files: Passthrough, kernel: Kernel, builders: Builders, serving: trio.CancelScope) -> None:
    # That of a terminal that is closed is ignored by who was started by nohup.
    ending = [each for each in _ENDING if (each, signal.getsignal(each)) != (signal.SIGHUP, signal.SIG_IGN)]
    for each in ending:
        # As which they are restored when this ends: one that comes yet again would cut the rest of the end short.
        signal.signal(each, signal.SIG_IGN)
    with trio.open_signal_receiver(*ending) as signals:
        async for number in signals:
            log.info("%s: ending", signal.Signals(number).name)
            # While requests are answered: who waits for an answer can't be killed.
            await builders.close()
            with trio.move_on_after(_PATIENCE) as flushing:
                try:
                    await in_thread(_flush, files, kernel, abandon_on_cancel=True, limiter=UNLIMITED)
                except DriverError as failure:
                    log.warning("what the kernel has gathered was not written: %s", failure)
            if flushing.cancelled_caught:
                log.warning("what the kernel has gathered was not all written in %g s", _PATIENCE)
            pyfuse3.terminate()
            # One that is under way may wait for another that is no longer read.
            serving.deadline = trio.current_time() + _PATIENCE


def _flush(files: Passthrough, kernel: Kernel) -> None:
    """Let the kernel write what it has gathered for files that are still open."""
    for handle in list(files.handles.values()):
        if isinstance(handle, FileHandle) and handle.writing:
            try:
                kernel.forget(handle.node.ino)
            except OSError as failure:
                log.warning("pages of an open file were not written: %s", failure)


def _log(event: Event) -> None:
    level = logging.WARNING if event.kind in ("warning", "postponed") else logging.INFO
    log.log(level, "%s %s: %s", event.kind, event.subject, event.text)

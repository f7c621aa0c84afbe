"""The store behind the tree, for Python callers: import from here. It can do what the tree can, and no more: who uses
it takes the lock, so a store is served by one or the other. Calls that change something are async (trio); nothing is
told of files: they are written through a view of the driver, as the tree does.

    from zfsfs.driver import viewing
    from zfsfs.drivers import choose_driver
    from zfsfs.names import BuildId, BuildName, CacheName
    from zfsfs.store import Outcome, Store

    async def example(where: str) -> None:
        store = Store(choose_driver(where))
        await store.start()  # locks it, and recovers what a crash left
        try:
            me, one = (os.getuid(), os.getgid()), BuildId(b"one")
            build = await store.builds.start(BuildName(one), me, 0o755)
            with viewing(store.driver, build.dataset, writable=True) as root:
                os.mkdir("bin", dir_fd=root)
            await store.builds.publish(one)

            npm = CacheName(b"npm")
            await store.caches.create(npm, me, 0o755)
            session = await store.caches.open(npm, b"job7")
            with viewing(store.driver, session.dataset, writable=True) as root:
                os.mkdir("left-pad", dir_fd=root)
            assert await store.caches.release(session, changed=True) is Outcome.PUBLISHED
            await store.complete_deletes()
        finally:
            await store.close()

The errors are those of `zfsfs.errors`. `Store.run` tidies and destroys in the background, where a program runs on.
"""

from zfsfs.store.builds import Builds
from zfsfs.store.caches import Caches
from zfsfs.store.check import check, leftovers
from zfsfs.store.entries import BuildInfo, CacheInfo, FailedInfo, ResultInfo, Session
from zfsfs.store.events import Event, EventLog, Outcome
from zfsfs.store.policy import Policy, Publishers, Rules
from zfsfs.store.reaper import Waiting
from zfsfs.store.recovery import Action, RecoveryReport, carry_out, plan, warnings
from zfsfs.store.store import Store

__all__ = [
    "Action",
    "BuildInfo",
    "Builds",
    "CacheInfo",
    "Caches",
    "Event",
    "EventLog",
    "FailedInfo",
    "Outcome",
    "Policy",
    "Publishers",
    "RecoveryReport",
    "ResultInfo",
    "Rules",
    "Session",
    "Store",
    "Waiting",
    "carry_out",
    "check",
    "leftovers",
    "plan",
    "warnings",
]

"""Looking whether the storage works, in a thread: where it doesn't, the event loop may be waiting for it.

What ZFS's suspended pool is asked for waits, uninterruptibly, until somebody has cleared it. So as long as it is
known to be suspended nothing is asked of it. What was asked in the moment before waits; with the pool's
failmode=continue nearly nothing does.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import trio

from zfsfs.driver import Driver
from zfsfs.store.events import EventLog

log = logging.getLogger(__name__)

PAUSE = 0.2


def watching(driver: Driver, events: EventLog, seen: Callable[[str], None]) -> Callable[[], None]:
    """Say what is wrong with the storage as soon as it is, and '' when it is over: to `seen`, from the thread, to the
    log, and as an event as soon as one can be made. Returns what ends it. Call it from the event loop."""
    token = trio.lowlevel.current_trio_token()
    ended = threading.Event()

    def look() -> None:
        before = ""
        while not ended.wait(PAUSE):
            now = driver.trouble()
            if now == before:
                continue
            before, text = now, now or "the storage works again"
            seen(now)
            log.warning("%s", text)
            try:
                token.run_sync_soon(events.append, "warning", "storage", text)
            except trio.RunFinishedError:
                return

    threading.Thread(target=look, name="zfsfs-watch", daemon=True).start()
    return ended.set

"""Looking whether the storage works, in a thread: where it doesn't, the event loop may be waiting for it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import trio

from zfsfs.driver import Driver
from zfsfs.store.events import EventLog

log = logging.getLogger(__name__)

PAUSE = 1.0


def watching(driver: Driver, events: EventLog) -> Callable[[], None]:
    """Log what is wrong with the storage as soon as it is, and make an event of it as soon as one can be made; again
    when it is over. Returns what ends it. Call it from the event loop."""
    token = trio.lowlevel.current_trio_token()
    ended = threading.Event()

    def look() -> None:
        before = ""
        while not ended.wait(PAUSE):
            now = driver.trouble()
            if now == before:
                continue
            before, text = now, now or "the storage works again"
            log.warning("%s", text)
            try:
                token.run_sync_soon(events.append, "warning", "storage", text)
            except trio.RunFinishedError:
                return

    threading.Thread(target=look, name="zfsfs-watch", daemon=True).start()
    return ended.set

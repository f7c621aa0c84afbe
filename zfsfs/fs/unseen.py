"""What is written natively is written past the daemon: whether anything was, the storage tells where it can."""

from __future__ import annotations

import logging

from zfsfs.driver import Driver
from zfsfs.errors import ZfsfsError
from zfsfs.fs.area import Area
from zfsfs.names import Dataset
from zfsfs.threads import in_thread

log = logging.getLogger(__name__)


async def note(driver: Driver, area: Area, clone: Dataset) -> None:
    """An area is about to become native: note what was written until now, unless it counts as changed anyway."""
    if not area.may_have_changed:
        area.written = await _written(driver, clone, wait=False)


async def was_written(driver: Driver, area: Area, clone: Dataset) -> bool:
    """Whether anything may have been written since, in what nobody has natively any more. Raises OSError."""
    if area.written is None:
        return True
    await area.write_out()  # mapped pages
    return await _written(driver, clone, wait=True) != area.written


async def _written(driver: Driver, clone: Dataset, *, wait: bool) -> int | None:
    try:
        return await in_thread(lambda: driver.written(clone, wait=wait))
    except (ZfsfsError, OSError) as failure:
        log.warning("%s counts as changed: %s", clone, failure)
        return None

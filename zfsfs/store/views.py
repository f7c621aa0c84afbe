"""Letting go of what was looked into."""

from __future__ import annotations

import trio

from zfsfs.driver import View
from zfsfs.errors import DriverError
from zfsfs.threads import in_thread


async def close_view(view: View | None) -> None:
    """Close a view that nothing shows any more. In a thread: ZFS waits for a transaction group before it lets go."""
    if view is None:
        return
    with trio.CancelScope(shield=True):
        try:
            await in_thread(view.close)
        except DriverError:
            view.close()  # there is no thread to be had

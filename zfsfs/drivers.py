"""Which driver a store has."""

from __future__ import annotations

from zfsfs.driver import Driver


def choose_driver(store: str) -> Driver:
    """The driver for a store as a person names it: what begins with '/' or '.' is a directory, all else a dataset.

    Raises InvalidName, Unavailable.
    """
    # Here, not above: one of the two is not needed, and may not be installed.
    if store.startswith(("/", ".")):
        from zfsfs.directory.driver import DirectoryDriver

        return DirectoryDriver(store)
    from zfsfs.zfs.driver import ZfsDriver

    return ZfsDriver(store)

"""Looking into datasets through mounts that are in no mount table (fsopen(2), fsmount(2)).

Guarantees: a view costs one file descriptor and leaves nothing behind, however the process ends. What is open
beneath a detached mount keeps the mount's root and superblock alive, so the descriptor of the mount itself is not
kept: an ordinary directory descriptor takes its place.

All mounts of a dataset share one superblock. Whether a head may be written is therefore an attribute of each
mount. A read-only superblock (a snapshot's, or that of a head with readonly=on) says EBUSY to a second mount that
does not ask for just that.
"""

from __future__ import annotations

import errno
import os

from zfsfs import syscalls
from zfsfs.errors import InvalidName, Unavailable
from zfsfs.zfs.library import meaning

_ATTRIBUTES = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOATIME


class DetachedView:
    """A `zfsfs.driver.View`: owns the descriptor of a dataset's root."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def fd(self) -> int:
        """The root; -1 once closed."""
        return self._fd

    def close(self) -> None:
        """Let go; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def look_into(full: str, *, writable: bool) -> DetachedView:
    """The root of the head or snapshot with this full name. Raises what `mount` raises."""
    detached = mount(full, writable=writable)
    try:
        return DetachedView(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=detached))
    except OSError as error:
        raise meaning(error.errno or errno.EIO, full) from error
    finally:
        os.close(detached)


def mount(full: str, *, writable: bool) -> int:
    """A detached mount of the head or snapshot with this full name.

    Raises Missing; Busy while it is being destroyed or received into, or to write what has readonly=on and is viewed;
    InvalidName for a writable snapshot; Unavailable when the kernel does not know ZFS; DriverError EPERM without
    CAP_SYS_ADMIN.
    """
    snapshot = "@" in full
    if snapshot and writable:
        raise InvalidName(f"{full}: a snapshot can't be written")
    attributes = _ATTRIBUTES | (0 if writable else syscalls.MOUNT_ATTR_RDONLY)
    try:
        try:
            return syscalls.detached_mount("zfs", full, attributes, ("ro",) if snapshot else ())
        except OSError as error:
            if error.errno != errno.EBUSY or writable or snapshot:
                raise
            # readonly=on and viewed already. Not asked for at first: a head's superblock must stay writable.
            return syscalls.detached_mount("zfs", full, attributes, ("ro",))
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise Unavailable("the kernel does not know the filesystem zfs: `modprobe zfs`") from error
        raise meaning(error.errno or errno.EIO, full) from error

"""Mounting datasets over paths, in a mount namespace of one's own.

Guarantees
- What is mounted in a namespace of one's own shows in no other, and goes with the last process in it.
- A path is mounted over only if it is still the directory that it was when it was opened (device and inode number).
  No link is followed on the second way there.

A descriptor from before unshare(2) belongs to the namespace that was left, so nothing can be mounted on it or
cloned from it (EINVAL): the same directory has to be opened again in the new one.

Sources: mount_namespaces(7), user_namespaces(7), move_mount(2), open_tree(2).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import NamedTuple

from zfsfs import syscalls
from zfsfs.errors import MountError
from zfsfs.handover import Native

_PATH = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Spot(NamedTuple):
    """A directory, to be found again: where it is and what it was."""

    path: str
    identity: tuple[int, int]

    @classmethod
    def of(cls, fd: int) -> Spot:
        """The directory of a descriptor."""
        st = os.fstat(fd)
        return cls(os.readlink(f"/proc/self/fd/{fd}"), (st.st_dev, st.st_ino))

    def open(self) -> int:
        """It, in the mount namespace that we are in now. Raises MountError: it is another, or can't be reached."""
        try:
            fd = os.open(self.path, _PATH)
        except OSError as failure:
            raise MountError(f"{self.path} can't be reached: {os.strerror(failure.errno or 0)}") from None
        st = os.fstat(fd)
        if (st.st_dev, st.st_ino) != self.identity:
            os.close(fd)
            raise MountError(f"{self.path} is no longer the directory that it was")
        return fd


class Layer(NamedTuple):
    """A dataset and the directory that it shall lie over."""

    native: Native
    spot: Spot


def enter(layers: Sequence[Layer]) -> None:
    """Move this process, which has one thread, into a mount namespace of its own with all layers in their places.

    Who may not do that enters a user namespace, too, in which its user and group are what they were. The working
    directory is the same path as before. Raises MountError.
    """
    sources = [None if layer.native.detached else Spot.of(layer.native.fd) for layer in layers]
    try:
        here: str | None = os.getcwd()
    except OSError:
        here = None  # it has been removed
    try:
        _leave()
        syscalls.receive_mounts_only()
    except OSError as failure:
        raise MountError(f"there is no mount namespace for you: {failure.strerror}") from None
    for layer, source in zip(layers, sources, strict=True):
        attach(layer.native, layer.spot, source)
    if here is not None:
        try:
            os.chdir(here)
        except OSError as failure:
            raise MountError(f"the working directory {here} can't be entered: {failure.strerror}") from None


def _leave() -> None:
    try:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    except PermissionError:
        uid, gid = os.geteuid(), os.getegid()
        syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWUSER)
        # Groups stay what they are; that they can't be dropped is what the kernel asks for (user_namespaces(7)).
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)


def attach(native: Native, spot: Spot, source: Spot | None = None) -> None:
    """Mount a dataset over a directory, in the namespace that we are in. `source` is the directory to bind, where the
    daemon could make no mount. Raises MountError."""
    target = spot.open()
    try:
        mount = native.fd if source is None else _bindable(source, read_only=native.read_only)
        try:
            syscalls.move_mount(mount, target)
        finally:
            if mount != native.fd:
                os.close(mount)
    except OSError as failure:
        why = "you may not mount there" if failure.errno == errno.EPERM else failure.strerror
        raise MountError(f"{spot.path} can't be mounted over: {why}") from None
    finally:
        os.close(target)


def bind(source: str, target: str) -> None:
    """Show a directory of our own namespace at another path in it, too. Raises MountError."""
    try:
        fd = os.open(source, _PATH)
        try:
            mount = syscalls.clone_mount(fd)
        finally:
            os.close(fd)
        try:
            place = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syscalls.move_mount(mount, place)
            finally:
                os.close(place)
        finally:
            os.close(mount)
    except OSError as failure:
        raise MountError(f"{target} can't show {source}: {failure.strerror}") from None


def _bindable(source: Spot, *, read_only: bool) -> int:
    fd = source.open()
    try:
        return _cloned(fd, read_only=read_only)
    finally:
        os.close(fd)


def mountable(directory: int, *, read_only: bool) -> Native:
    """A directory as something to mount: a detached mount of it, or itself without the privilege to make one. Raises
    OSError."""
    try:
        return Native(_cloned(directory, read_only=read_only), detached=True, read_only=read_only)
    except PermissionError:
        return Native(os.dup(directory), detached=False, read_only=read_only)


def _cloned(directory: int, *, read_only: bool) -> int:
    mount = syscalls.clone_mount(directory)
    # Not NOATIME: how the mount beneath keeps access times is locked in a user namespace (mount_setattr(2), EPERM).
    try:
        syscalls.set_mount_attributes(mount, attributes(read_only=read_only))
    except BaseException:
        os.close(mount)
        raise
    return mount


def attributes(*, read_only: bool) -> int:
    """What every native mount is made with."""
    always = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV
    return always | (syscalls.MOUNT_ATTR_RDONLY if read_only else 0)

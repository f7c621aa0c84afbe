"""System calls that Python does not have, through ctypes: thin, typed, and raising OSError with the call's name.

Sources: renameat2(2), fsopen(2), fsconfig(2), fsmount(2), move_mount(2), ioctl_ficlone(2), umount2(2), statx(2).
"""

from __future__ import annotations

import ctypes
import fcntl
import os

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
MNT_DETACH = 2
_AT_EMPTY_PATH = 0x1000
FICLONE = 0x40049409

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # the same on every architecture (asm-generic)
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_FSMOUNT_CLOEXEC = 1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOATIME = 0x10

_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.fchownat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.syscall.restype = ctypes.c_long


def _check(result: int, call: str, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2): rename with RENAME_NOREPLACE or RENAME_EXCHANGE."""
    _check(_libc.renameat2(old_fd, old, new_fd, new, flags), "renameat2", old)


def fchownat(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) with AT_EMPTY_PATH: of what an O_PATH descriptor stands for, links too; -1 leaves as it is."""
    _check(_libc.fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, _AT_EMPTY_PATH), "fchownat")


def umount(path: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(path, flags), "umount2", path)


def syncfs(fd: int) -> None:
    """syncfs(2): everything of the filesystem that `fd` lies on is on stable storage."""
    _check(_libc.syncfs(fd), "syncfs")


def reflink(source: int, target: int) -> None:
    """ioctl_ficlone(2): let `target` share all of `source`'s contents; OSError where the filesystem can't."""
    fcntl.ioctl(target, FICLONE, source)


def detached_mount(kind: str, source: str, attributes: int, flags: tuple[str, ...] = ()) -> int:
    """fsopen, fsconfig and fsmount: the root of a mount that is in no namespace, as a descriptor like O_PATH.

    It lives as long as the descriptor, or anything opened beneath it. Raises OSError as mount(2) would.
    """
    context = _check(_libc.syscall(_SYS_FSOPEN, kind.encode(), ctypes.c_uint(_FSOPEN_CLOEXEC)), "fsopen", kind)
    try:
        _fsconfig(context, _FSCONFIG_SET_STRING, b"source", source.encode())
        for flag in flags:
            _fsconfig(context, _FSCONFIG_SET_FLAG, flag.encode(), None)
        _fsconfig(context, _FSCONFIG_CMD_CREATE, None, None)
        return _check(
            _libc.syscall(_SYS_FSMOUNT, context, ctypes.c_uint(_FSMOUNT_CLOEXEC), ctypes.c_uint(attributes)),
            "fsmount",
            source,
        )
    finally:
        os.close(context)


def _fsconfig(context: int, command: int, key: bytes | None, value: bytes | None) -> None:
    result = _libc.syscall(_SYS_FSCONFIG, context, ctypes.c_uint(command), key, value, 0)
    _check(result, "fsconfig", value)

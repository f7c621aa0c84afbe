"""System calls that Python does not have, through ctypes: thin, typed, and raising OSError with the call's name.

Sources: renameat2(2), getdents64(2), fsopen(2), fsconfig(2), fsmount(2), move_mount(2), ioctl_ficlone(2), umount2(2),
statx(2), statfs(2), open_tree(2), openat2(2), mount_setattr(2), mount(2), unshare(2), ptrace(2),
execvp(3).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Sequence
from typing import NoReturn

_libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_STATX_DONT_SYNC = 0x4000
_STATX_INO = 0x100
FICLONE = 0x40049409
ZFS_MAGIC = 0x2FC12FC1

_SYS_FSOPEN, _SYS_FSCONFIG, _SYS_FSMOUNT = 430, 431, 432  # the same on every architecture (asm-generic)
_FSOPEN_CLOEXEC = 1
_FSCONFIG_SET_FLAG, _FSCONFIG_SET_STRING, _FSCONFIG_CMD_CREATE = 0, 1, 6
_FSMOUNT_CLOEXEC = 1
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOATIME = 0x10
_MOUNT_ATTR_ATIME = 0x70
_MOUNT_ATTR_IDMAP = 0x100000
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH, _MOVE_MOUNT_T_EMPTY_PATH = 0x4, 0x40
_SYS_OPENAT2, _RESOLVE_CACHED = 437, 0x20
_RESOLVE_NO_XDEV, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x01, 0x04, 0x08
_BENEATH = struct.pack(
    "=QQQ", os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
)
# Of what is no directory it then says so, which is all that is wanted, and opens nothing.
_IF_CACHED = struct.pack("=QQQ", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, 0, _RESOLVE_CACHED)
#: So many names of any length are a path that is short enough.
_NAMES = 15
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_SLAVE = 0x4000, 0x80000

_DIRENT64 = struct.Struct(
    "=QqH"
)  # inode, offset of the next, length of the record; a byte of type, and the name from 19 on

_libc.renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.fchownat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint, ctypes.c_uint, ctypes.c_int)
_libc.getdents64.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_libc.getdents64.restype = ctypes.c_ssize_t
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)
_libc.statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
_libc.syscall.restype = ctypes.c_long
# It waits for nothing, so that giving up Python's lock meanwhile would only cost.
_if_cached = ctypes.PyDLL(None, use_errno=True).syscall
_if_cached.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_if_cached.restype = ctypes.c_long
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_void_p)

_libc.execvp.argtypes = (ctypes.c_char_p, ctypes.c_void_p)
_libc.ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_libc.ptrace.restype = ctypes.c_long

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PTRACE_SEIZE, _PTRACE_INTERRUPT = 0x4206, 0x4207
#: For os.waitpid: threads, too.
WALL = 0x40000000


def _check(result: int, call: str, path: object = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}", path)
    return result


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0) -> None:
    """renameat2(2): rename with RENAME_NOREPLACE, RENAME_EXCHANGE or RENAME_WHITEOUT."""
    _check(_libc.renameat2(old_fd, old, new_fd, new, flags), "renameat2", old)


def fchownat(fd: int, uid: int, gid: int) -> None:
    """fchownat(2) with AT_EMPTY_PATH: of what an O_PATH descriptor stands for, links too; -1 leaves as it is."""
    _check(_libc.fchownat(fd, b"", uid & 0xFFFFFFFF, gid & 0xFFFFFFFF, _AT_EMPTY_PATH), "fchownat")


def directory_entries(fd: int, room: int = 1 << 15) -> list[tuple[bytes, int, int]]:
    """getdents64(2): the next entries of an open directory, each with the offset that its successor has (lseek(2)
    goes back there, whatever changes meanwhile) and its inode number; none at the end."""
    buffer = bytearray(room)
    space = (ctypes.c_char * room).from_buffer(buffer)
    size = _check(_libc.getdents64(fd, space, room), "getdents64")
    found, at = [], 0
    while at < size:
        number, following, length = _DIRENT64.unpack_from(buffer, at)
        found.append((bytes(buffer[at + 19 : buffer.index(0, at + 19)]), following, number))
        at += length
    return found


def is_cached(folder: int, name: bytes) -> bool:
    """openat2(2) with RESOLVE_CACHED: whether the kernel knows by itself what is of that name (or at the end of that
    path) in a directory, or that nothing is. Filesystems that want to be asked each time say no, always; ext4, tmpfs
    and ZFS 2.3 don't."""
    fd = _if_cached(_SYS_OPENAT2, folder, name, _IF_CACHED, len(_IF_CACHED))
    if fd >= 0:
        os.close(fd)
        return True
    return ctypes.get_errno() != errno.EAGAIN


def open_beneath(folder: int, path: bytes) -> int:
    """openat2(2) with RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS and RESOLVE_NO_XDEV: an O_PATH descriptor of what is at a
    path from a directory on, over no link and no other mount."""
    result = _libc.syscall(_SYS_OPENAT2, folder, path, _BENEATH, ctypes.c_size_t(len(_BENEATH)))
    return _check(result, "openat2", path)


def descend(folder: int, names: Sequence[bytes]) -> int:
    """An O_PATH descriptor of the directory that is found from another by these names, each in the one before, over
    no link and no other mount."""
    at = os.dup(folder)
    for first in range(0, len(names), _NAMES):
        path = b"/".join((*names[first : first + _NAMES], b"."))
        try:
            following = open_beneath(at, path)
        finally:
            os.close(at)
        at = following
    return at


def umount(path: bytes, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_libc.umount2(path, flags), "umount2", path)


def syncfs(fd: int) -> None:
    """syncfs(2): everything of the filesystem that `fd` lies on is on stable storage."""
    _check(_libc.syncfs(fd), "syncfs")


def filesystem_magic(fd: int) -> int:
    """fstatfs(2): the number that says of what type the filesystem is on which `fd` lies."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.fstatfs(fd, buffer), "fstatfs")
    magic: int = struct.unpack_from("@l", buffer)[0]
    return magic


def identity(path: str) -> tuple[int, int]:
    """statx(2) with AT_STATX_DONT_SYNC: device and inode number, as far as the kernel knows them by itself. Whoever
    serves the filesystem is not asked, so it can't keep us waiting."""
    buffer = ctypes.create_string_buffer(256)
    _check(_libc.statx(_AT_FDCWD, os.fsencode(path), _AT_STATX_DONT_SYNC, _STATX_INO, buffer), "statx", path)
    major, minor = struct.unpack_from("=II", buffer, 136)
    ino: int = struct.unpack_from("=Q", buffer, 32)[0]
    return os.makedev(major, minor), ino


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


def clone_mount(fd: int = _AT_FDCWD) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: the directory `fd`, or the working directory, as the root of a detached
    mount, as `detached_mount`."""
    flags = ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH)
    return _check(_libc.syscall(_SYS_OPEN_TREE, fd, b"", flags), "open_tree")


def set_mount_attributes(mount: int, attributes: int, user_namespace: int = -1) -> None:
    """mount_setattr(2): set attributes of a mount; with the descriptor of a user namespace it is mapped by that."""
    mapped = _MOUNT_ATTR_IDMAP if user_namespace >= 0 else 0
    # How access times are kept is a number, not a set of flags: it is cleared to be set.
    clear = _MOUNT_ATTR_ATIME if attributes & MOUNT_ATTR_NOATIME else 0
    wanted = struct.pack("=QQQQ", attributes | mapped, clear, 0, max(user_namespace, 0))
    flags = ctypes.c_uint(_AT_EMPTY_PATH)
    result = _libc.syscall(_SYS_MOUNT_SETATTR, mount, b"", flags, wanted, ctypes.c_size_t(len(wanted)))
    _check(result, "mount_setattr")


def move_mount(mount: int, target: int) -> None:
    """move_mount(2): attach a detached mount over the directory that the descriptor `target` stands for."""
    flags = ctypes.c_uint(_MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)
    _check(_libc.syscall(_SYS_MOVE_MOUNT, mount, b"", target, b"", flags), "move_mount")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def receive_mounts_only() -> None:
    """mount(2) with MS_REC and MS_SLAVE: what is mounted from here on in this namespace shows in no other."""
    _check(_libc.mount(b"none", b"/", None, _MS_REC | _MS_SLAVE, None), "mount", "/")


def execvp(command: Sequence[str]) -> NoReturn:
    """execvp(3), which, unlike Python's own, has the shell run a file that is of no other format, as shells do."""
    words = [os.fsencode(word) for word in command]
    _libc.execvp(words[0], (ctypes.c_char_p * (len(words) + 1))(*words))
    raise OSError(ctypes.get_errno(), f"execvp: {os.strerror(ctypes.get_errno())}", command[0])


def adopt_orphans() -> None:
    """prctl(2) with PR_SET_CHILD_SUBREAPER: descendants whose parent has died become children of this process."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def die_with_parent(number: int) -> None:
    """prctl(2) with PR_SET_PDEATHSIG: get a signal when the thread that made this process ends."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0), "prctl")


def ptrace_seize(thread: int) -> None:
    """ptrace(2): let the calling thread trace another one. That one's end is then ours to wait for."""
    _check(_libc.ptrace(_PTRACE_SEIZE, thread, None, None), "ptrace")


def ptrace_interrupt(thread: int) -> None:
    """ptrace(2): interrupt a thread that the calling one traces."""
    _check(_libc.ptrace(_PTRACE_INTERRUPT, thread, None, None), "ptrace")

"""May a user do something with a directory, where the kernel can't be asked: mode bits and ACL decide.

Sources: acl(5) on the check algorithm, and the kernel's posix_acl_xattr.h on the attribute's format.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Collection

_ACL = "system.posix_acl_access"
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20

READ = os.R_OK | os.X_OK
WRITE = os.W_OK | os.X_OK


def permits(directory: int, wanted: int, uid: int, groups: Collection[int]) -> bool:
    """Whether a user with these groups may do all of `wanted` (R_OK, W_OK, X_OK) in the directory with this
    descriptor."""
    if uid == 0:
        return True
    status = os.fstat(directory)
    try:
        acl = os.getxattr(directory, _ACL)
    except OSError:
        acl = b""
    return decide(status.st_uid, status.st_gid, status.st_mode, acl, wanted, uid, groups)


def decide(owner: int, group: int, mode: int, acl: bytes, wanted: int, uid: int, groups: Collection[int]) -> bool:
    """The decision itself."""
    if uid == owner:
        return _has(stat.S_IMODE(mode) >> 6, wanted)
    entries = list(struct.iter_unpack("<HHI", acl[4:])) if len(acl) % 8 == 4 else []
    if not entries:
        return _has(mode >> 3 if group in groups else mode, wanted)
    mask = next((permission for tag, permission, _ in entries if tag == _MASK), 7)
    for tag, permission, who in entries:
        if tag == _USER and who == uid:
            return _has(permission & mask, wanted)
    mine = [
        permission
        for tag, permission, who in entries
        if (tag == _GROUP_OBJ and group in groups) or (tag == _GROUP and who in groups)
    ]
    if mine:
        return any(_has(permission & mask, wanted) for permission in mine)
    return _has(mode, wanted)


def _has(bits: int, wanted: int) -> bool:
    return bits & wanted == wanted

"""Mode bits and ACLs decide as the kernel does."""

from __future__ import annotations

import struct

import pytest

from zfsfs.fs.permission import READ, WRITE, decide

OWNER, GROUP = 10, 20
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", *entry)
    for entry in (
        (0x01, 7, 0xFFFFFFFF),
        (0x02, 7, 11),  # user 11: all, cut to r-x by the mask
        (0x02, 0, 12),  # user 12: nothing
        (0x04, 5, 0xFFFFFFFF),
        (0x08, 0, 21),  # group 21: nothing
        (0x10, 5, 0xFFFFFFFF),
        (0x20, 0, 0xFFFFFFFF),
    )
)


@pytest.mark.parametrize(
    ("mode", "acl", "uid", "groups", "read", "write"),
    [
        (0o755, b"", OWNER, {1}, True, True),
        (0o055, b"", OWNER, {GROUP}, False, False),  # the owner's own bits, whatever others may
        (0o750, b"", 99, {1, GROUP}, True, False),
        (0o705, b"", 99, {GROUP}, False, False),  # a member of the group is no other
        (0o705, b"", 99, {1}, True, False),
        (0o777, b"", 99, {1}, True, True),
        (0o744, b"", 99, {1}, False, False),  # without x it can't be entered
        (0o750, ACL, 11, {1}, True, False),
        (0o750, ACL, 12, {GROUP}, False, False),
        (0o750, ACL, 99, {GROUP, 21}, True, False),
        (0o750, ACL, 99, {21}, False, False),
        (0o750, ACL, 99, {1}, False, False),
        (0o750, b"nonsense", 99, {GROUP}, True, False),
    ],
)
def test_who_may(mode, acl, uid, groups, read, write):
    assert decide(OWNER, GROUP, mode, acl, READ, uid, groups) is read
    assert decide(OWNER, GROUP, mode, acl, WRITE, uid, groups) is write

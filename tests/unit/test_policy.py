"""The rules of caches: what a person writes, and what is made of what was stored."""

from __future__ import annotations

import pytest

from zfsfs.store import Policy, Publishers, Rules
from zfsfs.store.policy import stored_rules


@pytest.mark.parametrize(
    ("text", "user", "groups", "may"),
    [
        ("*", 1000, (), True),
        ("root", 0, (), True),
        ("root", 1000, (0,), False),
        ("@root", 1000, (0, 5), True),
        ("root, 1000", 1000, (), True),
        ("@1000", 1000, (), False),
        ("@1000,7", 8, (1000,), True),
    ],
)
def test_publishers(text, user, groups, may):
    assert Publishers.of(text).include(user, groups) is may


@pytest.mark.parametrize("text", ["", ",", "root,", "no-such-user", "@no-such-group", "**", "-1", "4294967296", "@"])
def test_what_no_publishers_are(text):
    with pytest.raises(ValueError, match="users and"):
        Publishers.of(text)


def test_who_is_gone_publishes_nothing():
    gone = Publishers.of("no-such-user,7", strict=False)
    assert (gone.everybody, gone.users, gone.text) == (False, {7}, "no-such-user,7")


def test_what_is_not_understood_is_read_strictly():
    assert stored_rules(None, None) == Rules()
    assert stored_rules("read-only", None).policy is Policy.READ_ONLY
    assert stored_rules("sometimes", None).policy is Policy.NEVER
    assert stored_rules("always", ",").policy is Policy.NEVER

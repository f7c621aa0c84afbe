"""What becomes of a cache's sessions, and whose are published: the rules that a cache has.

A rule is stored as a user property of the cache's dataset (see `layout`). It is the cache's, not a session's: a
release takes it along to the clone that becomes the cache.
"""

from __future__ import annotations

import enum
import grp
import pwd
from collections.abc import Collection
from dataclasses import dataclass

#: The longest list of publishers.
_LONGEST = 1024


class Policy(enum.Enum):
    """What becomes of a session that has changed something, when it closes.

    ALWAYS: published, by who is first. ON_SUCCESS: the same, if success was said. NEVER: gone. LOCKED: as ALWAYS, and
    there is one session at a time. READ_ONLY: nothing can be changed.
    """

    ALWAYS = "always"
    ON_SUCCESS = "on-success"
    NEVER = "never"
    LOCKED = "locked"
    READ_ONLY = "read-only"

    @classmethod
    def of(cls, text: str) -> Policy:
        """The policy that a person has written. Raises ValueError with what was expected."""
        try:
            return cls(text)
        except ValueError:
            raise ValueError("'always', 'on-success', 'never', 'locked' or 'read-only'") from None


@dataclass(frozen=True, slots=True)
class Publishers:
    """Whose sessions are published. `text` is what a person has written: '*', or users and (after '@') groups."""

    text: str = "*"
    users: frozenset[int] = frozenset()
    groups: frozenset[int] = frozenset()

    @property
    def everybody(self) -> bool:
        """Whether there is no restriction."""
        return self.text == "*"

    def include(self, uid: int, groups: Collection[int]) -> bool:
        """Whether a user with these groups is among them."""
        return self.everybody or uid in self.users or not self.groups.isdisjoint(groups)

    @classmethod
    def of(cls, text: str, *, strict: bool = True) -> Publishers:
        """The publishers that a person has written, such as 'root,@ci,1000'. Who is not known (any more) is a
        ValueError that says what was expected; if not `strict` he is left out."""
        if text == "*":
            return cls()
        users, groups = set(), set()
        words = [word.strip() for word in text.split(",")]
        if len(text) > _LONGEST or not all(words):
            raise ValueError("'*', or users and @groups with commas between them")
        for word in words:
            try:
                if word.startswith("@"):
                    groups.add(_number(word[1:]) if word[1:].isdigit() else grp.getgrnam(word[1:]).gr_gid)
                else:
                    users.add(_number(word) if word.isdigit() else pwd.getpwnam(word).pw_uid)
            except (KeyError, ValueError):
                if strict:
                    raise ValueError(f"users and groups that exist; {word!r} doesn't") from None
        return cls(",".join(words), frozenset(users), frozenset(groups))


def _number(text: str) -> int:
    if not text.isascii() or len(text) > 10 or int(text) >= 1 << 32:
        raise ValueError(text)
    return int(text)


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of a cache."""

    policy: Policy = Policy.ALWAYS
    publishers: Publishers = Publishers()


def stored_rules(policy: str | None, publishers: str | None) -> Rules:
    """The rules that were stored; of what can't be understood the strictest reading."""
    try:
        chosen = Policy.ALWAYS if policy is None else Policy.of(policy)
        return Rules(chosen, Publishers() if publishers is None else Publishers.of(publishers, strict=False))
    except ValueError:
        return Rules(Policy.NEVER)

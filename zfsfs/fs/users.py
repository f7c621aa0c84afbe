"""How much of what all share an ordinary user may have: builds, sessions, open files, calls that wait. Root may have
any number.

Guarantees: whatever one user opens or begins, the daemon has descriptors left for the others. Who is refused is told
so by an errno, and everybody by an event that names the limit.
"""

from __future__ import annotations

import errno
import pwd
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from zfsfs.errors import Refused

#: Open files and directories in .zfsfs and of groups: each keeps its contents in memory.
MOST_OWN = 256
#: Calls that wait for a build's end or for their turn in a locked cache: each keeps a task.
MOST_WAITING = 500


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that is counted: what the refusal says, and its errno."""

    text: str
    option: str
    errno: int


BUILD = Kind("builds that run", "--max-builds", errno.EDQUOT)
SESSION = Kind("open sessions of caches", "--max-sessions", errno.EDQUOT)
FILE = Kind("open files", "the daemon's limit of open files", errno.EMFILE)
OWN = Kind("open files of .zfsfs", "no option", errno.EMFILE)
WAIT = Kind("calls that wait", "no option", errno.EAGAIN)


class Users:
    """What each user has. `complain` is told who was refused what, once until the user has less."""

    def __init__(self, most: dict[Kind, int], complain: Callable[[str, str], object]) -> None:
        self._most = most
        self._complain = complain
        self._counts: dict[Kind, Counter[int]] = {kind: Counter() for kind in most}
        self._told: set[tuple[Kind, int]] = set()

    def take(self, kind: Kind, uid: int) -> None:
        """Count one more. Raises Refused with the kind's errno."""
        if not uid:
            return
        counts = self._counts[kind]
        if counts[uid] >= self._most[kind]:
            text = f"user {_name(uid)} has {counts[uid]} {kind.text}, and may have no more ({kind.option})"
            if (kind, uid) not in self._told:
                self._told.add((kind, uid))
                self._complain(_name(uid), text)
            raise Refused(text, kind.errno)
        counts[uid] += 1

    def taking(self, kind: Kind, uid: int) -> AbstractContextManager[None]:
        """Count one more, and not after all if the block fails. Raises as `take`."""
        return self._taking(kind, uid) if uid else nullcontext()

    @contextmanager
    def _taking(self, kind: Kind, uid: int) -> Iterator[None]:
        self.take(kind, uid)
        try:
            yield
        except BaseException:
            self.give(kind, uid)
            raise

    def give(self, kind: Kind, uid: int) -> None:
        """Count one less."""
        if not uid:
            return
        counts = self._counts[kind]
        counts[uid] -= 1
        self._told.discard((kind, uid))
        if not counts[uid]:
            del counts[uid]


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)

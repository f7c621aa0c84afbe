"""Names of builds, caches, sessions and datasets.

Guarantees: an object of these types is valid; there is no way to make one that isn't. `Dataset.parse` and
`CacheName.from_dataset` are the inverses of what makes the names, so a dataset that we did not make has no type.

Which characters a dataset may have is zfs(8)'s rule (`zfs_namecheck.c`): letters, digits, '-', '_', '.', ':'
and space, no component '.' or '..', and full names of at most 255 bytes. '%' is refused there, so a cache name's
other bytes are written as ':' and two hex digits.
"""

from __future__ import annotations

import errno
import re
from dataclasses import dataclass

from zfsfs.errors import InvalidName

#: Longest full name, snapshot included, in bytes (ZFS_MAX_DATASET_NAME_LEN - 1). A channel program that lists
#: datasets with names of 254 bytes or more brings OpenZFS 2.3's kernel down, so ours have some room left below it.
LONGEST_FULL_NAME = 255
MAX_FULL_NAME = 250
#: Room that the longest snapshot name of ours ('@' included) takes behind a dataset's name.
SNAPSHOT_ROOM = 16
NAME_MAX = 255
#: The directory of failed builds among the others.
FAILED_BUILDS = b".failed"
#: How the component of what was given up begins, where it could not be moved to cache-tmp.
GONE = ".gone-"

_COMPONENT = re.compile(rb"[A-Za-z0-9_.: -]+\Z")
_SNAPSHOT = re.compile(r"[A-Za-z0-9_.: -]+\Z")
_BUILDER = re.compile(rb"[A-Za-z0-9_.-]{1,64}\Z")
_PLAIN = re.compile(rb"[A-Za-z0-9._-]\Z")
_POOL = re.compile(r"[A-Za-z][A-Za-z0-9_.: -]*(/[A-Za-z0-9_.: -]+)*\Z")


def shown(name: bytes) -> str:
    """A name as it is safe to print on one line: quotes and escapes where they are needed."""
    text = name.decode("utf-8", "backslashreplace")
    return repr(text) if not text.isprintable() or text != text.strip() or not text else text


def one_line(text: str) -> str:
    """A text that may hold anything as it is safe to print on one line, whoever wrote parts of it."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _file_name(name: bytes, what: str) -> bytes:
    if len(name) > NAME_MAX:
        raise InvalidName(f"{what} has {len(name)} bytes; {NAME_MAX} is the most", errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise InvalidName(f"{what} {shown(name)} is no file name")
    return name


@dataclass(frozen=True, slots=True)
class BuildId:
    """The name of a build and of the result that it becomes: one dataset component, no '@'."""

    name: bytes

    def __post_init__(self) -> None:
        _file_name(self.name, "id")
        if not _COMPONENT.match(self.name):
            raise InvalidName(
                f"id {shown(self.name)}: a dataset's name is of letters, digits, '_', '.', ':', '-' and space"
            )
        if self.name.startswith(GONE.encode()):
            raise InvalidName(f"id {shown(self.name)}: '{GONE}' is how what was deleted is called")

    def __str__(self) -> str:
        return self.name.decode("ascii")


@dataclass(frozen=True, slots=True)
class BuildName:
    """What a directory under builds/ is called: `[BUILDER+]ID[@BASE]`. No id has a '+' in it."""

    id: BuildId
    base: BuildId | None = None
    builder: str = ""

    @classmethod
    def parse(cls, name: bytes) -> BuildName:
        """Split it; raises InvalidName."""
        _file_name(name, "build")
        before, plus, rest = name.rpartition(b"+")
        ident, at, base = rest.partition(b"@")
        if ident == FAILED_BUILDS:
            raise InvalidName(f"{shown(ident)} is where failed builds are kept, and no id")
        return cls(BuildId(ident), BuildId(base) if at else None, builder_name(before) if plus else "")

    def __bytes__(self) -> bytes:
        name = self.id.name if self.base is None else self.id.name + b"@" + self.base.name
        return self.builder.encode("ascii") + b"+" + name if self.builder else name


def builder_name(name: bytes) -> str:
    """The name of a builder: letters, digits, '_', '.' and '-'. Raises InvalidName."""
    if not _BUILDER.match(name):
        raise InvalidName(f"builder {shown(name)}: a builder's name is of letters, digits, '_', '.' and '-'")
    return name.decode("ascii")


@dataclass(frozen=True, slots=True)
class CacheName:
    """The name of a cache: any file name without '@'."""

    name: bytes

    def __post_init__(self) -> None:
        _file_name(self.name, "cache")
        if b"@" in self.name:
            raise InvalidName(f"cache {shown(self.name)}: '@' stands between a cache and a label")

    def escaped(self) -> str:
        """The dataset component: 'c-', then each byte as it is or as ':' and two hex digits. One-to-one."""
        return "c-" + "".join(chr(byte) if _PLAIN.match(bytes([byte])) else f":{byte:02x}" for byte in self.name)

    @classmethod
    def from_escaped(cls, text: str) -> CacheName | None:
        """The cache that a dataset component names; None when we did not make it."""
        if not text.startswith("c-"):
            return None
        try:
            raw = re.sub(rb":([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text[2:].encode("ascii"))
            cache = cls(raw)
        except (InvalidName, UnicodeEncodeError):
            return None
        return cache if cache.escaped() == text else None

    def __str__(self) -> str:
        return shown(self.name)


@dataclass(frozen=True, slots=True)
class SessionName:
    """What a directory under caches/ is called: `NAME` (the shared session) or `NAME@LABEL`."""

    cache: CacheName
    label: bytes | None = None

    @classmethod
    def parse(cls, name: bytes) -> SessionName:
        """Split `NAME[@LABEL]`; a label is any non-empty rest. Raises InvalidName."""
        _file_name(name, "cache")
        cache, at, label = name.partition(b"@")
        if at and not label:
            raise InvalidName(f"cache {shown(name)}: no label behind '@'")
        return cls(CacheName(cache), label if at else None)

    def __bytes__(self) -> bytes:
        return self.cache.name if self.label is None else self.cache.name + b"@" + self.label

    def __str__(self) -> str:
        return shown(bytes(self))


@dataclass(frozen=True, slots=True, order=True)
class Dataset:
    """A dataset of the store, by its name relative to POOL: one of the groups or a direct child of one.

    `group` is 'state', 'result', 'cache' or 'cache-tmp'; `leaf` is the child's component, '' for the group.
    """

    group: str
    leaf: str = ""

    GROUPS = ("state", "result", "cache", "cache-tmp")

    def __post_init__(self) -> None:
        if self.group not in self.GROUPS or (self.group == "state" and self.leaf):
            raise InvalidName(f"{self.group}/{self.leaf} is no dataset of the store")
        raw = self.leaf.encode("utf-8", "surrogateescape")
        if self.leaf and (not _COMPONENT.match(raw) or self.leaf in (".", "..")):
            raise InvalidName(f"{self.leaf!r} is no dataset component")

    @classmethod
    def parse(cls, text: str) -> Dataset | None:
        """The dataset that a relative name means; None for one that is not ours (deeper, another group)."""
        group, _, leaf = text.partition("/")
        try:
            return cls(group, leaf)
        except InvalidName:
            return None

    def __str__(self) -> str:
        return f"{self.group}/{self.leaf}" if self.leaf else self.group


@dataclass(frozen=True, slots=True, order=True)
class Snapshot:
    """A snapshot of a dataset of the store."""

    dataset: Dataset
    name: str

    def __post_init__(self) -> None:
        if not _SNAPSHOT.match(self.name) or self.name in (".", "..") or len(self.name) > NAME_MAX:
            raise InvalidName(f"{self.name!r} is no snapshot name")

    def __str__(self) -> str:
        return f"{self.dataset}@{self.name}"


@dataclass(frozen=True, slots=True)
class PoolName:
    """The dataset that holds the store: a pool or any dataset in one."""

    name: str

    def __post_init__(self) -> None:
        parts = self.name.split("/")
        if not _POOL.match(self.name) or "." in parts or ".." in parts:
            raise InvalidName(f"{self.name!r} is no name of a pool or dataset")

    def full(self, what: Dataset | Snapshot) -> str:
        """The full name. Raises InvalidName (ENAMETOOLONG) when ZFS would have no room for it."""
        full = f"{self.name}/{what}"
        # A snapshot may be somebody else's, and is met all the same.
        most = MAX_FULL_NAME - SNAPSHOT_ROOM if isinstance(what, Dataset) else LONGEST_FULL_NAME
        if len(full) > most:
            raise InvalidName(f"{full}: {most} bytes are the most", errno.ENAMETOOLONG)
        return full


def result(build: BuildId) -> Dataset:
    """The dataset of a result, from the start of its build on."""
    return Dataset("result", str(build))


def build_of(dataset: Dataset) -> BuildId | None:
    """The build or result that a dataset of the group result is; None for what was given up."""
    if dataset.group != "result" or not dataset.leaf or dataset.leaf.startswith(GONE):
        return None
    return BuildId(dataset.leaf.encode("ascii"))


def cache(name: CacheName) -> Dataset:
    """The dataset of a cache's published version."""
    return Dataset("cache", name.escaped())


def cache_tmp(number: int, name: CacheName) -> Dataset:
    """The dataset of a session, or of a head that a release has replaced."""
    return Dataset("cache-tmp", f"{number}-{name.escaped()}")


def cache_of(dataset: Dataset) -> CacheName | None:
    """The cache that a dataset of the groups cache and cache-tmp belongs to."""
    if dataset.group == "cache":
        return CacheName.from_escaped(dataset.leaf)
    number, dash, rest = dataset.leaf.partition("-")
    if dataset.group == "cache-tmp" and dash and number.isascii() and number.isdigit():
        return CacheName.from_escaped(rest)
    return None


def tmp_number(dataset: Dataset) -> int:
    """The number of a dataset in cache-tmp, -1 when it is not one of ours."""
    return int(dataset.leaf.partition("-")[0]) if cache_of(dataset) and dataset.group == "cache-tmp" else -1

"""The configuration of a mount: a TOML file, by default /etc/zfsfs/POOL.toml ('/' in POOL written as '-').

Whatever it can hold stands in the tables of this module, with what it means; `explanation` is what --help prints.
A key that there is not, or a value of another kind, is a UsageError that names the file and the key.
"""

from __future__ import annotations

import difflib
import enum
import grp
import math
import os
import pwd
import re
import resource
import shlex
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from zfsfs.errors import InvalidName, UsageError
from zfsfs.names import CacheName, builder_name
from zfsfs.store import Policy, Publishers

#: Bytes of a log, where nothing else is said.
LOG_SIZE = 1 << 20
_SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TIMES = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


class Publish(enum.Enum):
    """What becomes of a session that a builder used."""

    ALWAYS = "always"
    ON_SUCCESS = "on-success"
    NEVER = "never"


@dataclass(frozen=True, slots=True)
class CacheUse:
    """A cache that a builder uses."""

    name: CacheName
    label: bytes | None = b"{id}"
    variable: str = ""
    publish: Publish = Publish.ON_SUCCESS


@dataclass(frozen=True, slots=True)
class Builder:
    """A command that `mkdir builds/NAME+ID` runs."""

    command: tuple[str, ...]
    user: int | None = None
    group: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    time_limit: float | None = None
    kill_grace: float = 10.0
    limits: Mapping[str, int] = field(default_factory=dict)
    max_processes: int | None = None
    log_size: int = LOG_SIZE
    native: bool = True
    sandbox: tuple[str, ...] = ()
    caches: tuple[CacheUse, ...] = ()


@dataclass(frozen=True, slots=True)
class KeepFailed:
    """How many failed builds are kept, and how many seconds each."""

    count: int = 0
    seconds: float = math.inf


@dataclass(frozen=True, slots=True)
class CacheRules:
    """What the configuration says of a cache; None: the cache's own rule counts."""

    policy: Policy | None = None
    publishers: Publishers | None = None


@dataclass(frozen=True, slots=True)
class Config:
    """See the module."""

    linger: float | None = None
    keep_failed: KeepFailed = KeepFailed()
    awake: bool = True
    builders: Mapping[str, Builder] = field(default_factory=dict)
    caches: Mapping[CacheName, CacheRules] = field(default_factory=dict)


# Values. Each raises ValueError with what was expected.


def _yes_or_no(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("a text")
    return value


def _words(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        try:
            value = shlex.split(value)
        except ValueError as failure:
            raise ValueError(f"a command ({failure})") from None
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(each, str) and "\0" not in each for each in value)
    ):
        raise ValueError("a command, as a list of texts or one text that is split as a shell does")
    return tuple(value)


def _seconds(value: object) -> float:
    with suppress(OverflowError):  # more than a float can be
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
            return float(value)
        # More digits than anybody lives, and than Python reads.
        match = re.fullmatch(r"([0-9]{1,300})([smhdw]?)", value) if isinstance(value, str) else None
        if match is not None:
            return float(int(match[1]) * _TIMES[match[2]])
    raise ValueError("a time, such as 90, '90s', '15m', '2h', '7d' or '1w'")


def _size(value: object) -> int:
    match = re.fullmatch(r"([0-9]{1,20})([KMG]?)", value) if isinstance(value, str) else None
    size = int(match[1]) * _SIZES[match[2]] if match is not None else value
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 63:
        raise ValueError("a size, such as 4096, '64K', '1M' or '2G'")
    return size


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError("a number, 1 at least")
    return value


def _log_size(value: object) -> int:
    size = _size(value)
    if size < 4096:
        raise ValueError("a size, 4096 at least")
    return size


def _user(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return pwd.getpwnam(_text(value)).pw_uid
    except KeyError:
        raise ValueError("a user that exists, by name or number") from None


def _group(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return grp.getgrnam(_text(value)).gr_gid
    except KeyError:
        raise ValueError("a group that exists, by name or number") from None


def _environment(value: object) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(each, str) and "\0" not in each for each in value.values()):
        raise ValueError("a table of texts")
    if any(not name or "=" in name or "\0" in name for name in value):
        raise ValueError("a table with names of variables")
    return dict(value)


def _limits(value: object) -> dict[str, int]:
    known = sorted(name[7:].lower() for name in dir(resource) if name.startswith("RLIMIT_"))
    if not isinstance(value, dict) or not set(value) <= set(known):
        raise ValueError(f"a table with keys out of {', '.join(known)}")
    return {name: _size(each) for name, each in value.items()}


def _publish(value: object) -> Publish:
    try:
        return Publish(value)
    except ValueError:
        raise ValueError("'always', 'on-success' or 'never'") from None


def _policy(value: object) -> Policy:
    return Policy.of(_text(value))


def _publishers(value: object) -> Publishers:
    return Publishers.of(_text(value))


def _cache_name(value: object) -> CacheName:
    try:
        return CacheName(os.fsencode(_text(value)))
    except InvalidName as failure:
        raise ValueError(f"the name of a cache ({failure})") from None


def _label(value: object) -> bytes | None:
    label = os.fsencode(_text(value))
    if b"/" in label:
        raise ValueError("a label, without '/'")
    return label or None


def keep_failed(value: object) -> KeepFailed:
    """`N` or `N/TIME`. Raises ValueError."""
    count, slash, time = value.partition("/") if isinstance(value, str) else (str(value), "", "")
    if isinstance(value, bool) or not (count.isascii() and count.isdigit()) or len(count) > 9:
        raise ValueError("a number of builds, and how long they are kept, such as 10 or '10/7d'")
    return KeepFailed(int(count), _seconds(time) if slash else math.inf)


@dataclass(frozen=True, slots=True)
class _Key:
    convert: Callable[[Any], Any]
    means: str


_MOUNT = {
    "linger": _Key(_seconds, "how long a session outlives its last user"),
    "keep-failed": _Key(keep_failed, "how many failed builds are kept, and how long: '10/7d'"),
    "awake": _Key(
        _yes_or_no,
        "whether idle processors are kept from sleeping while many requests come, in a virtual machine whose\n"
        "               cpuidle driver is haltpoll: answers take half as long, and the host sees load (true)",
    ),
}
_BUILDER = {
    "command": _Key(_words, "what runs, in the build's directory; 0 publishes, anything else discards"),
    "user": _Key(_user, "as whom it runs (who makes the directory)"),
    "group": _Key(_group, "its group (the user's)"),
    "environment": _Key(
        _environment, "variables, beside ZFSFS_ID, ZFSFS_BASE, ZFSFS_BUILD, PATH, HOME, USER, LOGNAME"
    ),
    "time-limit": _Key(_seconds, "how long it may take (for ever)"),
    "kill-grace": _Key(_seconds, "how long SIGTERM has before SIGKILL follows (10)"),
    "limits": _Key(_limits, "resource limits as in setrlimit(2): nofile, nproc, as, fsize, cpu, ..."),
    "max-processes": _Key(
        _count,
        "how many it may be, with all that it starts: of its control group (version 2, pids.max); where there is no\n"
        "               such, of all of its user's (setrlimit nproc), which doesn't limit root",
    ),
    "log-size": _Key(_log_size, "how much of its output is kept: half of it the beginning, half the end (1M)"),
    "native": _Key(_yes_or_no, "whether it has its directory and its own caches natively, not through FUSE (true)"),
    "sandbox": _Key(
        _words,
        "what the command is run by, such as bwrap or systemd-run. Arguments that are {command}, {directory}, {id} or"
        " {base} are replaced; without {command} the command comes last",
    ),
}
_RULES = {
    "policy": _Key(
        _policy,
        "what becomes of sessions that changed something: always (published, by who closes first; the default),\n"
        "               on-success (if a builder or 'zfsfs build' was successful in it, or somebody has said\n"
        "               'setfattr -n user.zfsfs.success -v yes caches/NAME@LABEL'; after one 'no' never),\n"
        "               never (each has a private copy), locked (one session at a time, by whichever path:\n"
        "               who opens something in another's waits, who would change something there without that\n"
        "               is told EBUSY) or read-only (EROFS)",
    ),
    "publishers": _Key(
        _publishers,
        "whose are published: '*' (the default), or users and @groups with commas between them. What others\n"
        "               change is in a copy that isn't; who comes to such a session of the other kind is told EBUSY",
    ),
}
_CACHE = {
    "name": _Key(_cache_name, "the cache; it is made when there is none"),
    "label": _Key(_label, "which session of it; '' is the one that all share ({id}: one of its own)"),
    "variable": _Key(_text, "the variable that holds its path (ZFSFS_CACHE_NAME)"),
    "publish": _Key(_publish, "what becomes of it: always, on-success (the default) or never"),
}
_TABLES = {
    "builder": "[builder.NAME]",
    "cache": "[[builder.NAME.cache]]",
    "rules": "[cache.NAME]: these count before the cache's own user.zfsfs.policy and user.zfsfs.publishers",
}


def _read(where: str, table: object, keys: Mapping[str, _Key], others: tuple[str, ...] = ()) -> dict[str, Any]:
    if not isinstance(table, dict):
        raise UsageError(f"{where}: this must be a table")
    found = {}
    for name, value in table.items():
        if name in others:
            continue
        if name not in keys:
            near = difflib.get_close_matches(name, [*keys, *others], 1)
            raise UsageError(f"{where}: there is no key {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        try:
            found[name.replace("-", "_")] = keys[name].convert(value)
        except ValueError as failure:
            raise UsageError(f"{where}: {name} = {value!r}: it must be {failure}") from None
    return found


def _read_builder(where: str, table: object) -> Builder:
    found = _read(where, table, _BUILDER, ("cache",))
    if "command" not in found:
        raise UsageError(f"{where}: a builder needs a command")
    caches = table.get("cache", []) if isinstance(table, dict) else []
    if not isinstance(caches, list):
        raise UsageError(f"{where}: cache must be an array of tables, [[builder.NAME.cache]]")
    uses = []
    for number, each in enumerate(caches, 1):
        use = _read(f"{where}: cache {number}", each, _CACHE)
        if "name" not in use:
            raise UsageError(f"{where}: cache {number} needs a name")
        uses.append(CacheUse(**use))
        if uses[-1].label is None and uses[-1].publish is not Publish.ALWAYS:
            raise UsageError(f"{where}: cache {number}: a session that all share can only be published always")
    return Builder(**found, caches=tuple(uses))


def _read_rules(where: str, caches: object) -> dict[CacheName, CacheRules]:
    if not isinstance(caches, dict):
        raise UsageError(f"{where}: cache must be a table, [cache.NAME]")
    made = {}
    for name, each in caches.items():
        try:
            made[_cache_name(name)] = CacheRules(**_read(f"{where}: cache {name}", each, _RULES))
        except ValueError as failure:
            raise UsageError(f"{where}: cache {name}: it must be {failure}") from None
    return made


def parse(text: str, where: str) -> Config:
    """The configuration that a text means; `where` is what messages call it. Raises UsageError."""
    try:
        table = tomllib.loads(text)
    except ValueError as failure:  # a number may be too long for Python, too
        raise UsageError(f"{where}: {failure}") from None
    found = _read(where, table, _MOUNT, ("builder", "cache"))
    builders = table.get("builder", {})
    if not isinstance(builders, dict):
        raise UsageError(f"{where}: builder must be a table, [builder.NAME]")
    made = {}
    for name, each in builders.items():
        try:
            builder_name(name.encode())
        except InvalidName as failure:
            raise UsageError(f"{where}: {failure}") from None
        made[name] = _read_builder(f"{where}: builder {name}", each)
    return Config(**found, builders=made, caches=_read_rules(where, table.get("cache", {})))


def load(path: str | None, store: str) -> Config:
    """The configuration of a store: of a file, or the usual one if it is there. Raises UsageError."""
    usual = f"/etc/zfsfs/{store.strip('/').replace('/', '-')}.toml"
    try:
        with open(path or usual, encoding="utf-8") as file:
            text = file.read()
    except FileNotFoundError:
        if path is None:
            return Config()
        raise UsageError(f"{path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as failure:
        raise UsageError(f"{path or usual} can't be read: {failure}") from None
    return parse(text, path or usual)


def builder_option(text: str) -> tuple[str, Builder]:
    """`NAME=COMMAND`, as the option --builder has it. Raises UsageError."""
    name, equals, command = text.partition("=")
    try:
        if not equals:
            raise ValueError("NAME=COMMAND")
        return builder_name(name.encode("utf-8", "surrogateescape")), Builder(_words(command))
    except (InvalidName, ValueError) as failure:
        raise UsageError(f"--builder {text}: {failure}") from None


def explanation() -> str:
    """Every key and what it means, for --help."""
    lines = ["The configuration is TOML. At its top:"]
    tables = (
        (_MOUNT, ""),
        (_BUILDER, _TABLES["builder"]),
        (_CACHE, _TABLES["cache"]),
        (_RULES, _TABLES["rules"]),
    )
    for keys, heading in tables:
        if heading:
            lines.append(heading)
        lines += [f"  {name:<12} {key.means}" for name, key in keys.items()]
    return "\n".join(lines)

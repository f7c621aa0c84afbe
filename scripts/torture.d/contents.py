"""Versions of a set of files that tell by themselves which they are.

Each file's bytes follow from its name and the version that wrote it, and MANIFEST says which file is of which
version. So half a version, or a mixture of two, shows in whatever is found, without a record kept elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "MANIFEST"
_LARGEST = 40_000


class Broken(Exception):
    """Contents that no version has."""


@dataclass(frozen=True)
class Version:
    """What MANIFEST says; `generation` is that of the cache in which it is to be published, 0 for a build's."""

    name: str = ""
    generation: int = 0
    files: dict[str, str] = field(default_factory=dict)

    def text(self) -> bytes:
        body = json.dumps([self.name, self.generation, self.files], sort_keys=True)
        return f"{body}\n{hashlib.sha256(body.encode()).hexdigest()}\n".encode()


def _data(version: str, file: str) -> bytes:
    source = random.Random(f"{version}/{file}")
    return source.randbytes(source.choice((0, 10, 4096, 5000, _LARGEST)))


def _fail(problem: OSError) -> None:
    raise problem


def read(folder: Path) -> Version:
    """The version that a folder holds, whole; an empty folder holds Version(). Raises Broken, OSError."""
    walk = os.walk(folder, onerror=_fail)
    found = {os.path.relpath(os.path.join(top, name), folder) for top, _, names in walk for name in names}
    if not found:
        return Version()
    if MANIFEST not in found:
        raise Broken(f"{folder} has {len(found)} files and no {MANIFEST}")
    body, _, digest = (folder / MANIFEST).read_bytes().decode(errors="replace").partition("\n")
    if hashlib.sha256(body.encode()).hexdigest() != digest.strip():
        raise Broken(f"{folder}: its {MANIFEST} is not whole")
    name, generation, files = json.loads(body)
    if found != {MANIFEST, *files}:
        raise Broken(f"{folder} should be {name}; too much or missing: {sorted(found ^ {MANIFEST, *files})}")
    for file, version in files.items():
        if (folder / file).read_bytes() != _data(version, file):
            raise Broken(f"{folder} should be {name}, but {file} is not what {version} wrote")
    return Version(name, generation, files)


def write(folder: Path, name: str, generation: int, chance: random.Random) -> Version:
    """Turn what a folder holds into a new version: some files are kept, some go, some are new or written again."""
    before = read(folder).files
    names = [f"d{one}/f{two}" for one in range(3) for two in range(3)]
    wanted = sorted(chance.sample(names, chance.randint(1, 6)))
    kept = [file for file in wanted if file in before and chance.random() < 0.5]
    version = Version(name, generation, {file: before[file] if file in kept else name for file in wanted})
    steps = [(file, _data(name, file)) for file in wanted if file not in kept]
    steps.append((MANIFEST, version.text()))
    chance.shuffle(steps)  # whatever is caught halfway is seen to be halfway
    for file in before.keys() - set(wanted):
        (folder / file).unlink()
    for file, data in steps:
        _put(folder / file, data, chance)
    return version


def _put(path: Path, data: bytes, chance: random.Random) -> None:
    path.parent.mkdir(exist_ok=True)
    way = chance.choice(("in place", "in place", "renamed", "synced"))
    target = path.with_name("new") if way == "renamed" else path
    with open(target, "wb") as file:
        file.write(data)
        if way == "synced":
            file.flush()
            os.fsync(file.fileno())
    if way == "renamed":
        target.rename(path)

"""What is unpacked and compiled: a source tree made here, the same every time, and Brotli's C source."""

from __future__ import annotations

import io
import random
import subprocess
import tarfile
from pathlib import Path

MAKEFILE = b"""CFLAGS = -O1 -Ic/include
brotli: $(patsubst %.c,%.o,$(wildcard c/*/*.c))
\t$(CC) -o $@ $^ -lm
"""


def tree(target: Path, files: int) -> None:
    """A tarball of `files` files in directories of 20, sized as in source trees (a median of 4 kB)."""
    chosen = random.Random(1)
    line = b"int a_line_of_some_program(int argument) { return argument + 1; }\n"
    with tarfile.open(target, "w") as archive:
        for number in range(files):
            path = f"tree/part{number // 400}/module{number // 20}/file{number}.c"
            size = min(200_000, int(chosen.lognormvariate(8.3, 1.2)))
            entry = tarfile.TarInfo(path)
            entry.size = size
            entry.mtime = 1_700_000_000
            archive.addfile(entry, io.BytesIO((line * (size // len(line) + 1))[:size]))


def repository(target: Path, unpacked: Path, source: Path) -> None:
    """The same tree as a git repository with one commit, as a tarball."""
    unpacked.mkdir()
    git = ["git", "-C", str(unpacked / "tree"), "-c", "user.name=bench", "-c", "user.email=bench@example.org"]
    subprocess.run(["tar", "-xf", source, "-C", unpacked, "--no-same-owner"], check=True)
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True)
    subprocess.run(["tar", "-cf", target, "-C", unpacked, "tree"], check=True)


def program(target: Path, sdist: Path) -> None:
    """Brotli's C source with a Makefile, as a tarball."""
    with tarfile.open(sdist) as source, tarfile.open(target, "w") as archive:
        for entry in source:
            parts = Path(entry.name).parts
            if len(parts) > 1 and parts[1] == "c" and entry.isfile():
                entry.name = str(Path("program", *parts[1:]))
                archive.addfile(entry, source.extractfile(entry))
        entry = tarfile.TarInfo("program/Makefile")
        entry.size = len(MAKEFILE)
        archive.addfile(entry, io.BytesIO(MAKEFILE))

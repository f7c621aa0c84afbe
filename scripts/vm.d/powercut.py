"""A disk that loses, when the power goes, a random part of what was not flushed.

qemu's `blklogwrites` writes every write and flush, in order, to a log in the format of the kernel's dm-log-writes
(Documentation/admin-guide/device-mapper/log-writes.rst). The machine runs on a copy of the disk. After a cut the log
is played back on the disk itself: all that came before the last flush, and of the rest what the seed says.
"""

import json
import os
import random
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
MAGIC = 0x6A736677736872
FLUSH, DISCARD = 1, 4
_SUPER, _ENTRY = struct.Struct("<QQQI"), struct.Struct("<QQQQ")


@dataclass(frozen=True)
class Entry:
    sector: int
    sectors: int
    flags: int
    data: int  # where in the log


def entries(log: int) -> Iterator[Entry]:
    """What the log holds, as far as it is whole. Entries are written side by side, so there may be a hole."""
    size, at = os.fstat(log).st_size, SECTOR
    while len(header := os.pread(log, _ENTRY.size, at)) == _ENTRY.size:
        sector, sectors, flags, _ = _ENTRY.unpack(header)
        length = 0 if flags & DISCARD else sectors * SECTOR
        if not (sectors or flags) or at + SECTOR + length > size:
            return
        yield Entry(sector, sectors, flags, at + SECTOR)
        at += SECTOR + length


def counted(log: int) -> int:
    """How many entries there must be: the first block is written anew with each flush."""
    head = os.pread(log, _SUPER.size, 0)
    if len(head) < _SUPER.size:
        return 0
    magic, _, number, sector = _SUPER.unpack(head)
    if (magic, sector) != (MAGIC, SECTOR):
        raise ValueError("not a log of writes")
    return int(number)


@dataclass
class Replayed:
    flushed: int = 0
    unflushed: int = 0
    lost: int = 0  # of those, in whole or in part


def replay(log: int, disk: int, seed: str) -> Replayed | None:
    """Make the disk what it is after a cut. None, and no change, if the log has a hole before its last flush."""
    found = list(entries(log))
    if len(found) < counted(log):
        return None
    last = max((number for number, each in enumerate(found) if each.flags & FLUSH), default=-1)
    chance = random.Random(f"{seed}/unflushed")
    # From nothing to all of it: a cut that loses half of everything never loses just the last block.
    share = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
    done = Replayed()
    for number, each in enumerate(found):
        if not each.sectors or each.flags & DISCARD:
            continue
        kept = each.sectors
        if number <= last:
            done.flushed += 1
        else:
            done.unflushed += 1
            if chance.random() < share:
                kept = chance.choice((0, 0, chance.randrange(each.sectors)))
                done.lost += 1
        if kept:
            os.pwrite(disk, os.pread(log, kept * SECTOR, each.data), each.sector * SECTOR)
    return done


class LossyDisk:
    """`disk` through a whole run of the machine. Nothing in it changes before `settle`."""

    def __init__(self, disk: Path, room: Path, seed: str) -> None:
        self.disk, self.seed = disk, seed
        self.live, self.log = room / "live", room / "writes"
        subprocess.run(["cp", "--sparse=always", "--", disk, self.live], check=True)
        self.log.touch()

    def arguments(self, serial: str) -> list[str]:
        node = {
            "driver": "blklogwrites", "node-name": serial, "log-sector-size": SECTOR,
            "file": {"driver": "file", "filename": str(self.live)},
            "log": {"driver": "file", "filename": str(self.log)},
        }  # fmt: skip
        # qemu before 8.2 spoils the log where zeroes are written as such.
        device = f"virtio-blk-pci,drive={serial},serial={serial},write-zeroes=off,discard=off"
        return ["-blockdev", json.dumps(node), "-device", device]

    def settle(self, cut: bool) -> str:
        """When the machine is off: the disk as it is from here on, and a sentence about it."""
        if cut:
            with open(self.log, "rb") as log, open(self.disk, "r+b") as disk:
                done = replay(log.fileno(), disk.fileno(), self.seed)
            if done:
                return f"of {done.unflushed} writes after the last flush {done.lost} are lost, {done.flushed} before"
        subprocess.run(["cp", "--sparse=always", "--", self.live, self.disk], check=True)
        return "every write is on the disk"

"""The disk that loses what was not flushed when the virtual machine's power is cut: everything before the last flush
is there, anything after it may be."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

SECTOR = 512
FLUSH = (0, 0, 1, b"")


@pytest.fixture(scope="module")
def powercut() -> ModuleType:
    file = Path(__file__).resolve().parents[2] / "scripts/vm.d/powercut.py"
    spec = importlib.util.spec_from_file_location("powercut", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["powercut"] = module
    spec.loader.exec_module(module)
    return module


def write(sector: int, letter: bytes, sectors: int = 1) -> tuple[int, int, int, bytes]:
    return sector, sectors, 0, letter * (sectors * SECTOR)


def log_of(folder: Path, *found: tuple[int, int, int, bytes] | None, counted: int | None = None) -> Path:
    """A log as qemu writes it. None is an entry that was still on its way."""
    file = folder / "log"
    number = len(found) if counted is None else counted
    blocks = [struct.pack("<QQQI", 0x6A736677736872, 1, number, SECTOR).ljust(SECTOR, b"\0")]
    for each in found:
        if each is None:
            blocks.append(bytes(2 * SECTOR))
        else:
            sector, sectors, flags, data = each
            blocks.append(struct.pack("<QQQQ", sector, sectors, flags, 0).ljust(SECTOR, b"\0") + data)
    file.write_bytes(b"".join(blocks))
    return file


def replayed(powercut: ModuleType, log: Path, seed: str) -> str | None:
    """The first letter of each sector of a disk that held dots; None when the log was no good."""
    disk = log.with_name("disk")
    disk.write_bytes(b"." * (16 * SECTOR))
    with open(log, "rb") as reading, open(disk, "r+b") as writing:
        done = powercut.replay(reading.fileno(), writing.fileno(), seed)
    held = disk.read_bytes()
    letters = "".join(chr(held[at]) for at in range(0, len(held), SECTOR))
    if done is None:
        assert letters == "." * 16
        return None
    return letters


def test_what_was_flushed_is_there_in_its_order(powercut: ModuleType, tmp_path: Path) -> None:
    log = log_of(tmp_path, write(0, b"a", 4), write(1, b"b"), FLUSH, write(2, b"c"), FLUSH)
    assert {replayed(powercut, log, str(seed)) for seed in range(50)} == {"abca............"}


def test_what_came_after_may_be_there_or_not_or_in_part(powercut: ModuleType, tmp_path: Path) -> None:
    log = log_of(tmp_path, write(0, b"a", 2), FLUSH, write(0, b"b", 3), write(8, b"c"), counted=2)
    found = {replayed(powercut, log, str(seed)) for seed in range(300)}
    begin, second = {"aa.", "ba.", "bb.", "bbb"}, {".....c.......", "............."}
    assert found == {one + two for one in begin for two in second}


def test_the_same_seed_loses_the_same(powercut: ModuleType, tmp_path: Path) -> None:
    log = log_of(tmp_path, FLUSH, *(write(sector, b"x") for sector in range(16)), counted=1)
    assert replayed(powercut, log, "7") == replayed(powercut, log, "7")


def test_an_entry_on_its_way_ends_the_log(powercut: ModuleType, tmp_path: Path) -> None:
    log = log_of(tmp_path, write(0, b"a"), FLUSH, None, write(1, b"b"), counted=2)
    assert {replayed(powercut, log, str(seed)) for seed in range(20)} == {"a" + "." * 15}


def test_a_hole_before_the_last_flush_is_no_log_to_replay(powercut: ModuleType, tmp_path: Path) -> None:
    log = log_of(tmp_path, write(0, b"a"), None, write(1, b"b"), FLUSH)
    assert replayed(powercut, log, "1") is None


@given(data=st.data())
def test_each_sector_is_of_its_last_flushed_write_or_a_later_one(
    powercut: ModuleType, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    step = st.one_of(st.just(None), st.tuples(st.integers(0, 12), st.integers(1, 4)))
    steps = data.draw(st.lists(step, max_size=12))
    allowed = [{"."} for _ in range(16)]
    found = []
    for number, each in enumerate(steps):
        letter = chr(ord("A") + number)
        if each is None:
            found.append(FLUSH)
        else:
            found.append(write(each[0], letter.encode(), each[1]))
        after = any(later is None for later in steps[number + 1 :])
        for sector in range(each[0], each[0] + each[1]) if each else ():
            allowed[sector] = {letter} if after else allowed[sector] | {letter}
    log = log_of(tmp_path_factory.mktemp("log"), *found)
    held = replayed(powercut, log, data.draw(st.text(max_size=3)))
    assert held is not None
    assert all(letter in may for letter, may in zip(held, allowed, strict=True))

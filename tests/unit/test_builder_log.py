"""Logs of bounded size, against all that was written."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zfsfs.builders.log import Reading, View, Writer, tail


def opened(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)


def whole(reading: Reading, start: int = 0, size: int = 7) -> bytes:
    found = b""
    while piece := reading.read(start + len(found), size):
        found += piece
    return found


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=20), st.integers(2, 64))
def test_head_and_tail_are_kept_and_the_rest_is_marked(tmp_path_factory, pieces, size):
    fd = opened(tmp_path_factory.getbasetemp() / "log")
    writer = Writer(fd, size)
    for piece in pieces:
        writer.write(piece)
    everything = b"".join(pieces)
    view = View(fd)
    assert view.total == len(everything)
    found = whole(Reading(view))
    if len(everything) <= size:
        assert found == everything
    else:
        head, rest = found.split(b"\n[zfsfs: %d bytes are cut out here]\n" % (len(everything) - size), 1)
        assert everything.startswith(head)
        assert everything.endswith(rest)
        assert len(head) + len(rest) == size
    assert everything.endswith(tail(view, 10))
    os.close(fd)


def test_a_follower_is_told_what_it_missed(tmp_path):
    fd = opened(tmp_path / "log")
    writer, reading = Writer(fd, 8), Reading(View(fd))
    writer.write(b"abcdef")
    found = whole(reading)
    assert found == b"abcdef"
    writer.write(b"0123456789")
    assert whole(reading, 6) == b"\n[zfsfs: 6 bytes are cut out here]\n6789"
    os.close(fd)


def test_who_misses_something_again_and_again_takes_no_memory_for_it(tmp_path):
    fd = opened(tmp_path / "log")
    writer, reading = Writer(fd, 8), Reading(View(fd))
    writer.write(b"abcd")
    offset = len(whole(reading))
    for number in range(3000):
        writer.write(b"%06d" % number)
        found = whole(reading, offset, 64)
        offset += len(found)
    assert found == b"\n[zfsfs: 2 bytes are cut out here]\n2999"
    assert len(reading._pieces) <= 1000
    assert reading.read(offset - 4, 64) == b"2999"
    assert whole(reading) == b"abcd"
    os.close(fd)


def test_what_is_no_log(tmp_path):
    fd = opened(tmp_path / "log")
    with pytest.raises(ValueError, match="no log"):
        View(fd)
    for head, ring in ((0, 4), (4, 0)):  # nothing could be found in it
        os.pwrite(fd, struct.pack("<8sQQQQ", b"zfslog1\n", head, ring, 9, 9), 0)
        with pytest.raises(ValueError, match="no log"):
            View(fd)
    os.close(fd)

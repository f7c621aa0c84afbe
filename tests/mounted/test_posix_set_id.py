"""What writing takes away from set-user-ID and set-group-ID files, and which times a truncation moves.

These cases differ where the kernel gathers writes (before Linux 6.9): see README.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from comparing import ANNA, BERT, acting, compared, look, moved, opened, tried, write
from mounted_tree import GATHERS

pytestmark = pytest.mark.skipif(GATHERS, reason="the kernel gathers writes")

MODES = [0o2666, 0o2676, 0o4666, 0o4777, 0o6767, 0o6777]


def set_id_files(owner: int, group: int) -> Iterator[str]:
    os.chmod(".", 0o777)
    for mode in MODES:
        name = f"{mode:o}"
        write(name, b"contents")
        os.chown(name, owner, group)
        os.chmod(name, mode)
        yield name


@compared("root")
def test_who_writes_into_a_set_id_file_takes_the_bits_away():
    for owner, group in ((0, 0), (ANNA.uid, ANNA.gid), (0, ANNA.groups[0]), (BERT.uid, ANNA.gid)):
        for name in list(set_id_files(owner, group)):
            with acting(ANNA), opened(name, os.O_WRONLY) as fd:
                os.write(fd, b"x")
            yield name, owner, group, look(name)
            os.unlink(name)


@compared("root")
def test_who_writes_by_a_descriptor_that_another_has_opened_does_so_too():
    for name in list(set_id_files(0, 0)):
        with opened(name, os.O_WRONLY) as fd, acting(ANNA):
            yield name, tried(os.write, fd, b"x"), look(fd)


@compared("root")
def test_who_truncates_a_set_id_file_takes_the_bits_away():
    for name in list(set_id_files(0, 0)):
        with acting(ANNA):
            os.truncate(name, 3)
        yield name, look(name)


@compared("root")
def test_root_takes_no_set_id_bits_away():
    for name in list(set_id_files(ANNA.uid, ANNA.gid)):
        with opened(name, os.O_WRONLY) as fd:
            os.write(fd, b"x")
        os.truncate(name, 3)
        yield name, look(name)


@compared()
def test_a_truncation_to_the_same_size_moves_the_times():
    write("f", b"12345")
    for size in (5, 4, 9, 9, 0, 0):
        yield size, moved(["f"], os.truncate, "f", size)
    with opened("f", os.O_RDWR) as fd:
        yield moved(["f"], os.ftruncate, fd, 0)
    yield moved(["f"], write, "f", b"")

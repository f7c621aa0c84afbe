"""What an inode costs that the kernel knows, and that it is given back; and what the kernel may know of names."""

from __future__ import annotations

import gc
import os
import stat
import tracemalloc
import weakref
from collections.abc import Callable
from time import monotonic

import pytest

from zfsfs.fs import area as areas
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.places import ResultPlace
from zfsfs.names import BuildId

FILES, IN_A_FOLDER = 60_000, 20


def found(st_ino: int, mode: int) -> os.stat_result:
    return os.stat_result((mode | 0o644, st_ino, *[0] * 8))


def look_up_all(table: NodeTable, area: Area) -> None:
    """A source tree, the kernel knowing every file of it."""
    folder = area.root
    for number in range(FILES):
        if number % IN_A_FOLDER == 0:
            node = folder = table.remember(area.root, b"directory%07d" % number, found(2**34 + number, stat.S_IFDIR))
        else:
            node = table.remember(folder, b"source_file%07d.c" % number, found(2**34 + number, stat.S_IFREG))
        table.looked_up(node)


def traced(work: Callable[[], None]) -> int:
    before, _ = tracemalloc.get_traced_memory()
    work()
    gc.collect()
    return tracemalloc.get_traced_memory()[0] - before


def test_an_inode_costs_less_than_400_bytes_and_gives_them_back() -> None:
    table = NodeTable(64)
    area = Area(table, ResultPlace(BuildId(b"x")))
    table.hold(area.root)
    tracemalloc.start()
    try:
        cost = traced(lambda: look_up_all(table, area))
        first = area.root.ino + 1
        assert max(table.by_ino) == first + FILES - 1
        kept = traced(lambda: [table.forget(ino, 1) for ino in range(first, first + FILES)].clear())
    finally:
        tracemalloc.stop()
    assert cost / FILES <= 400
    assert (cost + kept) / FILES < 10
    assert list(table.by_ino.values()) == [area.root]
    assert not area.by_st_ino


def test_who_forgets_too_much_is_heard_of_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    table = NodeTable(64)
    area = Area(table, ResultPlace(BuildId(b"x")))
    table.hold(area.root)
    node = table.remember(area.root, b"file", found(1, stat.S_IFREG))
    table.looked_up(node)
    table.forget(node.ino, 2)
    assert [(each.levelname, each.args) for each in caplog.records] == [("ERROR", (node.ino, 2, 1))]
    assert list(table.by_ino.values()) == [area.root]


def test_an_area_that_the_kernel_has_forgotten_is_gone_at_once() -> None:
    table = NodeTable(64)
    area = Area(table, ResultPlace(BuildId(b"x")))
    number = area.root.ino
    for node in (area.root, table.remember(area.root, b"file", found(2**34, stat.S_IFREG))):
        table.looked_up(node)
    area.absent(area.root, b"other")
    there = weakref.ref(area)
    gc.disable()
    try:
        for ino in (node.ino, number):
            table.forget(ino, 1)
        assert area.root.ino == number
        table.hold(area.root)
        table.closed(area.root)
        del area, node
        assert there() is None
    finally:
        gc.enable()
    assert not table.by_ino


def test_the_kernel_believes_for_ever_that_a_name_is_absent_while_few_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(areas, "MOST_ABSENT", 2)
    table = NodeTable(64)
    area = Area(table, ResultPlace(BuildId(b"x")))
    absent = lambda name: area.absent(area.root, name)  # noqa: E731 - for short
    assert [absent(b"a"), absent(b"b"), absent(b"b")] == [areas.FOREVER] * 3
    assert area.believed < monotonic()
    assert absent(b"c") == areas.BRIEFLY
    assert monotonic() <= area.believed <= monotonic() + areas.BRIEFLY
    node = table.remember(area.root, b"a", found(1, stat.S_IFREG))
    assert absent(b"c") == areas.FOREVER, "what is there takes no room"
    table.moved(node, (area.root, b"a"), (area.root, b"b"))
    assert absent(b"d") == areas.FOREVER
    assert absent(b"f") == areas.BRIEFLY
    assert set(area.freeze()[0]) >= {(area.root.ino, b"c"), (area.root.ino, b"d")}
    assert absent(b"e") == 0


def test_of_a_result_it_does_however_many_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(areas, "MOST_ABSENT", 1)
    area = Area(NodeTable(64), ResultPlace(BuildId(b"x")))
    area.finish()
    assert {area.absent(area.root, name) for name in (b"a", b"b", b"c")} == {areas.FOREVER}

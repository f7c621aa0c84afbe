"""Files that nobody has open and that can be written into all the same."""

from __future__ import annotations

import fcntl
import os
import resource
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio
from beneath import Beneath
from mapping import mapped

from zfsfs.fs.area import Area
from zfsfs.fs.caller import Caller
from zfsfs.fs.mapped import closed, look
from zfsfs.fs.nodes import Node
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import BuildPlace
from zfsfs.names import BuildId, BuildName

ROOT = Caller(0, 0)


@pytest.fixture
def file(files: Passthrough, tmp_path: Path) -> Iterator[Node]:
    """A file that was mapped when it was closed."""
    (tmp_path / "file").write_text("contents")
    area = Area(files.table, BuildPlace(BuildName(BuildId(b"x")), 0))
    area.attach(Beneath(tmp_path))
    node, _ = files.lookup(area.root, b"file")
    node.lookups += 1
    area.mapped[node] = (0, 0, 0)
    yield node
    view = area.detach()
    assert view is not None
    view.close()


async def test_who_opens_a_file_while_it_is_looked_at_is_not_refused(files, file, monkeypatch):
    call = fcntl.fcntl

    def slowly(fd: int, what: int, value: int) -> int:
        result = call(fd, what, value)
        time.sleep(0.02)
        return result

    monkeypatch.setattr(fcntl, "fcntl", slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look, file.area, files.descriptors, lambda ino: None)
        while file in file.area.mapped:
            files.close(files.open(file, os.O_WRONLY | os.O_TRUNC, ROOT).fd)
            await trio.sleep(0.001)


def test_what_the_kernel_forgets_before_anybody_has_looked_counts_as_changed(files, file):
    files.table.forget(file.ino, 1)
    assert (file.area.changed, file.area.mapped) == (True, {})


async def test_others_get_their_turn_between_any_two_files(files, file, tmp_path):
    area, turns = file.area, 0
    area.mapped.clear()
    with ExitStack() as stack:
        for number in range(50):
            (tmp_path / str(number)).write_text("contents")
            node, _ = files.lookup(area.root, b"%d" % number)
            area.mapped[node] = (0, 0, 0)
            stack.enter_context(mapped(tmp_path / str(number)))
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(others)
            assert await look(area, files.descriptors, lambda ino: None) == 50
            nursery.cancel_scope.cancel()
    assert turns >= 40


@contextmanager
def no_descriptors() -> Iterator[None]:
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (few, most))


async def test_what_can_not_be_looked_at_for_want_of_descriptors_may_be_mapped(files, file):
    area = file.area
    with no_descriptors():
        assert await look(area, files.descriptors, lambda ino: None) == 1
        closed(file, files.descriptors)
    assert (area.changed, list(area.mapped)) == (True, [file])
    assert await look(area, files.descriptors, lambda ino: None) == 0
    assert area.mapped == {}

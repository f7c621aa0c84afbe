"""Looking into what is on its way out."""

from __future__ import annotations

import errno
import os
import threading
from typing import Any

import trio
from errnos import failing
from fake import FakeDriver

from zfsfs.driver import View
from zfsfs.fs.caller import Caller
from zfsfs.fs.tree import BUILDS, RESULTS, Tree
from zfsfs.fs.users import BUILD, Users
from zfsfs.names import BuildId, result
from zfsfs.store import Store

ME = Caller(os.getuid(), os.getgid())


class Slow(FakeDriver):
    """A look that begins with `armed` set has come to its end when `entered` is, and returns when `go` is."""

    def __init__(self) -> None:
        super().__init__()
        self.armed, self.entered, self.go = False, trio.Event(), threading.Event()

    def view(self, *arguments: Any, **options: Any) -> View:
        view = super().view(*arguments, **options)
        if self.armed:
            self.armed = False
            trio.from_thread.run_sync(self.entered.set)
            self.go.wait()
        return view


async def nothing_told(name: bytes, inodes: list[int]) -> None:
    pass


async def test_what_has_gone_when_the_look_comes_to_its_end_is_not_looked_into():
    driver = Slow()
    store = Store(driver)
    await store.start()
    tree = Tree(store, 0.0, nothing_told, Users({BUILD: 9}, lambda *_: None))
    await tree.start()
    async with trio.open_nursery() as nursery:
        tree.sessions.nursery = nursery
        await tree.mkdir(BUILDS, b"x", 0o755, ME)
        await tree.publish(b"x", b"x")
        area, head = tree.find(RESULTS, b"x"), driver.heads[result(BuildId(b"x"))]
        tree.let_go(area)

        async def look() -> None:
            with failing(errno.ESTALE):
                await tree.ready(area)

        driver.armed = True
        nursery.start_soon(look)
        await driver.entered.wait()
        await tree.rmdir(RESULTS, b"x")
        driver.go.set()
    assert area.view is None
    await tree.close()
    assert (head.views, head in driver.heads.values()) == (0, False)
    await store.close()

"""Looking into what is on its way out."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
from errnos import failing
from fake import FakeDriver

from zfsfs.driver import View
from zfsfs.fs import control
from zfsfs.fs.caller import Caller
from zfsfs.fs.control import Control
from zfsfs.fs.operations import Operations
from zfsfs.fs.passthrough import Passthrough
from zfsfs.fs.places import cache_place
from zfsfs.fs.tree import BUILDS, CACHES, RESULTS, Tree
from zfsfs.fs.unlocked import Unlocked
from zfsfs.fs.users import BUILD, Users
from zfsfs.fs.workers import Workers
from zfsfs.names import BuildId, result
from zfsfs.store import Store
from zfsfs.store.views import close_view

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


def nobody_told(*_: object) -> None:
    pass


@asynccontextmanager
async def served(driver: FakeDriver) -> AsyncIterator[Tree]:
    """A tree without a kernel."""
    store = Store(driver)
    await store.start()
    tree = Tree(store, 0.0, nothing_told, Users({BUILD: 9}, lambda *_: None))
    await tree.start()
    async with trio.open_nursery() as nursery:
        tree.sessions.nursery = nursery
        yield tree
    await tree.close()
    await store.close()


async def test_what_has_gone_when_the_look_comes_to_its_end_is_not_looked_into():
    driver = Slow()
    async with served(driver) as tree:
        await tree.mkdir(BUILDS, b"x", 0o755, ME)
        await tree.publish(b"x", b"x")
        area, head = tree.find(RESULTS, b"x"), driver.heads[result(BuildId(b"x"))]
        tree.let_go(area)

        async def look() -> None:
            with failing(errno.ESTALE):
                await tree.ready(area)

        driver.armed = True
        tree.sessions.nursery.start_soon(look)
        await driver.entered.wait()
        await tree.rmdir(RESULTS, b"x")
        driver.go.set()
    assert area.view is None
    assert (head.views, head in driver.heads.values()) == (0, False)


async def test_a_path_is_one_session_although_the_kernel_forgets_it_while_it_is_looked_up_again():
    """It may say so only after it has asked: what it gives up waits in a queue of its own (fuse_dequeue_forget)."""
    driver, workers, own = Slow(), Workers(1), Control()
    async with served(driver) as tree:
        ask = Operations(
            tree, Passthrough(tree.table, workers, tree.users), own, Unlocked(lambda names: None), nobody_told
        )
        await tree.mkdir(CACHES, b"c", 0o755, ME)
        known = (await ask.lookup(control.CACHES, b"c", ME)).st_ino
        place = cache_place(tree.find(CACHES, b"c"))
        await close_view(tree.sessions.showing.take_view(place.cache))  # as for a release
        answers: list[int] = []

        async def look_up() -> None:
            answers.append((await ask.lookup(control.CACHES, b"c", ME)).st_ino)

        driver.armed = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(look_up)
            await driver.entered.wait()
            await ask.forget([(known, 1)])
            driver.go.set()
        assert answers == [tree.find(CACHES, b"c").root.ino]
        await ask.forget([(answers[0], 1)])
    workers.close()

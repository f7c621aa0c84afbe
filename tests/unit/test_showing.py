"""What many areas show is changed for one after another, and others are answered meanwhile."""

from __future__ import annotations

import os

import trio
from beneath import Beneath
from fake import FakeDriver
from faults import no_promotion
from suites.store_suite import NPM, bequeathed, filled, restarted

from zfsfs.errors import DriverError
from zfsfs.fs.area import Area
from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.places import CachePlace, SharedCache
from zfsfs.fs.rules import CacheRuling
from zfsfs.fs.sessions import Sessions
from zfsfs.fs.showing import Showing
from zfsfs.fs.users import Users
from zfsfs.names import CacheName, SessionName
from zfsfs.store import Store


async def test_others_have_their_turn_while_a_version_is_shown_in_many_areas(tmp_path, monkeypatch):
    shared = SharedCache(CacheName(b"c"))
    shared.view = Beneath(tmp_path)
    table = NodeTable(64)
    for label in (b"c@1", b"c@2", b"c@3"):
        shared.areas[label] = Area(table, CachePlace(SessionName.parse(label), shared))
    seen: list[str] = []
    attach_anew = Area.attach_anew
    monkeypatch.setattr(Area, "attach_anew", lambda *a: seen.append("area") or attach_anew(*a))

    async def answer() -> None:
        while True:
            seen.append("answer")
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        told = await Showing(None).refresh_idle(shared)  # type: ignore[arg-type]
        nursery.cancel_scope.cancel()
    assert told == [(area, [area.root.ino]) for area in shared.areas.values()]
    assert "answer" in seen[seen.index("area") : len(seen) - seen[::-1].index("area")]
    shared.view.close()


def shown(area: Area) -> str:
    with open("file", opener=lambda name, flags: os.open(name, flags, dir_fd=area.fd)) as file:
        return file.read()


async def test_a_version_that_can_not_be_shown_at_once_is_shown_later_and_the_kernel_told(monkeypatch):
    store = Store(FakeDriver())
    await store.start()
    await filled(store, "one")
    await bequeathed(store, "two")
    with no_promotion(store.driver):
        store = await restarted(store, whole=False)
    told = trio.Event()

    async def nobody(*_: object) -> list[str]:
        return []

    async def tell(name: bytes, inodes: list[int]) -> None:
        told.set()

    sessions = Sessions(
        store, NodeTable(64), 0.0, nobody, tell, Users({}, lambda user, text: None), CacheRuling(store, {}), nobody
    )  # fmt: skip
    area = sessions.area(SessionName(NPM))
    async with trio.open_nursery() as sessions.nursery:
        await sessions.ready(area)

        def broken(*_: object, **__: object) -> None:
            monkeypatch.undo()
            raise DriverError("the disk is broken")

        monkeypatch.setattr(store.driver, "view", broken)
        await store.caches.settle()
        with trio.fail_after(10):
            await told.wait()
    assert shown(area) == "two"
    await sessions.close_all()
    await store.close()

"""What many areas show is changed for one after another, and others are answered meanwhile."""

from __future__ import annotations

import trio
from beneath import Beneath

from zfsfs.fs.area import Area
from zfsfs.fs.nodes import NodeTable
from zfsfs.fs.places import CachePlace, SharedCache
from zfsfs.fs.showing import Showing
from zfsfs.names import CacheName, SessionName


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

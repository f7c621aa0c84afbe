"""Letting go of views, whatever happens."""

from __future__ import annotations

import errno
import threading

import pytest
from fake import FakeDriver

from zfsfs.errors import DriverError
from zfsfs.names import BuildId, result
from zfsfs.store import Store, views


class Seen:
    """A view that notes who closed it."""

    fd = -1

    def __init__(self) -> None:
        self.closed_by: list[threading.Thread] = []

    def close(self) -> None:
        self.closed_by.append(threading.current_thread())


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    async def in_thread(*_: object) -> None:
        raise DriverError("no thread can be started", errno.ENOMEM)

    monkeypatch.setattr(views, "in_thread", in_thread)


async def test_a_view_is_closed_by_another_thread() -> None:
    view = Seen()
    await views.close_view(view)
    assert view.closed_by != [threading.current_thread()]
    assert len(view.closed_by) == 1


@pytest.mark.usefixtures("no_threads")
async def test_where_there_is_no_thread_it_is_closed_all_the_same() -> None:
    view = Seen()
    await views.close_view(view)
    assert view.closed_by == [threading.current_thread()]


@pytest.mark.usefixtures("no_threads")
async def test_the_reaper_lets_go_of_what_it_destroys_all_the_same() -> None:
    store, view, given_up = Store(FakeDriver()), Seen(), result(BuildId(b"given-up"))
    await store.start()
    store.driver.create(given_up)
    store.reaper.add(given_up, with_foreign=False, view=view)
    await store.reaper.try_all()
    assert view.closed_by
    assert store.reaper.queue == {}
    assert store.driver.info(given_up) is None

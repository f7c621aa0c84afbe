"""The driver that stops: what tests of crashes rest on."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import PowerCut, Stopping
from suites.driver_suite import A, at, snapshots

from zfsfs.directory.driver import DirectoryDriver
from zfsfs.driver import SetProperty, TakeSnapshot


def test_it_carries_out_its_budget_of_verbs_steps_counted_and_nothing_after(tmp_path: Path) -> None:
    driver = DirectoryDriver(str(tmp_path))
    driver.prepare()
    stopping = Stopping(driver, 3)
    stopping.create(A)
    assert stopping.info(A) is not None
    with pytest.raises(PowerCut):
        stopping.batch([TakeSnapshot(at(A, "1")), SetProperty(A, "zfsfs:x", "y"), TakeSnapshot(at(A, "2"))])
    for call in (stopping.list, stopping.sync, lambda: stopping.view(A, writable=False)):
        with pytest.raises(PowerCut):
            call()
    assert stopping.cut
    assert stopping.calls == ["create result/a", "snapshot result/a@1", "set_property result/a zfsfs:x=y"]
    assert snapshots(driver, A) == ["1"]
    stopping.close()

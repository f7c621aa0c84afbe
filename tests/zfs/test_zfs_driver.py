"""The contract of the verbs on real ZFS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from suites.driver_suite import DriverSuite

from zfsfs.driver import Driver


class TestContract(DriverSuite):
    @pytest.fixture
    def driver(self, pool: str) -> Iterator[Driver]:
        from zfsfs.zfs.driver import ZfsDriver

        driver = ZfsDriver(pool)
        driver.lock()
        driver.prepare()
        yield driver
        driver.close()

    @pytest.fixture
    def construct(self, pool: str) -> str:
        return f"from zfsfs.zfs.driver import ZfsDriver\ndriver = ZfsDriver({pool!r})"

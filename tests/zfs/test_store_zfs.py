"""The store on real ZFS."""

from __future__ import annotations

import pytest
from suites.store_suite import StoreSuite

from zfsfs.driver import Driver


class TestOnZfs(StoreSuite):
    @pytest.fixture
    def driver(self, pool: str) -> Driver:
        from zfsfs.zfs.driver import ZfsDriver

        return ZfsDriver(pool)

"""The store on the drivers that need no ZFS."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake import FakeDriver
from suites.store_suite import StoreSuite

from zfsfs.directory.driver import DirectoryDriver


class TestOnTheFake(StoreSuite):
    @pytest.fixture
    def driver(self) -> FakeDriver:
        return FakeDriver()


class TestOnDirectories(StoreSuite):
    @pytest.fixture
    def driver(self, tmp_path: Path) -> DirectoryDriver:
        return DirectoryDriver(str(tmp_path / "store"))

"""What OBuilder left half done, on the drivers that need no ZFS."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from fake import FakeDriver
from storages import folder
from suites.obuilder_suite import OBuilderSuite

from zfsfs.directory.driver import DirectoryDriver


class TestOnTheFake(OBuilderSuite):
    @pytest.fixture
    def driver(self) -> FakeDriver:
        driver = FakeDriver()
        driver.prepare()
        return driver


class TestOnDirectories(OBuilderSuite):
    @pytest.fixture
    def driver(self) -> Iterator[DirectoryDriver]:
        with folder() as room:
            driver = DirectoryDriver(str(room / "store"))
            driver.prepare()
            yield driver
            driver.close()

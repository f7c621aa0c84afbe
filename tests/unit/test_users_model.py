"""Users against the model, on the directory driver."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from storages import MEMORY, DirectoryStorage
from suites.model_suite import UsersModel

from zfsfs.directory.driver import DirectoryDriver

#: In the test command; scripts/torture asks for thousands.
EXAMPLES = int(os.environ.get("ZFSFS_EXAMPLES", "150"))


class OnDirectories(UsersModel):
    def setup(self) -> None:
        self.room = tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="zfsfs-")
        self.storage = DirectoryStorage(Path(self.room.name))

    def driver(self) -> DirectoryDriver:
        driver = self.storage.driver()
        driver.cheap_clones = True  # these are small
        return driver

    def teardown(self) -> None:
        super().teardown()
        self.room.cleanup()


OnDirectories.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestUsers = OnDirectories.TestCase

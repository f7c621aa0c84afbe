"""Users against the model, on real ZFS."""

from __future__ import annotations

import os
import secrets
import subprocess

import pytest
from hypothesis import HealthCheck, settings
from suites.model_suite import UsersModel

from zfsfs.driver import Driver

POOL = os.environ.get("ZFSFS_TEST_POOL", "")
#: In the test command; scripts/torture asks for hundreds.
EXAMPLES = int(os.environ.get("ZFSFS_EXAMPLES", "3"))


class OnZfs(UsersModel):
    def setup(self) -> None:
        self.name = f"{POOL}/u-{secrets.token_hex(6)}"
        subprocess.run(["zfs", "create", "-o", "mountpoint=none", self.name], check=True)

    def driver(self) -> Driver:
        from zfsfs.zfs.driver import ZfsDriver

        return ZfsDriver(self.name)

    def teardown(self) -> None:
        super().teardown()
        subprocess.run(["zfs", "destroy", "-R", self.name], check=True)


OnZfs.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    database=None,
)


@pytest.mark.skipif(not POOL, reason="ZFSFS_TEST_POOL names no pool to test on")
class TestUsers(OnZfs.TestCase):  # type: ignore[misc, name-defined]
    """Collected only where there is a pool."""

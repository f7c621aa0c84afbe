"""What OBuilder left half done on real ZFS: by the verbs, and by its own commands with everything mounted."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from suites.crash_suite import seen, settled
from suites.obuilder_suite import MAIN, OBuilderSuite, at

from zfsfs.driver import Driver
from zfsfs.store import carry_out


@pytest.fixture
def driver(unlocked: Driver) -> Driver:
    return unlocked


class TestOnZfs(OBuilderSuite):
    @pytest.mark.parametrize("done", range(8))
    @pytest.mark.parametrize("others", [0, 3])
    def test_a_release_that_was_cut_off(self, driver: Driver, others: int, done: int) -> None:
        super().test_a_release_that_was_cut_off(driver, others, done)


def zfs(*arguments: str) -> None:
    subprocess.run(["zfs", *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("done", [1, 2, 4, 7])
def test_its_own_commands_with_everything_mounted(pool: str, tmp_path: Path, done: int) -> None:
    from zfsfs.zfs.driver import ZfsDriver

    zfs("set", f"mountpoint={tmp_path}/pool", pool)
    for group in ("state", "result", "cache", "cache-tmp"):
        zfs("create", "--", f"{pool}/{group}")
    main, new, gone = f"{pool}/cache/c-npm", f"{pool}/cache-tmp/1-c-npm", f"{pool}/cache-tmp/2-c-npm"
    zfs("create", "--", main)
    for name in ("one", "two"):
        (tmp_path / "pool/cache/c-npm" / name).write_text("old")
    zfs("snapshot", "--", f"{main}@snap")
    for clone in (f"{pool}/cache-tmp/0-c-npm", new):
        zfs("clone", "--", f"{main}@snap", clone)
    for name in ("one", "two"):
        (tmp_path / "pool/cache-tmp/1-c-npm" / name).write_text("new")
    commands = [
        ("rename", "--", main, gone),
        ("promote", new),
        ("destroy", "--", gone),
        ("rename", "--", f"{new}@snap", f"{new}@old-0"),
        ("destroy", "-d", "--", f"{new}@old-0"),
        ("snapshot", "--", f"{new}@snap"),
        ("rename", "--", new, main),
    ]
    for command in commands[:done]:
        zfs(*command)
    driver = ZfsDriver(pool)
    driver.lock()
    driver.prepare()
    report = carry_out(driver)
    assert report.warnings == []
    assert seen(driver, at(MAIN)) == ("new" if done >= 2 else "old")
    # Who has it mounted keeps it from being destroyed, and is told so.
    assert report.postponed
    assert all("mounted" in reason or "clone" in reason for _, reason in report.postponed.values())
    driver.close()
    zfs("unmount", "-a")
    driver.lock()
    carry_out(driver)
    settled(driver)
    assert [each for each in driver.list() if each.group == "cache-tmp" and each.leaf] == []
    assert seen(driver, MAIN) == ("new" if done >= 2 else "old")
    driver.close()

"""Storages that outlive the drivers that use them, and can be copied as they are: for tests of crashes."""

from __future__ import annotations

import copy
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fake import FakeDriver
from faults import PowerCut

from zfsfs.directory.driver import DirectoryDriver
from zfsfs.directory.verbs import Verbs
from zfsfs.names import Dataset

MEMORY = Path("/dev/shm")


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary directory, in memory where there is some: what is synced is not what these tests are about."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None, prefix="zfsfs-") as name:
        yield Path(name)


class FakeStorage:
    """In memory."""

    def __init__(self, driver: FakeDriver | None = None) -> None:
        self._driver = driver or FakeDriver()

    def driver(self) -> FakeDriver:
        """What the next process sees of it."""
        self._driver.close()
        return self._driver

    def copy(self) -> FakeStorage:
        """The same, to be spoilt."""
        return FakeStorage(copy.deepcopy(self._driver))

    def leaks(self) -> list[str]:
        """What lies in it that no dataset refers to."""
        return []


class DirectoryStorage:
    """A directory."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "store"

    def driver(self) -> DirectoryDriver:
        return DirectoryDriver(str(self._path))

    def dying(self, budget: int) -> DyingDirectory:
        """A driver that ends within a verb."""
        return DyingDirectory(str(self._path), budget)

    def copy(self) -> DirectoryStorage:
        other = DirectoryStorage(Path(tempfile.mkdtemp(dir=self._path.parent)))
        shutil.copytree(self._path, other._path, symlinks=True)
        return other

    def leaks(self) -> list[str]:
        driver = self.driver()
        with driver._rows.transaction("the test"):
            kept = driver._rows.trees()
        driver.close()
        return sorted({each.name for each in (self._path / "trees").iterdir()} - kept)


class DyingDirectory(DirectoryDriver):
    """A directory driver whose process ends at the moment number `budget` of those at which its storage changes:
    before and within a copy, before a transaction is committed, after it, before and within a removal. From then on
    every one of them fails. `moments` counts them.
    """

    def __init__(self, path: str, budget: int) -> None:
        super().__init__(path)
        self._left = budget
        self.cut = False
        self.moments = 0

    def arm(self, budget: int) -> None:
        self._left, self.moments = budget, 0

    def _moment(self) -> bool:
        """Whether it is the last; the caller may then leave something half done, and raises PowerCut."""
        if self.cut:
            raise PowerCut
        self.moments += 1
        self._left -= 1
        self.cut = self._left < 0
        return self.cut

    @contextmanager
    def _verb(self, what: object) -> Iterator[Verbs]:
        if self.cut:
            raise PowerCut
        changes = 0

        def total() -> int:
            connection = self._rows._connection
            return 0 if connection is None else connection.total_changes

        with super()._verb(what) as verbs:
            before = total()
            yield verbs
            changes = total() - before
            if changes and self._moment():
                raise PowerCut  # rolled back, as sqlite does it with what it finds after a crash
        if changes and self._moment():
            raise PowerCut

    def _copy(self, dataset: Dataset, source: str, target: str) -> None:
        if self._moment():
            raise PowerCut
        super()._copy(dataset, source, target)
        if self._moment():
            self._spoil(target)
            raise PowerCut

    def _remove(self, tree: str) -> None:
        if self._moment():
            raise PowerCut
        if self._moment():
            self._spoil(tree)
            raise PowerCut
        super()._remove(tree)

    def _spoil(self, tree: str) -> None:
        """A copy or removal that was cut off: some of its files are not there."""
        for each in sorted((Path(self._path) / "trees" / tree).iterdir())[:1]:
            each.unlink()

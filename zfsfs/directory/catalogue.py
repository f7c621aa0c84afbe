"""The catalogue of a directory store: which datasets and snapshots there are, and which tree holds whose contents.

What is stored, in `catalogue.sqlite`
- a row of `dataset`: the dataset exists. `tree` is the directory of its contents, `origin` the snapshot that it was
  cloned from.
- a row of `snapshot`: the snapshot exists. A newer one has a greater `id`, which orders them as createtxg does in
  ZFS. `tree` may be a head's too: then that head's contents are frozen until it gets a copy of its own. `deferred`:
  it goes with the last clone.
- a row of `property`: the user property is set on that dataset itself.
- `application_id` says that the file is ours, `user_version` which format it has.

Guarantees: a transaction has happened as a whole, and for good once `transaction` has returned, or not at all.

Sources: sqlite.org on WAL, locking_mode=EXCLUSIVE (WAL without shared memory), synchronous=FULL (a commit is synced),
application_id and user_version.
"""

from __future__ import annotations

import errno
import os
import secrets
import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from zfsfs.directory.failures import translated
from zfsfs.driver import DatasetInfo, SnapshotInfo
from zfsfs.errors import Busy, DriverError, NoSpace, ReadOnly, StoreError, Unavailable
from zfsfs.names import Dataset, Snapshot

FILE = "catalogue.sqlite"
#: Seconds for who looks at a store that nobody serves.
PATIENCE = 5.0
FORMAT = 1
_APPLICATION = 0x7A667366  # "zfsf"

_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE dataset (
    id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, guid INTEGER NOT NULL UNIQUE,
    tree TEXT NOT NULL UNIQUE, origin INTEGER REFERENCES snapshot (id), created INTEGER NOT NULL);
CREATE INDEX dataset_origin ON dataset (origin);
CREATE TABLE snapshot (
    id INTEGER PRIMARY KEY AUTOINCREMENT, dataset INTEGER NOT NULL REFERENCES dataset (id), name TEXT NOT NULL,
    guid INTEGER NOT NULL UNIQUE, tree TEXT NOT NULL, deferred INTEGER NOT NULL DEFAULT 0, UNIQUE (dataset, name));
CREATE INDEX snapshot_tree ON snapshot (tree);
CREATE TABLE property (
    dataset INTEGER NOT NULL REFERENCES dataset (id) ON DELETE CASCADE, name TEXT NOT NULL, value TEXT NOT NULL,
    PRIMARY KEY (dataset, name)) WITHOUT ROWID;
PRAGMA application_id = {_APPLICATION};
PRAGMA user_version = {FORMAT};
COMMIT;
"""


@dataclass(frozen=True, slots=True)
class Head:
    """A row of `dataset`."""

    id: int
    dataset: Dataset
    guid: int
    tree: str
    origin: int | None
    created: int


@dataclass(frozen=True, slots=True)
class Frozen:
    """A row of `snapshot`; `owner` is the id of its dataset."""

    id: int
    owner: int
    name: str
    guid: int
    tree: str
    deferred: bool


class Catalogue:
    """The rows, behind one connection and one lock. Methods other than `transaction` belong inside one."""

    def __init__(self, directory: str, shown: str) -> None:
        self._path = os.path.join(directory, FILE)
        self._shown = shown
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None

    def exists(self) -> bool:
        return os.path.exists(self._path)

    def open(self, *, make: bool = False) -> None:
        """Open the file, which is made when it may be. Raises Unavailable: missing, not ours, or a newer format."""
        with self._lock:
            if self._connection is not None:
                return
            if not make and not self.exists():
                raise Unavailable(f"{self._shown} holds no zfsfs store")
            connection = None
            try:
                connection = sqlite3.connect(
                    self._path, isolation_level=None, check_same_thread=False, timeout=PATIENCE
                )
                # For us alone, so without an index in shared memory: where there is no room, btrfs has SIGBUS for who
                # writes in a mapping.
                connection.execute("PRAGMA locking_mode = EXCLUSIVE")
                self._check(connection, make)
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                    connection.execute(f"PRAGMA {pragma}")
            except sqlite3.Error as error:
                _close(connection)
                if _code(error) == sqlite3.SQLITE_BUSY:
                    raise Busy(f"{self._shown} is in use: it has to be unmounted first") from error
                raise Unavailable(f"{self._shown}: {FILE} can't be used: {error}") from error
            except BaseException:
                _close(connection)
                raise
            self._connection = connection

    def _check(self, connection: sqlite3.Connection, make: bool) -> None:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        application: int = connection.execute("PRAGMA application_id").fetchone()[0]
        if make and not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            connection.executescript(_SCHEMA)
        elif application != _APPLICATION:
            raise Unavailable(f"{self._shown}: {FILE} is not zfsfs's")
        elif version > FORMAT:
            raise Unavailable(
                f"{self._shown} has format {version}, written by a newer zfsfs; this one knows up to {FORMAT}"
            )

    def close(self) -> None:
        with self._lock:
            _close(self._connection)
            self._connection = None

    @contextmanager
    def transaction(self, what: object) -> Iterator[None]:
        """One instant: what the block reads belongs together, and what it writes is done once this returns.
        sqlite's errors are raised as StoreErrors that name `what`."""
        with self._lock:
            self.open()
            try:
                self._run("BEGIN IMMEDIATE")
                try:
                    yield
                    self._run("COMMIT")
                except BaseException:
                    if self._connection is not None and self._connection.in_transaction:
                        self._run("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                self._say_why(error, what)
                raise _translated(error, what) from error

    def _say_why(self, error: sqlite3.Error, what: object) -> None:
        # Of what the system says sqlite passes on ENOSPC alone. A write of ours is told of a quota, too.
        if _code(error) == sqlite3.SQLITE_IOERR:
            with translated(what), tempfile.TemporaryFile(dir=os.path.dirname(self._path), buffering=0) as file:
                file.write(os.urandom(1 << 14))
                os.fsync(file.fileno())

    def _run(self, sql: str, *values: object) -> sqlite3.Cursor:
        assert self._connection is not None
        return self._connection.execute(sql, values)

    # Datasets

    def head(self, dataset: Dataset) -> Head | None:
        return next(self._heads("WHERE name = ?", str(dataset)), None)

    def head_by_id(self, number: int) -> Head:
        return next(self._heads("WHERE id = ?", number))

    def heads(self) -> list[Head]:
        return list(self._heads(""))

    def _heads(self, where: str, *values: object) -> Iterator[Head]:
        for row in self._run(
            f"SELECT id, name, guid, tree, origin, created FROM dataset {where}", *values
        ).fetchall():
            dataset = Dataset.parse(row[1])
            assert dataset is not None
            yield Head(row[0], dataset, *row[2:])

    def has_children(self, group: str) -> bool:
        return self._run("SELECT 1 FROM dataset WHERE name GLOB ? LIMIT 1", f"{group}/*").fetchone() is not None

    def add_head(self, dataset: Dataset, tree: str, origin: int | None) -> None:
        self._run(
            "INSERT INTO dataset (name, guid, tree, origin, created) VALUES (?, ?, ?, ?, ?)",
            *(str(dataset), _guid(), tree, origin, int(time.time())),
        )

    def change_head(self, number: int, column: str, value: object) -> None:
        assert column in ("name", "tree", "origin")
        self._run(f"UPDATE dataset SET {column} = ? WHERE id = ?", value, number)

    def drop_head(self, number: int) -> None:
        self._run("DELETE FROM dataset WHERE id = ?", number)

    def set_property(self, number: int, name: str, value: str) -> None:
        self._run("INSERT OR REPLACE INTO property VALUES (?, ?, ?)", number, name, value)

    # Snapshots

    def frozen(self, owner: int, name: str) -> Frozen | None:
        return next(self._frozen("WHERE dataset = ? AND name = ?", owner, name), None)

    def frozen_by_id(self, number: int) -> Frozen | None:
        return next(self._frozen("WHERE id = ?", number), None)

    def snapshots_of(self, owner: int) -> list[Frozen]:
        return list(self._frozen("WHERE dataset = ?", owner))

    def sharing(self, tree: str) -> set[int]:
        """The ids of the snapshots whose contents a tree holds."""
        return {each.id for each in self._frozen("WHERE tree = ?", tree)}

    def _frozen(self, where: str, *values: object) -> Iterator[Frozen]:
        sql = f"SELECT id, dataset, name, guid, tree, deferred FROM snapshot {where} ORDER BY id"
        for row in self._run(sql, *values).fetchall():
            yield Frozen(row[0], row[1], row[2], row[3], row[4], bool(row[5]))

    def add_snapshot(self, owner: int, name: str, tree: str) -> None:
        sql = "INSERT INTO snapshot (dataset, name, guid, tree) VALUES (?, ?, ?, ?)"
        self._run(sql, owner, name, _guid(), tree)

    def change_snapshot(self, number: int, column: str, value: object) -> None:
        assert column in ("dataset", "name", "deferred")
        self._run(f"UPDATE snapshot SET {column} = ? WHERE id = ?", value, number)

    def drop_snapshot(self, number: int) -> None:
        self._run("DELETE FROM snapshot WHERE id = ?", number)

    def clones(self, number: int) -> int:
        count: int = self._run("SELECT count(*) FROM dataset WHERE origin = ?", number).fetchone()[0]
        return count

    def trees(self) -> set[str]:
        """Every tree that a row refers to."""
        return {row[0] for row in self._run("SELECT tree FROM dataset UNION SELECT tree FROM snapshot")}

    def refers_to(self, tree: str) -> bool:
        """Whether a row refers to a tree."""
        sql = "SELECT 1 FROM dataset WHERE tree = ? UNION ALL SELECT 1 FROM snapshot WHERE tree = ? LIMIT 1"
        return self._run(sql, tree, tree).fetchone() is not None

    def info(self, head: Head) -> DatasetInfo:
        origin = None if head.origin is None else self.frozen_by_id(head.origin)
        return DatasetInfo(
            dataset=head.dataset,
            guid=head.guid,
            origin=None if origin is None else Snapshot(self.head_by_id(origin.owner).dataset, origin.name),
            snapshots=tuple(
                SnapshotInfo(Snapshot(head.dataset, each.name), each.guid, self.clones(each.id), each.deferred)
                for each in self.snapshots_of(head.id)
            ),
            properties=dict(self._run("SELECT name, value FROM property WHERE dataset = ?", head.id).fetchall()),
            created=head.created,
        )


def _guid() -> int:
    return secrets.randbelow((1 << 63) - 1) + 1


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        connection.close()


def _code(error: sqlite3.Error) -> int:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _translated(error: sqlite3.Error, what: object) -> StoreError:
    code = _code(error)
    if code == sqlite3.SQLITE_FULL:
        return NoSpace(f"{what}: no space is left for the catalogue")
    if code == sqlite3.SQLITE_READONLY:
        return ReadOnly(f"{what}: the catalogue can't be written")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy(f"{what}: another process is using the catalogue")
    return DriverError(f"{what}: the catalogue failed: {error}", errno.EIO)

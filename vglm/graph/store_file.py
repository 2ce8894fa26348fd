"""The file of a graph store: opened and checked, a connection for each thread that needs one, errors in plain words.

SQLite in WAL mode with synchronous=FULL: a commit is on disk when it returns, readers see the last commit and never
wait, one writer at a time. A file that is foreign or damaged is refused and left as it is.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vglm.errors import StoreError
from vglm.graph.store_schema import APPLICATION_ID, SCHEMA, SCHEMA_VERSION, Damaged

_HEADER = b"SQLite format 3\0"
_PAGE = 4096
_WAL_BYTES = 16 << 20  # what is kept of the write-ahead log's file once it has been worked off
_DAMAGED = "is damaged ({}); restore a copy of it, or move it away to begin a new store"
_REASONS = {
    3: "access is denied",
    5: "another process has been writing to it for too long; try again",
    6: "another process has been writing to it for too long; try again",
    8: "cannot be written: the file, its folder or the disk is read-only",
    10: "cannot be read or written: the disk is full or failing ({}); nothing has been changed",
    11: _DAMAGED,
    13: "cannot be written: the disk is full; nothing has been changed",
    14: "cannot be opened: no such folder, or no permission to write there",
    15: "uses a locking protocol that this disk does not support",
    18: "a value is too large for it; nothing has been changed",
    22: "is too large for this disk's file system; nothing has been changed",
    26: "is not a graph store; it has not been changed",
}


def default_store_path() -> Path:
    """`VGLM_GRAPH_STORE`, or vglm/graphs.db in `XDG_DATA_HOME` (~/.local/share): graphs are data, not cache."""
    configured = os.environ.get("VGLM_GRAPH_STORE")
    if configured:
        return Path(configured).expanduser()
    data = Path(os.environ.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "vglm" / "graphs.db"


class StoreFile:
    """Transactions on one database file, for any number of threads and processes.

    Raises StoreError when the file cannot be opened or is no graph store of a known version.
    """

    def __init__(self, path: Path, *, create: bool, timeout: float) -> None:
        self.path = path
        self._timeout = timeout
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._writer = threading.RLock()
        self._process = os.getpid()
        self._closed = False
        try:
            with self._plain_errors():  # also of a folder that cannot be made
                _check_header(path, create)
                with self._connection() as db:
                    _check_schema(db, path)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A transaction that sees one state of the database throughout."""
        with self._plain_errors(), self._connection() as db:
            db.execute("BEGIN")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The transaction of the only writer; on disk when the block has ended, undone when it raises."""
        with self._writer, self._plain_errors(), self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def give_back(self) -> None:
        """Returns pages that a deletion left empty to the file system."""
        with self._writer, self._plain_errors(), self._connection() as db:
            db.executescript("PRAGMA incremental_vacuum")  # `execute` would stop after one page
            db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def integrity(self) -> list[str]:
        """What SQLite's own check finds wrong; nothing, as a rule."""
        with self.reading() as db:
            found = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    def close(self) -> None:
        """Closes the connections; a transaction that still runs closes its own when it ends."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for db in idle:
            db.close()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        db = self._take()
        healthy = False
        try:
            yield db
            healthy = True
        except sqlite3.Error:
            raise
        except BaseException:
            _roll_back(db)
            healthy = not db.in_transaction
            raise
        finally:
            with self._lock:
                keep = healthy and not self._closed
                if keep:
                    self._idle.append(db)
            if not keep:
                db.close()  # which undoes what was not committed

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._closed:
                raise StoreError(f"{self.path}: the graph store has been closed")
            if os.getpid() != self._process:
                # NOTE: connections must not be used, nor closed, in a child process; so they are left alone.
                _INHERITED.extend(self._idle)
                self._idle, self._process = [], os.getpid()
            if self._idle:
                return self._idle.pop()
        return _connect(self.path, self._timeout)

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            # Python gives no code for text that it cannot decode, which is damage (11) like any other
            reason = _REASONS.get(getattr(error, "sqlite_errorcode", 11) & 0xFF)
            if reason is None or isinstance(error, sqlite3.ProgrammingError):
                raise
            raise StoreError(f"{self.path}: {reason.format(error)}") from error
        except (Damaged, UnicodeDecodeError) as error:
            raise StoreError(f"{self.path}: {_DAMAGED.format(error)}") from error
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be opened: {error.strerror or error}") from error


_INHERITED: list[sqlite3.Connection] = []


def _check_header(path: Path, create: bool) -> None:
    """Makes a missing file if that is allowed; refuses a foreign one before SQLite touches it."""
    if "\0" in str(path):
        raise StoreError(f"{str(path)!r}: is no file name")
    if not os.path.lexists(path):
        if not create:
            raise StoreError(f"{path}: there is no graph store yet; `vglm graph import` makes one")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _create(path)
    if not path.is_file():
        raise StoreError(f"{path}: is not a file")
    with path.open("rb") as file:
        header = file.read(100)
    if header[:16] != _HEADER or len(header) < 100:
        kind = "not a graph store" if header else "an empty file and not a graph store"
        raise StoreError(f"{path}: is {kind}; it has not been changed")
    if int.from_bytes(header[68:72], "big") != APPLICATION_ID:
        raise StoreError(f"{path}: is another program's database; it has not been changed")


def _create(path: Path) -> None:
    """Makes an empty store beside its place and links it there, so that nobody ever sees half of one."""
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.tmp")
    try:
        db = sqlite3.connect(temporary.absolute(), isolation_level=None)
        try:
            db.execute(f"PRAGMA page_size = {_PAGE}")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute("BEGIN")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            for statement in SCHEMA:
                db.execute(statement)
            db.execute("COMMIT")
            _use_wal(db, path)
        finally:
            db.close()
        with suppress(FileExistsError):  # another process was faster
            os.link(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    finally:
        temporary.unlink(missing_ok=True)


def _connect(path: Path, timeout: float) -> sqlite3.Connection:
    db = sqlite3.connect(path.absolute(), timeout=timeout, isolation_level=None, check_same_thread=False)
    try:
        _use_wal(db, path)
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES}")
        db.execute("PRAGMA trusted_schema = OFF")
    except BaseException:
        db.close()
        raise
    return db


def _use_wal(db: sqlite3.Connection, path: Path) -> None:
    """WAL mode lasts; a file that is in it already answers at once."""
    if db.execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
        raise StoreError(f"{path}: this disk cannot hold a graph store (no shared memory, as on NFS)")


def _check_schema(db: sqlite3.Connection, path: Path) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise StoreError(f"{path}: is another program's database; it has not been changed")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: was written by a newer vGLM (format {version}); update vGLM to read it")
    tables = db.execute("SELECT sql FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
    if version != SCHEMA_VERSION or {row[0] for row in tables} != set(SCHEMA):
        raise Damaged("its tables are not those of a graph store")


def _roll_back(db: sqlite3.Connection) -> None:
    if db.in_transaction:
        db.execute("ROLLBACK")

"""Answers of a server, kept one by one as they come, so that a stop or crash loses none and a resumed unit replays them
free.

One SQLite file in WAL mode: a kill leaves it whole (a power cut may take the last moments' answers), several processes
may share it, all on this machine: WAL does not work across a network file system. An answer is found by a digest of
everything that shaped it, which the caller gives as parts; whatever is damaged is removed, and counts as not there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sqlite3
import threading
from pathlib import Path
from typing import Any

from flywheel.records import canonical_json, digest

_log = logging.getLogger("flywheel.server")
_FILE = "answers.sqlite"
_WAIT_SECONDS = 30.0


class AnswerCache:
    """Answers on disk, each a JSON object, by the parts that shaped it."""

    def __init__(self, folder: Path) -> None:
        """Open or make the file in `folder`. Raises OSError where that cannot be written."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / _FILE
        self._lock = threading.Lock()
        try:
            self._connection = self._open()
        except sqlite3.DatabaseError as error:
            self._check_damaged(error)
            self._connection = self._renew(error)

    def get(self, parts: dict[str, Any]) -> dict[str, Any] | None:
        """The answer that these parts shaped, or None. An entry that does not match its checksum is removed."""
        name = digest("answer", parts)
        with self._lock:
            try:
                row = self._connection.execute(
                    "SELECT content, checksum FROM answers WHERE name = ?", [name]
                ).fetchone()
            except sqlite3.DatabaseError as error:
                self._check_damaged(error)
                self._connection = self._renew(error)
                return None
            if row is None:
                return None
            content, checksum = row
            if isinstance(content, str) and checksum == digest(name, content):
                answer: dict[str, Any] = json.loads(content)
                return answer
            self._connection.execute("DELETE FROM answers WHERE name = ?", [name])
            return None

    def put(self, parts: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer; it is there for every process once this returns."""
        name, content = digest("answer", parts), canonical_json(answer)
        row = [name, content, digest(name, content)]
        with self._lock:
            try:
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)
            except sqlite3.DatabaseError as error:
                self._check_damaged(error)
                self._connection = self._renew(error)
                self._connection.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?)", row)

    def __len__(self) -> int:
        with self._lock:
            return int(self._connection.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Fold the log back into the file and let go of it."""
        with self._lock:
            self._connection.close()

    def _open(self) -> sqlite3.Connection:
        # Each statement is a transaction of its own; the lock here keeps threads apart.
        connection = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS answers (name TEXT PRIMARY KEY, content TEXT, checksum TEXT) WITHOUT ROWID"
            )
            connection.execute("SELECT name, content, checksum FROM answers LIMIT 1").fetchone()
        except sqlite3.DatabaseError:
            connection.close()
            raise
        return connection

    def _renew(self, error: sqlite3.DatabaseError) -> sqlite3.Connection:
        """Remove a damaged file and begin anew."""
        _log.warning("%s is damaged (%s) and was begun anew; answers in it are asked for again", self.path, error)
        with contextlib.suppress(AttributeError, sqlite3.DatabaseError):
            self._connection.close()
        for ending in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        return self._open()

    def _check_damaged(self, error: sqlite3.DatabaseError) -> None:
        """Only damage is a reason to begin anew: a busy or unwritable file, or a full disk, is the user's to know."""
        if (
            isinstance(error, sqlite3.OperationalError)
            and "malformed" not in str(error)
            and "no such" not in str(error)
        ):
            raise OSError(f"{self.path} cannot be used: {error}; answers of the server are kept there") from error

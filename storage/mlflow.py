"""MLflow's database and a client on it: SQLite, in a file of its own.

Making that file runs some seventy migrations, 6 to 11 s of waiting for the disk; `initialise` does it beside the final
place without that wait, in 1.2 s, then renames it. What is recorded is in `storage.mlflow_run`, when in
`storage.tracking`.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from storage.layout import Layout

EXPERIMENT = "flywheel"
LOCK_SECONDS = 2.0
"""How long a locked database is waited for. MLflow itself would wait 20 s at every statement."""

_clients: dict[Path, Any] = {}
_guard = threading.Lock()


def database(layout: Layout) -> Path:
    """The file; it exists once it is complete."""
    return layout.mlflow / "mlflow.db"


def store_uri(layout: Layout) -> str:
    """The tracking URI, for MLflow's own tools."""
    return f"sqlite:///{database(layout)}"


def initialise(layout: Layout) -> None:
    """Make the database if there is none. Other callers, in this process or another, wait for the first.

    Raises MLflow's, SQLAlchemy's or the system's errors; nothing half-made is left in place then.
    """
    target = database(layout)
    if target.exists():
        return
    layout.mlflow.mkdir(parents=True, exist_ok=True)
    with (layout.mlflow / "init.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if target.exists():
            return
        for draft in layout.mlflow.glob("draft-*"):
            shutil.rmtree(draft)
        draft = layout.mlflow / f"draft-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        _build(draft / target.name)
        os.replace(draft / target.name, target)
        shutil.rmtree(draft)


def warm_up(layout: Layout) -> threading.Thread:
    """Begin in a thread what a process's first record waits for: importing MLflow (1 s), the database (1.2 s, once).

    Call it when the first generation begins to compute, other imports done. Nobody needs to join the thread; an error
    in it is told again, to whoever records.
    """

    def work() -> None:
        try:
            client(layout)
        except away() as error:
            logging.getLogger("flywheel.tracking").debug("MLflow is not ready yet: %s", error)

    thread = threading.Thread(target=work, name="mlflow-warm-up", daemon=True)
    thread.start()
    return thread


def away() -> tuple[type[Exception], ...]:
    """The errors of a store that is away, locked or refuses: SQLAlchemy's come through MLflow unchanged."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    return (MlflowException, SQLAlchemyError, OSError)


def client(layout: Layout) -> Any:
    """A client on the registry's database, made once a process: making the store takes 0.3 s, a call some ms."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with _guard:
        initialise(layout)
        key = database(layout)
        if key not in _clients:
            from mlflow import MlflowClient

            _clients[key] = MlflowClient(tracking_uri=store_uri(layout), registry_uri=store_uri(layout))
        return _clients[key]


def writable_client(layout: Layout) -> Any:
    """`client`, once the database can be written. Raises OSError if it stays locked or is no database."""
    import sqlite3

    initialise(layout)
    path = database(layout)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    return client(layout)


def _build(path: Path) -> None:
    """Run MLflow's migrations on a new file. A crash leaves a draft, so the disk is waited for once, at the end."""
    import sqlite3

    from mlflow import MlflowClient
    from sqlalchemy import event
    from sqlalchemy.pool import Pool

    def without_waiting(connection: Any, _: object) -> None:
        # Every pool of the process is heard; only connections to the draft are meant.
        if isinstance(connection, sqlite3.Connection):
            files = [row[2] for row in connection.execute("PRAGMA database_list")]
            if files and os.path.samefile(files[0] or os.devnull, path):
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute("PRAGMA journal_mode=MEMORY")

    with _quiet_migrations():
        event.listen(Pool, "connect", without_waiting)
        try:
            uri = f"sqlite:///{path}"
            experiment(MlflowClient(tracking_uri=uri, registry_uri=uri))
        finally:
            event.remove(Pool, "connect", without_waiting)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _quiet_migrations() -> Iterator[None]:
    """Keep seventy lines about migrations off the terminal."""
    loggers = [logging.getLogger(name) for name in ("alembic", "mlflow.store.db.utils")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def experiment(store: Any) -> str:
    """Id of the experiment that holds all generations, made if it is not there."""
    from mlflow.exceptions import MlflowException

    found = store.get_experiment_by_name(EXPERIMENT)
    if found is None:
        try:
            # A server resolves this to its own folder; a path would break when the registry moves.
            return str(store.create_experiment(EXPERIMENT, artifact_location="mlflow-artifacts:/flywheel"))
        except MlflowException:
            found = store.get_experiment_by_name(EXPERIMENT)
            if found is None:
                raise
    return str(found.experiment_id)

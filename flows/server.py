"""The Prefect server a run talks to: the standing one of this registry, one the user names, or one of its own.

Never Prefect's temporary server: it hangs on Ctrl-C, and a kill leaves it behind. Our own is a child in a session of
its own, so that Ctrl-C in the terminal reaches the run first, and the kernel ends it when this process dies.

`start_early` should come before Prefect is imported, since Prefect reads its environment once; it returns at once, so
that the caller imports torch while the server starts. A Prefect imported before has its settings changed in place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import processes, rest
from flows.processes import HOST, Process
from flows.state import read_services
from flywheel.errors import InputError
from storage.layout import Layout

START_SECONDS = 120.0
"""A new database alone takes 5 s of processor time, more on a busy machine."""
_IDLE_SERVICES = (
    "SCHEDULER",
    "LATE_RUNS",
    "FOREMAN",
    "PAUSE_EXPIRATIONS",
    "CANCELLATION_CLEANUP",
    "TRIGGERS",
    "EVENT_PERSISTER",
    "REPOSSESSOR",
    "CLEANUP_RECONCILER",
)
"""What a server for one run has no use for; the processors are better spent on the run."""


@dataclass(frozen=True, slots=True)
class Server:
    """A Prefect API at `url`; `process` is the one we started for it, None if it was there already."""

    url: str
    process: Process | None
    log: Path
    settings: dict[str, str]
    """What this process was given to talk to it."""
    before: dict[str, str | None]
    """Those variables as they were."""


def start_early(layout: Layout) -> Server:
    """Choose or start the server and point this process at it; `own_server` waits for it.

    Call it from the main thread: the server ends with the thread that started it. Raises InputError if PREFECT_API_URL
    names a server that does not answer.
    """
    log = layout.local / "logs" / "prefect-server.log"
    found = standing(layout)
    if found is not None:
        return _point(found, None, log, client_settings(layout, found))
    named = os.environ.get("PREFECT_API_URL", "").rstrip("/")
    if named:
        if not processes.answers(f"{named}/health", seconds=5.0):
            raise InputError(
                f"PREFECT_API_URL is {named}, and no Prefect server answers there; "
                "start it, or unset the variable and a server is started for the run"
            )
        settings = client_settings(layout, named)
        del settings["PREFECT_HOME"]  # the user's server goes with the user's own settings
        return _point(named, None, log, settings)
    port = processes.free_port()
    url = f"http://{HOST}:{port}/api"
    settings = client_settings(layout, url)
    environment = processes.base_environment() | settings | server_settings(layout, standing=False)
    arguments = ["--port", str(port), "--with", str(os.getpid())]
    return _point(url, processes.spawn("flows.serve_api", arguments, environment, log), log, settings)


@contextmanager
def own_server(layout: Layout, server: Server | None = None) -> Iterator[str]:
    """The URL of a Prefect API that answers, for as long as the block lasts; one started for it ends with it.

    Hold the registry's lock around this: on a server of our own every run that the database calls unfinished belongs to
    a process that died, and becomes `Crashed`. Raises FlywheelError with the end of the log if it does not start.
    """
    server = server or start_early(layout)
    with ExitStack() as stack:
        stack.callback(_restore, server.before)
        if server.process is not None:
            stack.callback(processes.stop, server.process, 5.0)
            processes.wait_healthy(f"{server.url}/health", server.process, server.log, "Prefect server", START_SECONDS)
            rest.crash_unfinished(server.url)
        if "prefect" in sys.modules:
            stack.enter_context(_settings_in_place(server.settings))
        stack.callback(_drain)
        yield server.url


def standing(layout: Layout) -> str | None:
    """The API of this registry's standing server (`up`) if it runs and answers."""
    service = read_services(layout).get("prefect")
    if service is None or not service.process.alive:
        return None
    return service.url if processes.answers(f"{service.url}/health") else None


def client_settings(layout: Layout, url: str) -> dict[str, str]:
    """What a process that talks to the server at `url` needs in its environment."""
    quiet = processes.base_environment()
    names = ("NO_PROXY", "no_proxy", "DO_NOT_TRACK", "PREFECT_SERVER_ANALYTICS_ENABLED", "MLFLOW_DISABLE_TELEMETRY")
    return {name: quiet[name] for name in names} | {
        "PREFECT_API_URL": url,
        "PREFECT_HOME": str(layout.prefect),
        "PREFECT_LOGGING_LEVEL": os.environ.get("PREFECT_LOGGING_LEVEL", "WARNING"),
        # Tasks of another process tree must never start servers of their own.
        "PREFECT_SERVER_ALLOW_EPHEMERAL_MODE": "false",
    }


def server_settings(layout: Layout, *, standing: bool) -> dict[str, str]:
    """What the server process needs besides; a standing one keeps scheduler, page and the rest of its services.

    Block types are not registered (1 s at every start): nothing here stores blocks.
    """
    settings = {
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_LOGGING_SERVER_LEVEL": "WARNING",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{layout.prefect / 'prefect.db'}",
        "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    if not standing:
        settings["PREFECT_SERVER_UI_ENABLED"] = "false"
        settings |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in _IDLE_SERVICES}
    return settings


def _point(url: str, process: Process | None, log: Path, settings: dict[str, str]) -> Server:
    """Put what a client needs into this process's environment."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    return Server(url, process, log, settings, before)


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextmanager
def _settings_in_place(values: dict[str, str]) -> Iterator[None]:
    """Give a Prefect that was imported before the server was chosen the settings it could not read then."""
    from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

    changed: dict[Any, Any] = {PREFECT_API_URL: values["PREFECT_API_URL"]}
    if "PREFECT_HOME" in values:
        changed[PREFECT_HOME] = Path(values["PREFECT_HOME"])
    with temporary_settings(changed):
        yield


def _drain() -> None:
    """Send what Prefect's threads still hold while there is a server to take it."""
    if "prefect.events.worker" in sys.modules:
        from prefect.events.worker import EventsWorker

        EventsWorker.drain_all(timeout=5)
    if "prefect.logging.handlers" in sys.modules:
        from prefect.logging.handlers import APILogWorker

        APILogWorker.drain_all(timeout=5)

"""The services of a registry on this machine: Prefect's server, the process that serves the schedule, MLflow's server.

    up     prefect ─ healthy ─ leftovers settled ─ serve (if there is a schedule)
           mlflow  ─ healthy
    down   serve ─ leftovers crashed ─ mlflow ─ prefect

Each runs in a session of its own on loopback and outlives the command that started it; `.flywheel/services.json` says
which they are. After a reboot `up` restores all of it, the schedule too, from the files in `.flywheel`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flows import processes, rest
from flows.processes import HOST
from flows.server import START_SECONDS, client_settings, server_settings
from flows.state import Service, read_services, write_services
from flows.ticks import DEPLOYMENT, read_schedule
from flywheel.errors import FlywheelError, InputError, RegistryBusy
from storage import lock, tracking
from storage.layout import Layout
from storage.registry import Registry

ORDER = ("serve", "mlflow", "prefect")
"""The order they end in: nothing may start a run while the server goes away."""
_SERVE_SECONDS = 60.0


def up(layout: Layout, *, port_prefect: int | None = None, port_mlflow: int | None = None) -> dict[str, Any]:
    """Start what does not run yet; as `services`. Doing it twice changes nothing.

    Raises InputError for a port in use (or one that differs from a running service's), FlywheelError with the end of
    the log for a service that does not start; what this call started is ended again then.
    """
    with _alone(layout):
        running = {name: service for name, service in read_services(layout).items() if service.process.alive}
        wanted = (("prefect", port_prefect, "--port-prefect"), ("mlflow", port_mlflow, "--port-mlflow"))
        ports: dict[str, int] = {}
        for name, port, option in wanted:
            if name not in running:
                ports[name] = processes.free_port() if port is None else processes.require_port(port, option)
            elif port is not None and not (running[name].url or "").startswith(f"http://{HOST}:{port}"):
                raise InputError(
                    f"{option} got {port}, but {name} runs at {running[name].url}; "
                    "run `flywheel down` first, or leave the option out"
                )
        fresh = _Started(layout, running)
        try:
            if "mlflow" in ports:
                fresh.add("mlflow", _start_mlflow(layout, ports["mlflow"]))
            if "prefect" in ports:
                fresh.add("prefect", _start_prefect(layout, ports["prefect"]))
            fresh.wait("prefect", "/health", "Prefect server")
            if "serve" not in fresh.running:
                _settle(layout, str(fresh.running["prefect"].url))
                _serve(layout, fresh)
            fresh.wait("mlflow", "/health", "MLflow server")
        except BaseException:
            fresh.undo()
            raise
    return services(layout)


def down(layout: Layout) -> list[str]:
    """End this registry's services, and only those; the names of those that were running.

    A scheduled run ends with them, resumable, and is marked Crashed. Raises RegistryBusy while a run that was started
    by hand is at work: it may need the server.
    """
    with _alone(layout):
        known = read_services(layout)
        serve = known.get("serve")
        holder = lock.holder(Registry(layout.root))
        if holder is not None and known and not _belongs(holder.get("pid"), serve):
            raise RegistryBusy(
                f"{layout.root} is at work (PID {holder.get('pid')}, {holder.get('purpose')}) and may use these "
                "services; wait until it is done, or stop it with Ctrl-C, then run `flywheel down` again"
            )
        ended = []
        for name in ORDER:
            service = known.get(name)
            if service is None:
                continue
            if service.process.alive:
                ended.append(name)
            # The group may outlive its leader; `stop` looks.
            processes.stop(service.process, seconds=15.0 if name == "serve" else 8.0)
            if name == "serve":
                _crash_leftovers(known.get("prefect"))
        write_services(layout, {})
    return ended


def services(layout: Layout) -> dict[str, Any]:
    """{"prefect"|"mlflow"|"serve": {"alive", "url", "pid", "log"}}; `alive`: it runs and, if it has a URL, answers."""
    known = read_services(layout)
    found: dict[str, Any] = {}
    for name in ("prefect", "mlflow", "serve"):
        service = known.get(name)
        if service is None:
            found[name] = {"alive": False, "url": None, "pid": None, "log": None}
            continue
        alive = service.process.alive and (service.url is None or processes.answers(f"{service.url}/health"))
        found[name] = {"alive": alive, "url": service.url, "pid": service.process.pid, "log": str(service.log)}
    return found


def restart_serving(layout: Layout) -> bool:
    """Make a changed schedule count: serve it anew, or stop serving. False if the server is not up, so that nothing was
    done: the next `up` will."""
    with _alone(layout):
        known = read_services(layout)
        prefect = known.get("prefect")
        if prefect is None or not prefect.process.alive:
            return False
        old = known.pop("serve", None)
        if old is not None:
            processes.stop(old.process, seconds=15.0)
            _crash_leftovers(prefect)
        write_services(layout, known)
        fresh = _Started(layout, known)
        try:
            rest.delete_deployments(str(prefect.url), DEPLOYMENT)
            _serve(layout, fresh)
        except BaseException:
            fresh.undo()
            raise
    return True


@dataclass
class _Started:
    """What one call started, written down as soon as it runs, to be ended if the call fails."""

    layout: Layout
    running: dict[str, Service]

    def __post_init__(self) -> None:
        self._new: list[str] = []

    def add(self, name: str, service: Service) -> None:
        self.running[name] = service
        self._new.append(name)
        write_services(self.layout, self.running)

    def wait(self, name: str, path: str, title: str) -> None:
        service = self.running[name]
        processes.wait_healthy(f"{service.url}{path}", service.process, service.log, title, START_SECONDS)

    def undo(self) -> None:
        for name in sorted(self._new, key=ORDER.index):
            processes.stop(self.running.pop(name).process, seconds=3.0)
        write_services(self.layout, self.running)


def _start_prefect(layout: Layout, port: int) -> Service:
    url = f"http://{HOST}:{port}/api"
    log = layout.local / "logs" / "prefect-server.log"
    environment = processes.base_environment() | client_settings(layout, url) | server_settings(layout, standing=True)
    return Service(processes.spawn("flows.serve_api", ["--port", str(port)], environment, log), url, log)


def _start_mlflow(layout: Layout, port: int) -> Service:
    # Before the server, which would make it the slow way.
    tracking.require_database(layout)
    log = layout.local / "logs" / "mlflow-server.log"
    arguments = ["server", "--host", HOST, "--port", str(port), "--workers", "1"]
    arguments += ["--backend-store-uri", tracking.store_uri(layout)]
    arguments += ["--artifacts-destination", str(layout.mlflow / "artifacts")]
    environment = processes.base_environment() | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    return Service(processes.spawn("mlflow", arguments, environment, log), f"http://{HOST}:{port}", log)


def _settle(layout: Layout, api: str) -> None:
    """Nobody serves the schedule now: its unfinished runs are dead, its missed ticks are dealt with by its policy."""
    busy = lock.holder(Registry(layout.root)) is not None
    rest.crash_unfinished(api, only_deployed=busy)
    schedule = read_schedule(layout)
    if schedule is None:
        rest.delete_deployments(api, DEPLOYMENT)
    else:
        rest.drop_missed(api, schedule.missed)


def _serve(layout: Layout, fresh: _Started) -> None:
    """Start the serving process if there is a schedule, and wait until its deployment exists."""
    schedule = read_schedule(layout)
    if schedule is None:
        return
    api = str(fresh.running["prefect"].url)
    log = layout.local / "logs" / "serve.log"
    environment = processes.base_environment() | client_settings(layout, api) | {"PREFECT_RUNNER_POLL_FREQUENCY": "5"}
    arguments = ["--registry", str(layout.root), "--flow", schedule.flow]
    began = datetime.now(UTC)
    process = processes.spawn("flows.serve", arguments, environment, log)
    fresh.add("serve", Service(process, None, log))

    def ready() -> bool:
        if not process.alive:
            raise FlywheelError(f"the process that serves the schedule ended; the end of {log}:\n{processes.tail(log)}")
        found = rest.request(api, "POST", "/deployments/filter", {"deployments": {"name": {"any_": [DEPLOYMENT]}}})
        # A deployment of an earlier time may be there; that it is asked for is news.
        polled = [
            datetime.fromisoformat(deployment["last_polled"]) for deployment in found if deployment["last_polled"]
        ]
        return any(moment >= began for moment in polled)

    if not processes.wait_for(ready, _SERVE_SECONDS):
        said = f"the end of {log}:\n{processes.tail(log)}"
        raise FlywheelError(f"the schedule was not served in {_SERVE_SECONDS:.0f} s; {said}")


def _crash_leftovers(prefect: Service | None) -> None:
    if prefect is not None and prefect.process.alive and processes.answers(f"{prefect.url}/health"):
        rest.crash_unfinished(str(prefect.url), only_deployed=True)


def _belongs(pid: object, serve: Service | None) -> bool:
    """Whether a process was started by the serving process: they share its session."""
    if not isinstance(pid, int) or serve is None:
        return False
    try:
        return os.getsid(pid) == serve.process.pid
    except ProcessLookupError:
        return True  # it has just ended
    except PermissionError:
        return False


@contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    """One `up` or `down` at a time. Raises RegistryBusy if another is at it."""
    layout.local.mkdir(parents=True, exist_ok=True)
    with (layout.local / "services.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RegistryBusy(f"another `flywheel up` or `down` is at work on {layout.root}; wait for it") from error
        yield

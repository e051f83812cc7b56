"""Services and a schedule that really fires: real servers, a real cron, processes killed as by a reboot."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import processes, rest, services
from flows import schedule as schedules
from flows.server import own_server
from flows.state import read_services
from flywheel.errors import InputError, RegistryBusy, RegistryError
from storage import lock
from storage.layout import Layout
from storage.registry import Registry

TINY = """
import time
from pathlib import Path
from prefect import flow

@flow
def tiny(registry: str, generations: int, when_busy: str, until_plateau: int | None, on_failure: str | None) -> int:
    with Path(registry, "ran").open("a") as file:
        file.write(f"{generations} {until_plateau}\\n")
    while Path(registry, "hold").exists():
        time.sleep(0.1)
    return generations
"""


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """A folder that looks like a registry to the services, and a module `tiny_flow` that their children can import."""
    modules = tmp_path / "modules"
    modules.mkdir()
    (modules / "tiny_flow.py").write_text(TINY)
    monkeypatch.setenv("PYTHONPATH", str(modules))
    root = tmp_path / "registry"
    root.mkdir()
    return Layout(root)


def test_before_the_first_up_nothing_is_there(layout: Layout) -> None:
    found = services.services(layout)
    assert set(found) == {"prefect", "mlflow", "serve"}
    assert not any(service["alive"] for service in found.values())
    assert services.down(layout) == []


def test_a_port_in_use_names_port_and_option(layout: Layout) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=rf"port {port} .* is in use .* --port-mlflow"):
            services.up(layout, port_mlflow=port)
    with pytest.raises(InputError, match=r"--port-prefect got 70000"):
        services.up(layout, port_prefect=70000)
    assert read_services(layout) == {}


def test_down_leaves_a_process_that_is_not_ours(layout: Layout) -> None:
    layout.local.mkdir()
    text = '{"prefect": {"pid": %d, "identity": "another boot:1", "url": "http://127.0.0.1:9/api", "log": "x"}}'
    (layout.local / "services.json").write_text(text % os.getpid())
    assert services.down(layout) == []


def test_a_damaged_record_is_named(layout: Layout) -> None:
    layout.local.mkdir()
    (layout.local / "services.json").write_text('{"prefect": 3}')
    with pytest.raises(RegistryError, match=r"services\.json is damaged"):
        services.services(layout)


@pytest.mark.slow
def test_a_schedule_fires_survives_a_reboot_and_goes_down(layout: Layout) -> None:
    served = schedules.schedule(layout, "* * * * *", until_plateau=3, flow="tiny_flow:tiny")
    assert served["served"] is False
    try:
        up = services.up(layout)
        assert all(service["alive"] for service in up.values())
        assert services.up(layout) == up  # again: nothing changes
        with pytest.raises(InputError, match=r"--port-prefect got 4999, but prefect runs at"):
            services.up(layout, port_prefect=4999)
        api = up["prefect"]["url"]
        with own_server(layout) as used:  # a run takes the standing server and leaves it standing
            assert used == api

        # A run at work: one more tick is skipped, and a run started by hand keeps `down` away.
        (layout.root / "hold").touch()
        start(api)  # unless the cron comes first, when this one is dropped
        until(lambda: bool(rest.flow_runs(api, ["RUNNING"])), 40)
        first = rest.flow_runs(api, ["RUNNING"])[0]["id"]
        second = start(api)
        until(lambda: state(api, second) == "CANCELLED", 40)
        with lock.hold(Registry(layout.root), "run"), pytest.raises(RegistryBusy, match=rf"PID {os.getpid()}"):
            services.down(layout)

        # A reboot: every process gone at once, the run unfinished.
        running = [service.process for service in read_services(layout).values()]
        for process in running:
            os.killpg(process.pid, signal.SIGKILL)
        until(lambda: not any(process.alive for process in running), 10)
        (layout.root / "hold").unlink()
        (layout.root / "ran").unlink()
        assert not any(service["alive"] for service in services.services(layout).values())
        api = services.up(layout)["prefect"]["url"]
        assert state(api, first) == "CRASHED"

        # The dead run's slot is free: the next tick runs, by the cron alone.
        until((layout.root / "ran").exists, 80)
        assert (layout.root / "ran").read_text().splitlines()[0] == "1 3"
        until(lambda: bool(scheduled(api, "COMPLETED")), 20)

        # Another cron replaces the first, future runs included; without one nothing is served.
        assert schedules.schedule(layout, "0 2 1 1 *", timezone="UTC", flow="tiny_flow:tiny")["served"] is True
        assert all(run["expected_start_time"][5:16] == "01-01T02:00" for run in scheduled(api, "SCHEDULED"))
        assert schedules.unschedule(layout) is True
        assert services.services(layout)["serve"]["alive"] is False
    finally:
        ended = services.down(layout)
    assert ended == ["mlflow", "prefect"]
    assert not processes.answers(f"{api}/health")
    assert read_services(layout) == {}


def start(api: str) -> str:
    deployment = rest.request(api, "POST", "/deployments/filter", {})[0]["id"]
    return str(rest.request(api, "POST", f"/deployments/{deployment}/create_flow_run", {})["id"])


def state(api: str, flow_run: str) -> str:
    return str(rest.request(api, "GET", f"/flow_runs/{flow_run}")["state_type"])


def scheduled(api: str, state_type: str) -> list[dict[str, Any]]:
    return [run for run in rest.flow_runs(api, [state_type]) if run["auto_scheduled"]]


def until(condition: Callable[[], bool], seconds: float) -> None:
    began = time.monotonic()
    assert processes.wait_for(condition, seconds), f"not within {seconds} s"
    sys.stderr.write(f"waited {time.monotonic() - began:.1f} s\n")

"""A Prefect server of a run's own, with real processes: it serves, it ends, it dies with a killed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows import processes, rest, server
from flows.processes import Process
from flywheel.errors import FlywheelError, InputError
from storage.layout import Layout

SOURCE = Path(__file__).parents[2]
RUN_THEN_HANG = """
import sys, time
from pathlib import Path
from storage.layout import Layout
from flows.server import own_server, start_early
layout = Layout(Path(sys.argv[1]))
started = start_early(layout)
assert "prefect" not in sys.modules
with own_server(layout, started):
    from prefect import flow, task
    @task
    def add(a, b):
        return a + b
    @flow
    def stuck():
        total = add(1, 2)
        print("working", total, started.process.pid, started.url, flush=True)
        time.sleep(60)
    stuck()
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """One registry for the module: a new Prefect database takes seconds."""
    return Layout(tmp_path_factory.mktemp("registry"))


def test_a_killed_run_takes_its_server_along_and_the_next_settles_its_run(layout: Layout) -> None:
    program = [sys.executable, "-c", RUN_THEN_HANG, str(layout.root)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True, cwd=SOURCE) as run:
        assert run.stdout is not None
        words = run.stdout.readline().split()
        assert words[:2] == ["working", "3"]
        pid, url = int(words[2]), words[3]
        assert processes.answers(f"{url}/health")
        assert os.getsid(pid) == pid
        assert [left["state_type"] for left in rest.flow_runs(url, ["RUNNING"])] == ["RUNNING"]
        run.send_signal(signal.SIGKILL)
    assert processes.wait_for(lambda: not processes.answers(f"{url}/health"), 5)
    assert processes.wait_for(lambda: not Path(f"/proc/{pid}").exists(), 5)

    before = dict(os.environ)
    with server.own_server(layout) as again:
        assert os.environ["PREFECT_API_URL"] == again
        states = [left["state_type"] for left in rest.flow_runs(again, ["RUNNING", "CRASHED", "COMPLETED"])]
        assert states == ["CRASHED"]
        # Prefect may be imported in this process by now; its settings must follow all the same.
        from prefect import flow

        @flow
        def small() -> int:
            return 41 + 1

        assert small() == 42
        assert len(rest.flow_runs(again, ["COMPLETED"])) == 1
    assert not processes.answers(f"{again}/health")
    assert dict(os.environ) == before


def test_a_named_server_that_does_not_answer_is_an_input_error(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{processes.free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", url)
    with pytest.raises(InputError, match=r"PREFECT_API_URL is .* no Prefect server answers there"):
        server.start_early(layout)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    # The parent it is told to end with is not its parent: it leaves at once.
    arguments = ["--port", str(processes.free_port()), "--with", "1"]
    process = processes.spawn("flows.serve_api", arguments, processes.base_environment(), log)
    with pytest.raises(FlywheelError, match=r"ended while starting(.|\n)*is gone"):
        processes.wait_healthy("http://127.0.0.1:9/health", process, log, "Prefect server", 20)


def test_a_process_id_used_again_is_not_ours() -> None:
    me = Process(os.getpid(), processes._identity(os.getpid()))
    assert me.alive
    assert not Process(os.getpid(), "another boot:123").alive
    assert not Process(os.getpid(), None).alive


def test_stop_ends_the_whole_group(tmp_path: Path) -> None:
    (tmp_path / "family.py").write_text(
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print(child.pid, flush=True); time.sleep(60)\n"
    )
    environment = processes.base_environment() | {"PYTHONPATH": str(tmp_path)}
    log = tmp_path / "log"
    process = processes.spawn("family", [], environment, log)
    assert processes.wait_for(lambda: log.exists() and log.read_text().strip() != "", 10)
    child = int(log.read_text())
    began = time.monotonic()
    processes.stop(process, seconds=0.5)  # it ignores SIGTERM
    assert time.monotonic() - began < 5
    assert not process.alive
    assert processes.wait_for(lambda: processes._identity(child) is None, 5)

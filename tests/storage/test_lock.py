"""One writer: against another process, its orphans, forks, and other machines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from flywheel.errors import RegistryBusy
from storage import lock
from storage.registry import Registry

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from storage import lock
from storage.registry import Registry
registry = Registry.open(Path(sys.argv[1]))
with lock.hold(registry, "a test run"):
    if sys.argv[2] == "orphan":
        with lock.lent(registry.root) as descriptors:
            subprocess.Popen(["sleep", "1.5"], pass_fds=descriptors, stdout=subprocess.DEVNULL)
    print("held", flush=True)
    time.sleep(60)
"""


def _start(registry: Registry, kind: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HOLDER, str(registry.root), kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def _kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_another_process_is_refused_and_told_who_holds(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    process = _start(registry, "plain")
    try:
        found = lock.holder(registry)
        assert found is not None
        assert (found["pid"], found["purpose"]) == (process.pid, "a test run")
        with pytest.raises(RegistryBusy, match=f"PID {process.pid} .*a test run, since") as caught:
            lock.hold(registry, "second").__enter__()
        assert caught.value.exit_code == 3
    finally:
        _kill(process)
    assert lock.holder(registry) is None
    with lock.hold(registry, "third"):
        assert lock.holder(registry) is not None


def test_an_orphaned_child_keeps_the_lock_until_it_ends(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    started = time.monotonic()
    _kill(_start(registry, "orphan"))
    assert lock.holder(registry) is not None
    with lock.hold(registry, "next"):  # waits for the orphan: its parent is dead
        assert time.monotonic() - started >= 1.0


def test_the_lock_is_released_and_its_file_stays(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    with pytest.raises(ValueError, match="inside"), lock.hold(registry, "first"):
        raise ValueError("inside")
    assert lock.holder(registry) is None
    assert registry.layout.lock.read_text(encoding="utf-8") == ""


def test_a_child_may_be_starting_while_another_thread_lets_go(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    with ExitStack() as holding:
        holding.enter_context(lock.hold(registry, "writer"))
        with lock.lent(registry.root) as descriptors:
            holding.close()
            child = subprocess.Popen(["sleep", "60"], pass_fds=descriptors)
    try:
        assert lock.holder(registry) is not None, "the child keeps it"
    finally:
        child.kill()
        child.wait()
    assert lock.holder(registry) is None
    with lock.lent(registry.root) as descriptors:
        assert descriptors == ()


def test_holding_twice_is_refused_but_ensure_joins(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    with lock.hold(registry, "outer"):
        with lock.ensure(registry, "inner"):
            assert lock.holder(registry) is not None
        assert lock.holder(registry) is not None, "ensure must not let go of what it did not take"
        with pytest.raises(RegistryBusy, match="asked for it twice"):
            lock.hold(registry, "again").__enter__()
    with lock.ensure(registry, "alone"):
        assert lock.holder(registry) is not None


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_worker_does_not_keep_it(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(0)
    with lock.hold(registry, "parent"), lock.lent(registry.root):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        deadline = time.monotonic() + 5.0  # the child may not have run yet
        while lock.holder(registry) is not None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert lock.holder(registry) is None
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_holder_on_another_machine_is_not_broken(fresh: Callable[[int], Registry], tmp_path: Path) -> None:
    registry = fresh(0)
    body = {"pid": 1, "host": "elsewhere", "boot": "another", "purpose": "run", "since": "2026-01-01"}
    registry.layout.lock.write_text(json.dumps(body), encoding="utf-8")
    with pytest.raises(RegistryBusy, match=r"PID 1 on elsewhere .* never let go"):
        lock.hold(registry, "here").__enter__()
    registry.layout.lock.write_text("", encoding="utf-8")  # the fix that the message names
    with lock.hold(registry, "here"):
        pass

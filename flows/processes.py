"""Background processes: started in a session of their own, recognised later, ended by group.

A process id alone says little once its process may have ended: ids are used again. A process is known here by id, start
time and boot, so that nothing is ever signalled that Flywheel did not start.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flywheel.errors import FlywheelError, InputError

HOST = "127.0.0.1"
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Loopback is never asked for through a proxy, whatever the environment says."""


@dataclass(frozen=True, slots=True)
class Process:
    """A process and the session and group it leads. `identity` is None if the system does not tell it."""

    pid: int
    identity: str | None

    @property
    def alive(self) -> bool:
        """Whether this very process still runs; one that has ended but was not collected does not."""
        with contextlib.suppress(ChildProcessError):  # not ours to collect
            os.waitpid(self.pid, os.WNOHANG)
        return self.identity is not None and _identity(self.pid) == self.identity


def spawn(module: str, arguments: list[str], environment: dict[str, str], log: Path) -> Process:
    """Start `python -m module` in the background: a new session, default signals, output to a new `log`.

    The log before is kept as `log.1`.

    Parents are not told when it ends; see `Process.alive`. The thread that calls this must outlive a child that asks
    for a parent-death signal: Linux means the thread, not the process.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        os.replace(log, log.with_name(f"{log.name}.1"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    # SIGINT would otherwise stay ignored where this process was started in the background by a shell.
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, "-m", module, *arguments],
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o644),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
        setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
        setsigmask=[],
    )
    return Process(pid, _identity(pid))


def base_environment() -> dict[str, str]:
    """The environment of every background process: ours, these packages importable, no telemetry, no loopback proxy.

    Without the user's own Prefect and MLflow settings: a database or server that they name is not the registry's.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    source = str(Path(__file__).resolve().parent.parent)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    if source not in paths:
        environment["PYTHONPATH"] = os.pathsep.join([source, *filter(None, paths)])
    for name in ("NO_PROXY", "no_proxy"):
        hosts = [host for host in environment.get(name, "").split(",") if host]
        environment[name] = ",".join(dict.fromkeys([*hosts, HOST, "localhost"]))
    quiet = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return environment | quiet | {"PYTHONUNBUFFERED": "1"}


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, or look every second where the kernel cannot (macOS);
    leave at once if it is dead already."""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None, use_errno=True).prctl(set_parent_death_signal, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:
        raise SystemExit(f"the process {parent} that asked for this one is gone")


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


def stop(process: Process, seconds: float = 10.0) -> None:
    """End a process and its whole group: SIGTERM, and after `seconds` SIGKILL. Nothing happens if it is gone."""
    if not process.alive and not _orphans(process.pid):
        return
    for number, patience in ((signal.SIGTERM, seconds), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if not process.alive and not _orphans(process.pid):
                return
            time.sleep(0.05)
    raise FlywheelError(f"process {process.pid} does not end; end it by hand: kill -9 -- -{process.pid}")


def wait_healthy(url: str, process: Process, log: Path, name: str, seconds: float) -> None:
    """Return once `url` answers 200. Raises FlywheelError with the end of the log if the process dies or is late."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        if not process.alive:
            raise FlywheelError(f"the {name} ended while starting; the end of {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            said = f"the end of {log}:\n{tail(log)}"
            raise FlywheelError(f"the {name} did not answer at {url} in {seconds:.0f} s; {said}")
        time.sleep(0.1)


def answers(url: str, seconds: float = 2.0) -> bool:
    """Whether something answers 200 at `url` within `seconds`."""
    try:
        with _direct.open(url, timeout=seconds) as reply:
            return bool(reply.status == 200)
    except (OSError, ValueError):  # URLError and HTTPError are OSErrors; a server just starting may answer nonsense
        return False


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def free_port() -> int:
    """A port on loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def require_port(port: int, option: str) -> int:
    """`port` if it can be listened on. Raises InputError that names port and option otherwise."""
    if not 0 < port < 65536:
        raise InputError(f"{option} got {port}, expected a port from 1 to 65535")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                why = "may not be used without privileges"
            elif error.errno == errno.EADDRINUSE:
                why = "is in use by another program"
            else:
                why = f"cannot be used ({error.strerror})"
            raise InputError(
                f"port {port} on {HOST} {why}; give another with {option}, or leave it out and a free one is taken"
            ) from error
    return port


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log; a word in its place where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 8192))
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:]) or "(empty)"


def _identity(pid: int) -> str | None:
    """Start time and boot of a running process; None if there is none, or only the remains of one."""
    stat = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        if fields[0] in "ZX":
            return None
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{fields[19]}"
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]  # macOS
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    state, _, started = found.stdout.strip().partition(" ")
    return None if not started or state.startswith("Z") else started.strip()


def _orphans(group: int) -> bool:
    """Whether running members are left in a group, its leader perhaps gone."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return False  # another user's: the number was used again
    processes = Path("/proc")
    if not Path("/proc/self/stat").exists():
        return True
    for stat in processes.glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] not in "ZX":
            return True
    return False

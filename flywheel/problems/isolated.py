"""Calls of a function in processes that can be killed: for code that may hang, crash, or take all memory.

A few worker processes answer one request at a time each. A call's seconds count from when a worker that stands ready
is given it, so that waiting in line is never held against it. Beyond them, or when the worker dies, only that call is
lost, with its reason; a new process takes the place. Workers end with their parent however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flywheel.errors import FlywheelError
from flywheel.problems.isolated_worker import LENGTH

_START_SECONDS = 120.0
"""For a worker to import what it needs."""
_LARGEST_REPLY = 1 << 26
_DYING_SECONDS = 1.0
"""From a worker's closing its socket to its end."""
_LOOK_EVERY = 0.1
"""Seconds between two looks at `should_stop`."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of a call."""

    value: Any = None
    """What the function returned, as JSON knows it."""
    unsure: Literal["timeout", "failed"] | None = None
    reason: str = ""
    """Where there is no value: why, in a few words."""


@dataclass(eq=False, slots=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: socket.socket
    life: int
    """Write end of the pipe that ends the worker when it closes."""
    deadline: float
    ready: bool = False
    request: int | None = None
    """Position of the request it is at."""
    received: bytearray = field(default_factory=bytearray)


class Workers:
    """Up to `processes` processes for `module:function`, found from the working folder and PYTHONPATH, each call of
    which may take `seconds` and whose address space `memory_mb` MiB. Processes start when first needed."""

    def __init__(self, target: str, seconds: float, memory_mb: int, processes: int) -> None:
        self.target = target
        self.seconds = seconds
        self.memory_mb = memory_mb
        self.processes = processes
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        # Also at the interpreter's exit, and when the last reference goes.
        self._finalizer = weakref.finalize(self, _end_all, self._workers)

    def start(self) -> str | None:
        """Start a worker, if none is there; returns why it cannot be, or None."""
        with self._lock:
            if not self._workers:
                self._spawn()
            while not any(worker.ready for worker in self._workers):
                for worker, message in self._wait():
                    reason = self._started(worker, message)
                    if reason is not None:
                        return reason
        return None

    def call(self, requests: Sequence[Sequence[Any]], should_stop: Callable[[], None] = lambda: None) -> list[Reply]:
        """Call the function with each request's arguments (JSON values); replies in the order of the requests.
        `should_stop` is called often and may raise. Raises FlywheelError where workers cannot be started any more."""
        replies: dict[int, Reply] = {}
        waiting = deque(range(len(requests)))
        with self._lock:
            try:
                while len(replies) < len(requests):
                    should_stop()
                    self._hand_out(requests, waiting)
                    for worker, message in self._wait():
                        if not worker.ready:
                            reason = self._started(worker, message)
                            if reason is not None:
                                raise FlywheelError(f"a process for {self.target} could not be started: {reason}")
                        elif worker.request is None:
                            self._end(worker)  # it died idle: nothing is lost
                        else:
                            position, worker.request = worker.request, None
                            replies[position] = self._finished(worker, message)
            finally:
                # A call that was given up would answer into the next one.
                for worker in [worker for worker in self._workers if worker.request is not None]:
                    self._end(worker)
        return [replies[index] for index in range(len(requests))]

    def close(self) -> None:
        """End the processes. They start again if called."""
        with self._lock:
            _end_all(self._workers)

    def _hand_out(self, requests: Sequence[Sequence[Any]], waiting: deque[int]) -> None:
        for worker in [worker for worker in self._workers if worker.ready and worker.request is None]:
            if not waiting:
                return
            body = json.dumps(requests[waiting[0]]).encode()
            try:
                worker.connection.settimeout(self.seconds)
                worker.connection.sendall(LENGTH.pack(len(body)) + body)
            except OSError:
                self._end(worker)  # it died idle; the request waits for another
                continue
            worker.request = waiting.popleft()
            worker.deadline = time.monotonic() + self.seconds
        starting = sum(not worker.ready for worker in self._workers)
        for _ in range(min(len(waiting) - starting, self.processes - len(self._workers))):
            self._spawn()

    def _spawn(self) -> None:
        ours, theirs = socket.socketpair()
        life, watched = os.pipe()[::-1]
        environment = {**os.environ}
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            # A thread pool for each of a large machine's cores would take the address space before any work is done.
            environment.setdefault(name, "1")
        command = [sys.executable, "-m", "flywheel.problems.isolated_worker", self.target, str(self.memory_mb)]
        try:
            process = subprocess.Popen(
                [*command, str(theirs.fileno()), str(watched)],
                pass_fds=[theirs.fileno(), watched],
                env=environment,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            os.close(life)
            raise
        finally:
            theirs.close()
            os.close(watched)
        self._workers.append(_Worker(process, ours, life, time.monotonic() + _START_SECONDS))

    def _wait(self) -> list[tuple[_Worker, dict[str, Any]]]:
        """Workers that have something to say, or whose time is up, with their message."""
        now = time.monotonic()
        busy = [worker for worker in self._workers if not worker.ready or worker.request is not None]
        until = min((worker.deadline for worker in busy), default=now)
        news: list[tuple[_Worker, dict[str, Any]]] = []
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.connection, selectors.EVENT_READ, worker)
            for key, _ in selector.select(max(0.0, min(until - now, _LOOK_EVERY))):
                message = _read(key.data)
                if message is not None:
                    news.append((key.data, message))
        heard = {id(worker) for worker, _ in news}
        now = time.monotonic()
        for worker in busy:
            if id(worker) not in heard and now >= worker.deadline:
                news.append((worker, {"timeout": True}))
        return news

    def _started(self, worker: _Worker, message: dict[str, Any]) -> str | None:
        """Note that a worker stands ready; else why it does not."""
        if "value" in message:
            worker.ready = True
            return None
        ended = self._end(worker, "gone" in message)
        if "timeout" in message:
            return f"not ready within {_START_SECONDS:g} s"
        return str(message.get("error") or ended)

    def _finished(self, worker: _Worker, message: dict[str, Any]) -> Reply:
        if "timeout" in message:
            self._end(worker)
            return Reply(unsure="timeout", reason=f"took longer than {self.seconds:g} s")
        if "gone" in message:
            return Reply(unsure="failed", reason=f"its process {self._end(worker, True)}")
        if "last" in message:
            self._end(worker)
        if "error" in message:
            return Reply(unsure="failed", reason=str(message["error"]))
        return Reply(message.get("value"))

    def _end(self, worker: _Worker, dying: bool = False) -> str:
        """Kill a worker and all it started; returns how it had ended by itself, if it had."""
        self._workers.remove(worker)
        return _end(worker, dying)


def _read(worker: _Worker) -> dict[str, Any] | None:
    """A message, if one is complete; `gone` where the worker died or does not keep the protocol."""
    try:
        part = worker.connection.recv(1 << 16)
    except OSError:
        part = b""
    if not part:
        return {"gone": True}
    worker.received += part
    if len(worker.received) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack_from(worker.received)
    if length > _LARGEST_REPLY:
        return {"error": f"answered with {length} bytes, at most {_LARGEST_REPLY} are read", "last": True}
    if len(worker.received) < LENGTH.size + length:
        return None
    body = bytes(worker.received[LENGTH.size : LENGTH.size + length])
    del worker.received[: LENGTH.size + length]
    try:
        message = json.loads(body)
    except ValueError:
        message = None
    return message if isinstance(message, dict) else {"error": "broke the protocol", "last": True}


def _end(worker: _Worker, dying: bool = False) -> str:
    """`dying`: it has closed its socket, so what it ends with is worth a moment's wait."""
    until = time.monotonic() + (_DYING_SECONDS if dying else 0.0)
    while not (died := _has_died(worker.process)) and time.monotonic() < until:
        time.sleep(0.005)
    # No such group: it died, and someone else in this process took note of it.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(worker.process.pid, signal.SIGKILL)
    code = worker.process.wait()
    worker.connection.close()
    os.close(worker.life)
    if not died:
        return "was killed"
    return f"died by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def _has_died(process: subprocess.Popen[bytes]) -> bool:
    """Looked at without taking the exit code, which would free the process id that names the group to be killed."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _end_all(workers: list[_Worker]) -> None:
    while workers:
        _end(workers.pop())

"""The process of an outside engine: lines to it, what it says, and its end. What the lines mean is in
`flywheel.search.gtp`.

    us      write --> its input     (one short line before each answer, so that the pipe is never full)
            listen <-- its output   kept until it is read
            listen <-- its errors   the last of them kept; read along, so that a full pipe cannot hold it up

It runs in a session of its own, which is killed as a whole, with whatever it started.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

_COMPLAINTS_KEPT = 1 << 12
"""Bytes of its standard error, the last ones."""


@dataclass(eq=False, slots=True)
class EngineProcess:
    """A running engine."""

    process: subprocess.Popen[bytes]
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    received: bytearray = field(default_factory=bytearray)
    """What it said and nobody took, without carriage returns."""
    complaints: bytes = b""
    silent: bool = False
    """It has closed its output."""

    def __post_init__(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            self.selector.register(pipe, selectors.EVENT_READ)

    def write(self, line: str) -> None:
        """Send a line; lost if it has died or does not read any more, as its silence will tell."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(f"{line}\n".encode())

    def close_input(self) -> None:
        """Nothing more will be said to it."""
        assert self.process.stdin is not None
        self.process.stdin.close()

    def listen(self, seconds: float) -> bool:
        """Take in what it writes within that time; whether there was anything."""
        ready = self.selector.select(seconds)
        for key, _ in ready:
            part = os.read(key.fd, 1 << 16)
            is_answer = key.fileobj is self.process.stdout
            if not part:
                self.selector.unregister(key.fileobj)
                self.silent |= is_answer
            elif is_answer:
                self.received += part.replace(b"\r", b"")
            else:
                self.complaints = (self.complaints + part)[-_COMPLAINTS_KEPT:]
        return bool(ready)

    def has_died(self) -> bool:
        """Looked at without taking the exit code, which would free the process id that names the group to be killed."""
        if self.process.returncode is not None:
            return True
        try:
            return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def wait(self, seconds: float) -> bool:
        """Whether it ends within that time."""
        until = time.monotonic() + seconds
        while not (died := self.has_died()) and time.monotonic() < until:
            self.listen(0.01)
        return died

    def kill(self) -> None:
        """End it and all it started; how it ended is then in `process.returncode`."""
        if self.process.returncode is not None:
            return  # its id may be another's by now
        # No such group: it died, and someone else in this process took note of it.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.selector.close()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None:
                pipe.close()


def start(command: Sequence[str]) -> EngineProcess:
    """Raises OSError where there is no such program."""
    return EngineProcess(
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    )


def kill_all(running: list[EngineProcess]) -> None:
    """Kill them and empty the list."""
    while running:
        running.pop().kill()

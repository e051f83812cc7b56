"""The process in which a call is isolated: `python -m flywheel.problems.isolated_worker MODULE:FUNCTION ...`.

It imports one function and answers requests, one at a time, over a socket: four bytes of length, then JSON, both ways;
nothing is unpickled. The other side is `flywheel.problems.isolated`, which kills it when a call takes too long. It is
no sandbox: the code can do what its user may do, but for memory beyond the limit.
"""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

LENGTH = struct.Struct(">I")


def main() -> None:
    """Arguments: module:function, memory in MiB (of the address space), the socket, and the read end of a pipe whose
    write end is open as long as the parent lives."""
    target, memory_mb, channel, life = sys.argv[1], *map(int, sys.argv[2:5])
    _die_with_parent(life)
    # Its own session keeps the terminal's Ctrl-C away; this is for one that is sent by hand.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # What the function prints is for people: stdout is the parent's, and may be one JSON document.
    os.dup2(2, 1)
    os.set_inheritable(channel, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = memory_mb * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with socket.socket(fileno=channel) as connection:
        try:
            function = _find(target)
        except BaseException as error:  # noqa: BLE001 (whatever the user's module does on import is an answer)
            _send(connection, _encode({"error": describe(error), "last": True}))
            return
        _send(connection, _encode({"value": "ready"}))
        while (request := _receive(connection)) is not None:
            _send(connection, _answer(function, request))


def _die_with_parent(life: int) -> None:
    """The kernel kills this process group once the pipe closes, also in the midst of a computation in C that lets no
    Python thread run. (A parent-death signal comes with the death of the *thread* that made the process.)"""
    os.set_inheritable(life, False)
    fcntl.fcntl(life, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([life], [], [], 0)[0]:
        sys.exit(1)


def _find(target: str) -> Callable[..., Any]:
    module, _, name = target.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    function: Any = importlib.import_module(module)
    for part in name.split("."):
        function = getattr(function, part)
    if not callable(function):
        raise TypeError(f"{target} is a {type(function).__name__}, expected a function")
    return function  # type: ignore[no-any-return]


def _answer(function: Callable[..., Any], request: list[Any]) -> bytes:
    try:
        return _encode({"value": function(*request)})
    except MemoryError:
        # What is left in such a process is anyone's guess: the parent takes a new one for the next call.
        return _encode({"error": "MemoryError: beyond its memory limit", "last": True})
    except BaseException as error:  # noqa: BLE001 (an answer too, SystemExit and all)
        return _encode({"error": describe(error)})


def describe(error: BaseException) -> str:
    """Type and first line of an error, and the line of the function that raised it."""
    trace, line = error.__traceback__, ""
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if name != __file__ and not name.startswith("<"):
            line = f" ({os.path.basename(name)}, line {trace.tb_lineno})"
        trace = trace.tb_next
    try:
        text = str(error).partition("\n")[0][:300]
    except Exception:  # noqa: BLE001 (an error of the user's own class may not even be printable)
        text = "?"
    return f"{type(error).__name__}: {text}{line}"


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy and torch."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"returned a {type(value).__name__}, which is not JSON")


def _encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, default=_plain).encode()


def _send(connection: socket.socket, body: bytes) -> None:
    connection.sendall(LENGTH.pack(len(body)) + body)


def _receive(connection: socket.socket) -> Any:
    head = _exactly(connection, LENGTH.size)
    if head is None:
        return None
    body = _exactly(connection, LENGTH.unpack(head)[0])
    return None if body is None else json.loads(body)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    """So many bytes; None where the other side is gone."""
    parts = bytearray()
    while len(parts) < count:
        part = connection.recv(min(count - len(parts), 1 << 20))
        if not part:
            return None
        parts += part
    return bytes(parts)


if __name__ == "__main__":
    main()

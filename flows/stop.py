"""Stopping on request: Ctrl-C sets an event that every stage looks at; the second one ends the process at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from flywheel.errors import Interrupted

_requested = threading.Event()


def check() -> None:
    """Raise Interrupted once a stop has been asked for."""
    if _requested.is_set():
        raise Interrupted("stopped on request; finished work is kept, and the same command goes on from there")


@contextmanager
def at_termination() -> Iterator[None]:
    """Make a stop request of what ends the main thread while inside, so that threads it waits for end too. Prefect's
    flows turn SIGTERM into such an exception, whatever handler there was."""
    try:
        yield
    except BaseException as ended:
        # An ordinary error ends this flow alone, not what runs beside it.
        if not isinstance(ended, Exception):
            _requested.set()
        raise


@contextmanager
def on_signals() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into a stop request while inside; a second signal exits with 130 at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        if _requested.is_set():
            os._exit(Interrupted.exit_code)
        _requested.set()
        sys.stderr.write("\nStopping after the step at hand; press Ctrl-C again to stop at once.\n")

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _requested.clear()

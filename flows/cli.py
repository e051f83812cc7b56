"""The command line: the application, its commands in order, and where errors become exit codes.

Exit codes: 0 done, 1 the work failed, 2 bad input or usage, 3 the registry is held by another or in conflict, 130
interrupted. Every reading command takes `--json`: one document on stdout, nothing else there; notes go to stderr.
The commands are in `flows.commands`; their imports stay inside them: `history` must not wait for Prefect.
"""

from __future__ import annotations

import errno
import sys

import typer

from flows.commands import (
    accounting,
    amortizing,
    boards,
    changing,
    comparing,
    data,
    measuring,
    planning,
    proving,
    reading,
    remotes,
    replaying,
    running,
    scaling,
    services,
    studies,
)
from flywheel.errors import FlywheelError, StorageFull

app = typer.Typer(
    help="A model teaches itself by search: generations of labels with lineage, rollback and an account of compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (
    running.init, running.run, running.status,
    reading.history, accounting.ledger, reading.query, reading.lineage, comparing.diff,
    changing.rollback, changing.undo, changing.recover, changing.upgrade,
    proving.verify, replaying.replay,
    remotes.push, remotes.pull, remotes.clone, remotes.gc,
    services.schedule, services.up, services.down,
    reading.report, amortizing.amortize,
    data.export,
    boards.play, boards.arena, boards.strength,
    measuring.control, measuring.compare, studies.searchers, studies.rewards,
    scaling.sweep, scaling.fit,
    planning.plan,
    services.doctor,
)  # fmt: skip
"""In the order that `--help` lists them; a command is called as its function is."""
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Run a command. Usage errors exit with 2 and Ctrl-C with 130 by typer; our own errors become their codes here."""
    try:
        app()
    except FlywheelError as error:
        sys.stderr.write(f"flywheel: {error}\n")
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        where = f" at {error.filename}" if error.filename else ""
        sys.stderr.write(f"flywheel: no space left{where}; free some and run again: finished work is kept\n")
        sys.exit(StorageFull.exit_code)


if __name__ == "__main__":
    main()

"""One run of a sweep: where it lies, what of it is made, and making the rest as a process.

`python -m flows.sweeps.one_run ROOT PRESET LEGS CONTROLS`, where LEGS is JSON, [[up to which generation, overrides],
...], and CONTROLS a JSON list of names. Imports are paid for once a run, and its memory and threads end with it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows import server, stop
from flows.commands.running import make, quiet_prefect
from flows.sweeps.definition import Run
from flywheel import params as parameters
from flywheel.errors import FlywheelError, InputError
from storage import lock
from storage.layout import Layout
from storage.registry import Registry


def folder(out: Path, run: Run) -> Path:
    """Where a run's registry lies."""
    return out / "runs" / run.name


def done(out: Path, run: Run) -> int | None:
    """The newest generation that a run has published; None before any."""
    root = folder(out, run)
    return Registry.open(root).head_generation() if (root / "flywheel.json").exists() else None


def complete(out: Path, run: Run) -> bool:
    """Whether all generations and controls of a run are made."""
    if done(out, run) != run.generations:
        return False
    controls = Layout(folder(out, run)).controls
    return all((controls / f"{name}-seed-{run.seed}.json").exists() for name in run.controls)


def main(root: Path, preset: str, legs: list[tuple[int, list[str]]], controls: list[str]) -> None:
    """Make what is missing of the registry's generations, then of its controls."""
    opened = Registry.open(root) if (root / "flywheel.json").exists() else make(root, preset, legs[0][1])
    with lock.hold(opened, "run"), stop.on_signals():
        quiet_prefect()
        with server.own_server(opened.layout, server.start_early(opened.layout)):
            from flows.campaign import campaign

            for end, overrides in legs:
                head = opened.head_generation()
                if head is None or head < end:
                    campaign(str(root), end - (head or 0), overrides)
                    if (reached := opened.head_generation()) != end:
                        # The next leg would make by its recipe what belongs to this one's.
                        made = "nothing" if reached is None else f"gen/{reached}"
                        raise InputError(
                            f"{root} ended with {made} of {end} generations: a cap or a plateau under `campaign` "
                            "stopped it; leave those out of a sweep"
                        )
            seed = parameters.load(opened.layout.params).seed
            for name in controls:
                if not (opened.layout.controls / f"{name}-seed-{seed}.json").exists():
                    from flows.controls import control

                    control(name, str(root))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4]))
    except FlywheelError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(error.exit_code)

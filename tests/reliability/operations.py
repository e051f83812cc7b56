"""What is disturbed: `python -m tests.reliability.operations NAME REGISTRY [ARGUMENT ...]`, a process of its own.

Each operation is the product's own call, so made that it can be asked for again: what is done already is left. It exits
as `flywheel` does, and says as JSON what recovery had mended before.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path

from flywheel.errors import FlywheelError, StorageFull
from flywheel.params import load
from storage import history, lock, tracking
from storage.layout import REGISTRY_VERSION
from storage.publish import publish
from storage.recovery import recover
from storage.registry import Registry
from storage.rollback import exclude, rollback, undo
from tests.storage import sample

REGISTRY, STORE, ORIGIN = "registry", "store", "origin"
"""What lies in a case's folder: the registry, the remote of its data, and that of its history."""
REASON = "its labels are wrong"


def generation(registry: Registry, number: str, *overrides: str) -> None:
    """Begin, make and publish generation `number`."""
    if int(number) in registry.generations():
        return
    params = sample.begin_generation(registry, load(registry.layout.params, list(overrides)))
    written = registry.layout.work(params.generation) / "written"
    if not written.exists():  # as a stage whose stamp says that it is done
        sample.write_outputs(registry, params)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.touch()
    publish(registry, params, sample.REVISION)


def back(registry: Registry, number: str) -> None:
    """Roll back to generation `number`."""
    if registry.head_generation() != int(number):
        rollback(registry, int(number), REASON)


def again(registry: Registry, number: str) -> None:
    """Undo the rollback: generation `number` is current again."""
    if registry.head_generation() != int(number):
        undo(registry)


def leave(registry: Registry, model: str) -> None:
    """Exclude a model and all that came of it."""
    from storage import exclusions

    if model not in exclusions.models(exclusions.read(registry)):
        exclude(registry, model, REASON)


def upgraded(registry: Registry) -> None:
    """Bring the registry to this version."""
    from storage import upgrade

    if registry.version() != REGISTRY_VERSION:
        upgrade.upgrade(registry)


def send(registry: Registry) -> None:
    """Send data and history to what lies beside the registry."""
    from storage import exchange

    exchange.push(registry, str(registry.root.parent / STORE), str(registry.root.parent / ORIGIN))


def follow(registry: Registry) -> None:
    """Take in what others have sent."""
    from storage import exchange

    exchange.pull(registry)


def collect(registry: Registry) -> None:
    """Free what the remote has too, but for the last generation."""
    from storage import gc

    gc.collect(registry, 1)


def recorded(registry: Registry, number: str, *overrides: str) -> None:
    """As `generation`; then MLflow is told, or the record queued."""
    generation(registry, number, *overrides)
    layout, published = registry.layout, history.published(registry, int(number))
    if (layout.local / "runs" / f"{number:0>4}.json").exists():
        tracking.send_queued(layout)
        return
    values = load(layout.params).model_dump(mode="json")
    run = history.tagged(registry)[int(number)].run
    tracking.record_or_queue(layout, published, json.loads(layout.metrics.read_text()), values, run, "", None, 1.0)


def told(registry: Registry) -> None:
    """Send what waits for MLflow."""
    tracking.send_queued(registry.layout)


OPERATIONS: dict[str, Callable[..., None]] = {
    "generation": generation, "back": back, "again": again, "leave": leave, "upgraded": upgraded, "send": send,
    "follow": follow, "collect": collect, "recorded": recorded, "told": told,
}  # fmt: skip


def make(root: Path) -> None:
    """Make a registry."""
    if not root.exists():
        sample.new_registry(root)


def clone(root: Path) -> None:
    """Make a registry out of what lies beside it."""
    from storage import clone

    if not root.exists():
        clone.clone(str(root.parent / ORIGIN), root, remote=str(root.parent / STORE))


MAKING = {"make": make, "clone": clone}


def main(name: str, root: str, *arguments: str) -> int:
    try:
        if name in MAKING:
            MAKING[name](Path(root))
            recover(Registry.open(Path(root)))
            return 0
        registry = Registry.open(Path(root))
        with lock.hold(registry, f"{name} in a test of faults"):
            print(json.dumps(recover(registry)), flush=True)  # noqa: T201
            OPERATIONS[name](registry, *arguments)
        return 0
    except FlywheelError as error:
        sys.stderr.write(f"flywheel: {type(error).__name__}: {error}\n")
        return error.exit_code
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        sys.stderr.write(f"flywheel: no space left: {error}\n")
        return StorageFull.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

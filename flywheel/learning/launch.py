"""Supervised training spread over several processes of this machine, each with a part of every batch (data parallel).

The caller writes model and examples into a folder of `work` and has torch's launcher, the one that `accelerate launch`
starts for several GPUs, run this module in each process (`accelerate launch` itself would start several on a CPU by MPI
only). There `supervised.train` is called as in one process; gradients are averaged by gloo on CPU, by nccl on CUDA. The
first rank writes checkpoints, progress and what came out, and the caller takes it over.

Workers go on for as long as their caller holds its lock, so letting go of it is both how a stop is asked for and what
happens when the caller is killed: they save a checkpoint and end. The first rank in turn holds `worker.lock`, on which
the workers of a resumed training wait: no two trainings write one folder's checkpoints.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flywheel import params
from flywheel.compute import Cost
from flywheel.errors import ConfigError, FlywheelError, Interrupted
from flywheel.learning import lora, ranks, resumable, supervised
from flywheel.learning.examples import Examples
from flywheel.learning.supervised import Training
from flywheel.models import language

_PATIENCE_SECONDS = 120.0
"""How long workers may take to save a checkpoint and end."""
_CALLER = "caller.lock"


def train(
    model: Any,
    examples: Examples,
    valid: Examples,
    section: params.Train,
    *,
    processes: int,
    seed: int,
    fill: int,
    work: Path,
    until_stale: bool,
    epochs: int | None = None,
    checkpoint_seconds: float = 15.0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    should_stop: Callable[[], None] = lambda: None,
) -> Training:
    """`supervised.train` in `processes` processes; in this one where they are 1.

    Batches, steps and losses are those of one process up to rounding. Raises ConfigError where a batch or the machine's
    GPUs cannot be shared so, FlywheelError where a process fails.
    """
    settings: dict[str, Any] = {
        "seed": seed, "fill": fill, "until_stale": until_stale, "epochs": epochs,
        "checkpoint_seconds": checkpoint_seconds,
    }  # fmt: skip
    if processes == 1:
        return supervised.train(
            model, examples, valid, section, work=work, progress=progress, should_stop=should_stop, **settings
        )
    device = model.device
    _check(section, processes, device.type)
    work.mkdir(parents=True, exist_ok=True)
    folder = work / f"processes-{uuid.uuid4().hex[:8]}"
    try:
        _write(folder, model.to("cpu"), examples, valid, section, settings, device.type, processes)
        _run(folder, processes, progress, should_stop)
        resumable.load_weights(model, folder / "trained" / "model.safetensors")
        model.to(device)
        return _result(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check(section: params.Train, processes: int, device: str) -> None:
    import torch

    problems = []
    if section.batch_size % processes:
        problems.append(resumable.cannot_share(section.batch_size, processes))
    if device == "cuda" and torch.cuda.device_count() < processes:
        problems.append(
            f"execution.training_processes is {processes}, but there are {torch.cuda.device_count()} CUDA devices; "
            "a process needs one of its own"
        )
    if problems:
        raise ConfigError(problems)
    if section.method == "lora":
        lora.require()


def _write(
    folder: Path,
    model: Any,
    examples: Examples,
    valid: Examples,
    section: params.Train,
    settings: dict[str, Any],
    device: str,
    processes: int,
) -> None:
    import torch

    folder.mkdir()
    model.save_pretrained(folder / "start")
    examples.save(folder / "examples.npz")
    valid.save(folder / "valid.npz")
    shared = {
        "section": section.model_dump(mode="json"), "train": settings, "device": device,
        "threads": max(1, torch.get_num_threads() // processes),
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(shared), encoding="utf-8")


def _run(folder: Path, processes: int, progress: Callable[[int, int], None], should_stop: Callable[[], None]) -> None:
    """Start the launcher and stay with it to the end."""
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}",
        "-m", "flywheel.learning.launch", str(folder.resolve()),
    ]  # fmt: skip
    with ExitStack() as stack, (folder / "log").open("wb") as log:
        held = stack.enter_context(_locked(folder / _CALLER))
        launcher = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(), start_new_session=True
        )
        try:
            while launcher.poll() is None:
                _tell(folder, progress)
                should_stop()
                time.sleep(0.05)
        except Interrupted:
            fcntl.flock(held, fcntl.LOCK_UN)
            # Those that are too slow are ended by force; the last checkpoint then is one from before the stop.
            with suppress(subprocess.TimeoutExpired):
                launcher.wait(_PATIENCE_SECONDS)
            raise
        finally:
            _end(launcher)
    _tell(folder, progress)
    if launcher.returncode != 0 or not (folder / "result.json").exists():
        raise FlywheelError(
            f"training in {processes} processes ended with {launcher.returncode}, expected 0; it said:\n{_last(folder)}"
        )


def _environment() -> dict[str, str]:
    """Ours, with this package importable."""
    source = str(Path(__file__).resolve().parents[2])
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return os.environ | {"PYTHONPATH": os.pathsep.join(dict.fromkeys([source, *paths])), "DO_NOT_TRACK": "1"}


def _end(launcher: subprocess.Popen[bytes]) -> None:
    """Nothing is left of the launcher's group, whatever it was doing."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if launcher.poll() is not None:
            return
        os.killpg(launcher.pid, number)
        try:
            launcher.wait(10.0)
        except subprocess.TimeoutExpired:
            continue


def _tell(folder: Path, progress: Callable[[int, int], None]) -> None:
    try:
        done, total = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return  # the first step is still to be made
    progress(done, total)


def _last(folder: Path) -> str:
    """What is known of a failure: a rank's own words, or the end of the launcher's."""
    errors = sorted(folder.glob("error-*.txt"))
    said = (errors[0] if errors else folder / "log").read_text(encoding="utf-8", errors="replace")
    return "\n".join(said.splitlines()[-15:])


def _result(folder: Path) -> Training:
    values = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    values["valid_losses"] = tuple(values["valid_losses"])
    return Training(**values | {"cost": Cost(**values["cost"])})


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """Hold an exclusive lock, waiting for it; the descriptor that holds it, for one who wants to let go earlier."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield descriptor
    finally:
        os.close(descriptor)


def _is_held(file: Path) -> bool:
    """Whether another process holds the lock."""
    try:
        with file.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        pass
    return False


def main(folder: Path) -> None:
    """One process's part, called in each by the launcher."""
    import torch
    from accelerate import PartialState
    from transformers import AutoModelForCausalLM

    settings = json.loads((folder / "settings.json").read_text(encoding="utf-8"))
    torch.set_num_threads(settings["threads"])
    language.quiet()
    state = PartialState(cpu=settings["device"] == "cpu")

    def progress(done: int, total: int) -> None:
        if ranks.is_first():
            _replace(folder / "progress.json", json.dumps([done, total]))

    def should_stop() -> None:
        if ranks.is_first() and not _is_held(folder / _CALLER):
            raise Interrupted("the caller wants no more, or is gone")

    with ExitStack() as stack:
        if ranks.is_first():
            stack.enter_context(_locked(folder.parent / "worker.lock"))
        ranks.wait()
        model = AutoModelForCausalLM.from_pretrained(
            folder / "start", dtype="float32", use_safetensors=True, trust_remote_code=False
        ).to(state.device)
        training = supervised.train(
            model,
            Examples.load(folder / "examples.npz"),
            Examples.load(folder / "valid.npz"),
            params.Train.model_validate(settings["section"]),
            work=folder.parent,
            progress=progress,
            should_stop=should_stop,
            **settings["train"],
        )
        if ranks.is_first():
            model.save_pretrained(folder / "trained", max_shard_size="1TB")  # one file, as checkpoints have it
            _replace(folder / "result.json", json.dumps(asdict(training)))


def _replace(file: Path, text: str) -> None:
    """Write a file at one stroke: its reader sees the old or the new."""
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


if __name__ == "__main__":
    where = Path(sys.argv[1])
    try:
        main(where)
    except Interrupted:
        pass
    except Exception:
        (where / f"error-{os.environ.get('RANK', '0')}.txt").write_text(traceback.format_exc(), encoding="utf-8")
        raise

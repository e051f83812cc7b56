"""Training in several processes: the same recipe, the same stops and resumes, and nothing left running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel import params
from flywheel.errors import ConfigError, FlywheelError, Interrupted
from flywheel.learning import launch
from flywheel.learning.examples import EpochOrder, Examples, WithBlanks
from flywheel.learning.supervised import Training
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown

SECTION = params.Train(batch_size=4, learning_rate=0.02, patience=2, seed_epochs=3, epochs=3)
"""Ten examples make three steps an epoch; the last has two, of which the second process gets none."""

Teach = Callable[..., tuple[Training, str, LanguageModel]]


@pytest.fixture
def teach(model_folder: Path, countdown: Countdown, tmp_path: Path) -> Teach:
    def run(work: str, until_stale: bool, processes: int, **hooks: Any) -> tuple[Training, str, LanguageModel]:
        model = language.load(model_folder, "cpu", dtype="float32")
        train, valid = (
            Examples(
                (model.encode_prompt(countdown.prompt(p)), model.encode_answer(str(p.reference)), 0.5 + i % 2)
                for i, p in enumerate(countdown.problems(split, count))
            )
            for split, count in (("train", 10), ("valid", 6))
        )
        training = launch.train(
            model.model, train, valid, hooks.pop("section", SECTION), processes=processes, seed=11,
            fill=model.fill_id, work=tmp_path / work, until_stale=until_stale, **hooks,
        )  # fmt: skip
        language.save(model.model, model.tokenizer, tmp_path / f"{work}-out")
        return training, weights_digest(tmp_path / f"{work}-out"), model

    return run


def running(folder: Path) -> list[str]:
    """Command lines of the processes that train in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = process.read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if str(folder) in line and "flywheel.learning.launch" in line:
            found.append(line)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_two_processes_learn_as_one_does(teach: Teach, method: str, tmp_path: Path) -> None:
    """Weighted, unequal and partly empty shares of batches: a mean of the processes' means would show."""
    import torch

    section = SECTION.model_copy(update={"method": method})
    one, _, alone = teach("one", True, 1, section=section)
    seen: list[tuple[int, int]] = []
    two, _, together = teach("two", True, 2, section=section, progress=lambda done, total: seen.append((done, total)))
    assert (two.epochs, two.steps, two.cost.training, two.cost.tokens) == (
        one.epochs, one.steps, one.cost.training, one.cost.tokens
    )  # fmt: skip
    assert two.valid_losses == pytest.approx(one.valid_losses, abs=1e-4)
    for (name, weights), other in zip(
        alone.model.state_dict().items(), together.model.state_dict().values(), strict=True
    ):
        assert torch.allclose(weights, other, atol=1e-4), name
    assert seen[-1] == (9, 9)
    assert [p.name for p in (tmp_path / "two").iterdir() if p.name.startswith("processes")] == []
    assert running(tmp_path) == []


@pytest.mark.slow
def test_stopped_and_resumed_is_as_if_unbroken(teach: Teach, tmp_path: Path) -> None:
    """Asked to stop, it ends where it has come by then; from there it goes on with the batches that were to come."""
    done = reached = 0

    def count(steps: int, _: int) -> None:
        nonlocal done
        done = steps

    def stop() -> None:
        if done > max(3, reached):
            raise Interrupted("stop")

    # Steps are quick, so the end is far off; at a constant rate the first epochs of many are those of few.
    section = SECTION.model_copy(update={"schedule": "constant", "warmup_share": 0.0})
    while reached % 3 == 0:  # until it was stopped in the midst of an epoch, not at its end
        with pytest.raises(Interrupted):
            teach("cut", False, 2, section=section, epochs=3000, progress=count, should_stop=stop)
        assert running(tmp_path) == []
        (checkpoint,) = (tmp_path / "cut").glob("checkpoint-*")
        reached = json.loads((checkpoint / "trainer_state.json").read_text())["global_step"]
        assert 3 < reached < 9000
    epochs = reached // 3 + 2
    resumed = teach("cut", False, 2, section=section, epochs=epochs)
    unbroken = teach("unbroken", False, 2, section=section, epochs=epochs)
    assert resumed[:2] == unbroken[:2]


@pytest.mark.slow
def test_workers_end_when_their_caller_is_killed(model_folder: Path, tmp_path: Path) -> None:
    """Nothing goes on writing checkpoints that a resumed training writes too."""
    script = f"""
from pathlib import Path
from flywheel import params
from flywheel.learning import launch
from flywheel.learning.examples import Examples
from flywheel.models import language
model = language.load(Path({str(model_folder)!r}), "cpu", dtype="float32")
examples = Examples([([3, 4], [5, 2], 1.0)] * 4)
launch.train(model.model, examples, examples, params.Train(batch_size=2), processes=2, seed=0, fill=0,
             work=Path({str(tmp_path)!r}), until_stale=False, epochs=100000, checkpoint_seconds=1e-9)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    caller = subprocess.Popen([sys.executable, "-c", script], env=environment)
    try:
        deadline = time.monotonic() + 200
        while not list(tmp_path.glob("checkpoint-*/complete")):
            assert time.monotonic() < deadline
            assert caller.poll() is None
            time.sleep(0.1)
        assert len(running(tmp_path)) >= 2
        caller.send_signal(signal.SIGKILL)
        caller.wait()
        while running(tmp_path):
            assert time.monotonic() < deadline, running(tmp_path)
            time.sleep(0.1)
    finally:
        caller.kill()
        caller.wait()


@pytest.mark.slow
def test_a_process_that_fails_is_told_of(teach: Teach, tmp_path: Path) -> None:
    """A checkpoint that cannot be read: the words of the rank that met it reach the caller."""
    broken = tmp_path / "work" / "checkpoint-3"
    broken.mkdir(parents=True)
    (broken / "complete").touch()
    with pytest.raises(FlywheelError, match=r"2 processes ended with 1.*(?s:.*)checkpoint-3"):
        teach("work", False, 2)
    assert running(tmp_path) == []


def test_a_batch_that_cannot_be_shared_is_refused(teach: Teach) -> None:
    with pytest.raises(ConfigError, match=r"batch_size \(4\).*training_processes \(3\).*set it to 6"):
        teach("work", False, 3)


def test_examples_written_and_read_are_the_same(tmp_path: Path) -> None:
    examples = Examples([([5, 6], [7, 2], 1.0), ([8], [9, 10, 11, 2], 0.5)])
    examples.save(tmp_path / "examples.npz")
    read = Examples.load(tmp_path / "examples.npz")
    assert len(read) == 2
    for index in range(2):
        assert read[index]["ids"].tolist() == examples[index]["ids"].tolist()
        assert (read[index]["prompt"], read[index]["weight"]) == (examples[index]["prompt"], examples[index]["weight"])
    assert read.lengths.tolist() == examples.lengths.tolist()


def test_blanks_fill_the_last_batch_and_teach_nothing() -> None:
    examples = Examples([([5, 6], [7, 2], 1.0), ([8], [2], 0.5), ([8, 9], [3, 2], 1.0)])
    order = EpochOrder(3, seed=1, padded_count=4)
    assert len(order) == len(list(order)) == 4
    assert sorted(order) == [0, 1, 2, 3]
    assert list(order)[3] == 3, "blanks come last: no full batch loses an example to them"
    shared = WithBlanks(examples, 4)
    assert shared[1]["weight"] == 0.5
    assert (shared[3]["weight"], shared[3]["ids"].tolist()) == (0.0, [8, 2]), "the shortest, so as to cost little"

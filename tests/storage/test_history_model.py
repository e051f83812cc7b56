"""Random histories against a simple model of what history should be: run, kill, roll back, leave out, undo, collect,
push, pull and go on from another machine, in any order; nothing is lost, doubled or changed.

FLYWHEEL_HISTORIES says how many (a few by default; `make reliability` runs more).
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from flywheel.errors import InputError
from storage import clone, exchange, gc
from storage.history import history
from storage.recovery import recover
from storage.registry import Registry
from storage.rollback import exclude, rollback, undo
from storage.verification.verify import verify
from storage.views import query
from tests.storage import sample
from tests.storage.history_model import Model
from tests.storage.test_recovery import _drive

MANY = int(os.environ.get("FLYWHEEL_HISTORIES", "3"))


class Histories(RuleBasedStateMachine):
    """`here` works, `there` is a clone on another machine; both share a data remote and a git remote."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="histories-"))
        self.model = Model()
        self.pushed: dict[str, Any] | None = None
        self.there: Registry | None = None

    @initialize()
    def begin(self) -> None:
        self.here = sample.new_registry(self.folder / "here")
        for promoted in (True, True, False):
            sample.make_generation(self.here, promoted=promoted)
            self.model.publish(promoted)

    @rule(promoted=st.booleans())
    def run(self, promoted: bool) -> None:
        params = sample.make_generation(self.here, promoted=promoted)
        assert params.parent == self.model.head
        assert params.generation == self.model.publish(promoted)

    @rule(step=st.integers(5, 70))
    def kill(self, step: int) -> None:
        """SIGKILL at a step of begin, stages or publish; whatever is left is the old state or the new one."""
        before = self.here.generations()
        _drive(self.here, "generation", step)
        recover(self.here)
        now = self.here.generations()
        assert now in (before, [*before, len(before)])
        if now != before:
            self.model.publish()

    @rule(choice=st.integers(0, 99))
    def roll_back(self, choice: int) -> None:
        others = [generation for generation in self.model.parents if generation != self.model.head]
        if not others:
            return
        target = others[choice % len(others)]
        if self.model.tainted(target):
            with pytest.raises(InputError, match="excluded"):
                rollback(self.here, target, "a test")
            return
        rollback(self.here, target, "a test")
        self.model.roll_back(target)

    @rule(choice=st.integers(0, 99))
    def leave_out(self, choice: int) -> None:
        model = self.model.student(choice % len(self.model.parents))
        entry = self.model.exclusion(model)
        if entry is None or model in self.model.out():
            with pytest.raises(InputError, match=r"every generation came of|excluded already"):
                exclude(self.here, model, "a test")
            return
        done = exclude(self.here, model, "a test")
        assert (done["to"], done["labels_kept"]) == (entry.to, entry.labels_kept)
        assert set(done["models_excluded"]) == entry.models
        self.model.exclude(entry)

    @rule()
    def take_back(self) -> None:
        moves = self.model.moves
        if not moves or (moves[-1].source == self.model.head and not moves[-1].exclusion):
            with pytest.raises(InputError, match=r"nothing to undo|already stands"):
                undo(self.here)
            return
        undo(self.here)
        self.model.undo()

    @rule()
    def push(self) -> None:
        if self.pushed is None:
            exchange.push(self.here, str(self.folder / "data"), str(self.folder / "history.git"))
        else:
            exchange.push(self.here)
        self.pushed = self.seen(self.here)

    @precondition(lambda self: self.pushed is not None)
    @rule(keep=st.integers(1, 3))
    def collect(self, keep: int) -> None:
        before = self.seen(self.here)
        gc.collect(self.here, keep)
        assert self.seen(self.here) == before

    @precondition(lambda self: self.pushed is not None)
    @rule()
    def go_on_elsewhere(self) -> None:
        """The other machine follows and works on from there; this one becomes the other."""
        self.push()
        if self.there is None:
            clone.clone(str(self.folder / "history.git"), self.folder / "there", remote=str(self.folder / "data"))
            self.there = Registry.open(self.folder / "there")
        else:
            exchange.pull(self.there)
        assert self.seen(self.there) == self.pushed
        self.here, self.there = self.there, self.here

    def seen(self, registry: Registry) -> dict[str, Any]:
        """All that a reader sees, apart from this machine's own names of runs."""
        rows = [{**row, "mlflow_run": None, "prefect_flow_run": None} for row in history(registry)]
        labels = sorted(row["label_id"] for row in query(registry, "SELECT label_id FROM labels").rows)
        return {"rows": rows, "labels": labels}

    def compare(self) -> None:
        line = self.model.line(self.model.head)
        seen = self.seen(self.here)
        assert {row["generation"]: row["parent"] for row in seen["rows"]} == self.model.parents
        assert {row["generation"]: row["student"] for row in seen["rows"]} == {
            generation: self.model.student(generation) for generation in self.model.parents
        }
        assert [row["generation"] for row in seen["rows"] if row["status"] != "abandoned"] == line
        assert [row["generation"] for row in seen["rows"] if row["status"] == "current"] == line[-1:]
        sizes = query(self.here, "SELECT generation, count(DISTINCT label_id) AS n FROM labels GROUP BY 1").rows
        expected = {generation: sample.LABELS + generation for generation in self.model.labels()}
        assert {row["generation"]: row["n"] for row in sizes} == expected
        assert len(seen["labels"]) == len(set(seen["labels"])) == sum(expected.values())
        self.here.check_clean()

    def check_invariants(self, *arguments: Any, **options: Any) -> None:
        super().check_invariants(*arguments, **options)
        if self.model.parents:
            self.compare()

    def teardown(self) -> None:
        try:
            for registry in (self.here, self.there):
                if registry is not None:
                    found = verify(registry.root, jobs=1)
                    assert found.ok, found.failures
        finally:
            shutil.rmtree(self.folder)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_histories_are_what_they_should_be() -> None:
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=MANY,
            stateful_step_count=10,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],  # a step takes a second; ten steps can be read as they are
            suppress_health_check=list(HealthCheck),
        ),
    )

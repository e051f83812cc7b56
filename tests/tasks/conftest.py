"""A tiny registry folder without a registry: params, base model, lineage and problems, enough for the stages."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from flywheel import params as parameters
from flywheel.models import language
from flywheel.params import Params
from flywheel.problems import domain as domains
from storage.layout import Layout
from tasks import problems

TINY = parameters.parse(
    {
        "problems": {
            "numbers": 2, "largest": 9, "largest_target": 40, "train": 30, "valid": 8, "test": 8,
            "shares": [0.6, 0.2, 0.2],
        },
        "model": {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 32},
        "generate": {"samples": 3, "max_new_tokens": 8, "problems": 14, "unit": 2},
        "train": {"epochs": 1, "batch_size": 8},
        "evaluate": {"budgets": [1, 2]},
        "execution": {"device": "cpu", "threads": 1},
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(1)


@pytest.fixture
def tiny() -> Params:
    """Params of generation 1, some way from the defaults."""
    return TINY.for_generation(1, 0)


@pytest.fixture
def layout(tmp_path: Path, tiny: Params) -> Layout:
    """A folder laid out for generation 1, with its problems but no attempts yet."""
    made = Layout(tmp_path / "registry")
    domain = domains.load(tiny.problems)
    snapshot = language.create(tiny.model, domain.vocabulary(), domain.corpus(), 3, made.parent)
    made.lineage.mkdir()
    made.params.write_text(parameters.dump(tiny), encoding="utf-8")
    teacher = {"kind": "champion", "source": None, "snapshot": snapshot, "generation": 0}
    (made.lineage / "teacher.json").write_text(json.dumps(teacher))
    (made.lineage / "tried.json").write_text(json.dumps({"generations": []}))
    problems.run(tiny, made)
    return made

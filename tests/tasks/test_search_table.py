"""Which arms a table of searchers has."""

from __future__ import annotations

from flywheel import params
from tasks import search_table


def rewards(domain: str, models: list[str]) -> set[str]:
    problems = params.Problems(domain=domain, path="package:gsm8k/test.jsonl.gz" if domain == "file" else None)
    return {arm.reward.split()[0] for arm in search_table.arms_for(params.Params(problems=problems), models)}


def test_arms_are_those_that_the_domain_and_the_models_allow() -> None:
    always = {"exact", "majority", "noisy"}
    assert rewards("countdown", []) == always | {"oracle_steps"}
    assert rewards("countdown", ["process"]) == always | {"oracle_steps", "process"}
    assert rewards("file", ["process", "outcome"]) == always | {"process", "outcome"}
    assert {arm.searcher for arm in search_table.arms_for(params.Params(), ["process"])} == {
        "best_of_n", "adaptive", "beam", "dvts", "tree",
    }  # fmt: skip

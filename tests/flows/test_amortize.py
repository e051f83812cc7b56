"""What a registry says of its paybacks, worked out on paper: as values, on the command line, drawn, in the report."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.amortize import Measured, amortized, budget_words, document, model_of, read
from flows.figures import by_queries, by_queries_file
from flows.page import amortization_rows, beyond_reach
from flows.report import report
from flows.series import costs
from flows.summary import summarise
from flywheel.errors import InputError
from storage.history import history
from storage.registry import Registry
from storage.rollback import rollback
from tests.flows.command import flywheel, flywheel_json
from tests.storage import sample

Outcome = tuple[str, int, Sequence[float], Sequence[float]]
"""Metric, budget, values and FLOPs of the four test problems."""

_GREEDY = {0: [0, 0, 0, 0], 2: [1, 1, 0, 0], 3: [1, 1, 0, 1]}
_RIGHT = {0: [1, 2, 0, 4], 2: [0, 0, 0, 0], 3: [2, 2, 0, 4]}
SAMPLES_COST = 10 + 100 * (2.5 + 5 / 3 + 4 + 1) / 4
"""Of generation 0's searches of 4, stopped at the first right one: with 1 of 4 right 2.5 samples are drawn, ..."""


def text(generation: int) -> list[Outcome]:
    """A prompt costs 10, a sample 100; four samples. pass@4 of generation 0 is 3 in 4, as is generation 3 at once."""
    return [
        ("greedy", 1, _GREEDY[generation], [110.0] * 4),
        ("right", 4, _RIGHT[generation], [410.0] * 4),
        ("pass", 1, [count / 4 for count in _RIGHT[generation]], [110.0] * 4),
        ("best", 1, [0.0] * 4, [110.0] * 4),
        ("best", 4, [1.0] * 4, [410.0] * 4),
    ]


def board(generation: int) -> list[Outcome]:
    """A look costs 10, a simulation 10. Generation 0 keeps 1 win of 4 alone, 2 with 8 simulations, 4 with 32."""
    alone = {0: [1, 0, 0, 0], 1: [1, 1, 1, 0]}[generation]
    return [
        ("greedy", 1, alone, [10.0] * 4),
        ("search", 8, [1, 1, 0, 0], [80.0] * 4),
        ("search", 32, [1, 1, 1, 1], [320.0] * 4),
    ]


def make(registry: Registry, outcomes: Callable[[int], list[Outcome]]) -> None:
    """A generation whose outcomes on test are these; it takes 3 MFLOPs, as all of `sample` do."""
    rows_of = sample._rows

    def rows(params: Any) -> dict[str, list[dict[str, Any]]]:
        found = rows_of(params)
        test = [problem for problem in found["problems"] if problem["split"] == "test"]
        for metric, budget, values, flops in outcomes(params.generation):
            found["outcomes"] += [
                {
                    "snapshot": sample.snapshot_of(params.generation), "generation": params.generation, "split": "test",
                    "problem_id": problem["problem_id"], "group": problem["group"], "metric": metric,
                    "budget": budget, "value": float(value), "flops": price,
                }
                for problem, value, price in zip(test, values, flops, strict=True)
            ]  # fmt: skip
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample, "_rows", rows)
        sample.make_generation(registry)


def held(**generations: list[Outcome]) -> Measured:
    """What `read` would make of such outcomes, without a registry."""
    models = [
        model_of(f"gen/{index}", 3e6 * index, {(m, b): (np.array(v, float), np.array(f)) for m, b, v, f in outcomes})
        for index, outcomes in enumerate(generations.values())
    ]
    return Measured(models, [*range(len(models))], list("abcd"), len(models) - 1, True, False, True)


@pytest.fixture(scope="module", autouse=True)
def identity() -> Iterator[None]:
    """Git's, for all commits here."""
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        yield


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    """Generations 0, 2 and 3 on a line; 1, of which nothing was measured on test, was rolled back."""
    registry = sample.new_registry(tmp_path_factory.mktemp("amortize") / "texts")
    with pytest.raises(InputError, match="holds no generation, expected two at least"):
        read(registry, history(registry))
    make(registry, text)
    with pytest.raises(InputError, match="holds only gen/0, expected two at least"):
        read(registry, history(registry))
    make(registry, lambda generation: [])
    with pytest.raises(InputError, match=r"of too few generations .* \(of gen/0\), expected gen/0 and one more"):
        read(registry, history(registry))
    rollback(registry, 0, "nothing was measured")
    make(registry, text)
    make(registry, text)
    return registry


@pytest.fixture(scope="module")
def said(texts: Registry) -> dict[str, Any]:
    return amortized(texts, history(texts), draws=400)


def test_paybacks_of_texts(said: dict[str, Any], texts: Registry) -> None:
    assert said["target"]["value"] == 0.75
    first, second, third = said["rows"]
    assert (first["budget"]["value"], first["flops"]["value"]) == (4.0, pytest.approx(SAMPLES_COST))
    # The one that was rolled back was paid for all the same.
    assert [(row["generation"], row["investment_flops"]) for row in said["rows"]] == [(0, 0.0), (2, 6e6), (3, 9e6)]
    assert [row["reached"] for row in said["rows"]] == [True, False, True]
    assert (second["most"], second["against_first"]) == (0.5, None)
    queries = third["against_first"]["queries"]
    assert queries["value"] == pytest.approx(9e6 / (SAMPLES_COST - 110))
    assert queries["low"] < queries["value"] < queries["high"]
    assert third["against_before"] is None, "the one before cannot be compared"
    assert f"{9e6 / (SAMPLES_COST - 110):,.0f} queries pay back the 9e+06 FLOPs" in said["sentence"]
    assert (
        "To solve 75.0% of the test problems, what gen/3 does at once, gen/0 with 4 samples takes" in said["sentence"]
    )
    # The campaign's own sentence says the same.
    summary = summarise(texts, history(texts), 4)
    assert summary is not None
    assert summary.investment_flops == third["investment_flops"]
    assert f"it pays for itself after {queries['value']:,.0f} queries, at equal accuracy" in summary.sentence


def test_a_target_in_between(texts: Registry) -> None:
    """pass@2 of generation 0 is 7/12: between 2 and 3 samples for 0.6; generation 3 needs none."""
    document = amortized(texts, history(texts), 0.6, 200)
    pass_at = [(1 / 4 * k + [0, 1 / 2, 5 / 6, 1, 1][k] + 1) / 4 for k in range(1, 4)]
    drawn = [1.0, 1 + (3 / 4 + 1 / 2 + 1) / 4, 1 + (3 / 4 + 1 / 2 + 1) / 4 + (1 / 2 + 1 / 6 + 1) / 4]
    assert pass_at[1] < 0.6 < pass_at[2]
    part = (0.6 - pass_at[1]) / (pass_at[2] - pass_at[1])
    row = document["rows"][0]
    assert row["budget"]["value"] == pytest.approx(2 + part)
    assert row["flops"]["value"] == pytest.approx(10 + 100 * (drawn[1] + part * (drawn[2] - drawn[1])))
    assert "gen/0 with 2.2 samples" in document["sentence"]
    assert "at most" in document["sentence"], "the student does more than was asked for"


def test_paybacks_of_a_board(tmp_path: Path) -> None:
    registry = sample.new_registry(tmp_path / "hex")
    make(registry, board)
    make(registry, board)
    said = amortized(registry, history(registry), draws=200)
    first, second = said["rows"]
    # 3 wins of 4 lie half-way from 8 to 32 simulations by the logarithm, at 16, whose price is 160.
    assert (first["budget"]["value"], first["flops"]["value"]) == pytest.approx((16.0, 160.0))
    assert second["against_first"]["queries"]["value"] == pytest.approx(3e6 / 150)
    assert second["against_before"] == second["against_first"]
    assert "To keep the win in 75.0% of the test positions" in said["sentence"]
    assert "20,000 moves pay back" in said["sentence"]


def test_targets_that_are_refused(texts: Registry) -> None:
    for target in (0.0, -0.5, 1.5, math.nan):
        with pytest.raises(InputError, match=r"expected an accuracy above 0 and up to 1, such as 0\.6"):
            amortized(texts, history(texts), target)
    with pytest.raises(InputError, match=r"no generation reaches 90\.0% on test: gen/0 comes to at most 75\.0%"):
        amortized(texts, history(texts), 0.9)
    nothing = held(first=text(0), second=[("greedy", 1, [0] * 4, [110.0] * 4), *text(2)[1:]])
    with pytest.raises(InputError, match=r"gen/1 at once or gen/0 with any budget solves nothing on test"):
        document(nothing)


def test_where_generation_0_falls_short() -> None:
    """Generation 0 solves at most 3 in 4, generation 1 all: the default is what both reach; 0.9 is not to be had."""
    both = held(first=text(0), second=[("greedy", 1, [1, 1, 1, 1], [110.0] * 4), *text(2)[1:]])
    low, high = document(both, draws=100), document(both, 0.9, 100)
    assert low["target"]["value"] == 0.75
    assert "the most that gen/0 reaches with any measured budget" in low["sentence"]
    assert f"at most {3e6 / (SAMPLES_COST - 110):,.0f} queries" in low["sentence"]
    assert [row["reached"] for row in high["rows"]] == [False, True]
    assert high["rows"][1]["against_first"] is None
    assert "gen/0 has no measured budget that is enough" in high["sentence"]
    beyond = beyond_reach(high).replace("\N{NO-BREAK SPACE}", " ")
    assert beyond == "Not with any measured budget: gen/0 75.0 % at most, of 90.0 %."
    assert list(amortization_rows(high)[0]) == [
        "generation", "search", "on test", "FLOPs a query", "invested", "against the one before",
    ]  # fmt: skip


def test_where_the_student_falls_short_or_costs_more() -> None:
    worse = held(first=text(0), second=text(2))
    said = document(worse, 0.7, 100)
    assert "gen/1 has no measured budget that is enough, gen/0 has." in said["sentence"]
    assert len(costs(said)[0].lines) == 1
    dear = held(first=text(0), second=[("greedy", 1, [1, 1, 0, 1], [500.0] * 4), *text(2)[1:]])
    said = document(dear, draws=100)
    assert "no number of queries pays back" in said["sentence"]
    assert said["rows"][1]["against_first"]["queries"]["value"] == math.inf


def test_budgets_in_words() -> None:
    assert [budget_words(0, False), budget_words(1, True), budget_words(1, False)] == [
        "at once", "at once", "with 1 sample",
    ]  # fmt: skip
    assert [budget_words(11.27, False), budget_words(16.0, True)] == ["with 11.3 samples", "with 16 simulations"]


def test_the_command(texts: Registry, said: dict[str, Any], tmp_path: Path) -> None:
    drawn = tmp_path / "new" / "cost.svg"
    told = flywheel("amortize", "--registry", texts.root, "--draws", "400", "--figure", drawn).stdout
    assert told.startswith(said["sentence"])
    assert re.search(r"gen/0 +with 4 samples", told)
    assert "Not with any measured budget: gen/2 50.0" in told
    assert f"Wrote {drawn}" in told
    assert drawn.is_file()
    document = flywheel_json("amortize", "--registry", texts.root, "--draws", "400")
    assert document == json.loads(json.dumps(said).replace("Infinity", "null"))
    refused = flywheel("amortize", "--registry", texts.root, "--target", "2", code=2)
    assert "got a target of 2" in refused.stderr
    refused = flywheel("amortize", "--registry", texts.root, "--figure", tmp_path / "cost.pdf", code=2)
    assert "expected a file that ends in .svg or .png" in refused.stderr


def test_the_drawing(said: dict[str, Any]) -> None:
    panels = costs(said)
    assert [line.name for line in panels[0].lines] == ["gen/0 with 4 samples", "gen/3 at once"]
    assert [line.name for line in panels[1].lines] == [
        "gen/0 with 4 samples", "gen/3 at once", "gen/3 with 4 samples",
    ], "generation 0 at once solves nothing: such a query costs without end"  # fmt: skip
    assert all(math.isfinite(point.high) for panel in panels for line in panel.lines for point in line.points)
    queries = said["rows"][2]["against_first"]["queries"]["value"]
    assert panels[0].crossings[0] is None
    assert panels[0].crossings[1] is not None
    assert panels[0].crossings[1].queries == queries
    assert panels[0].crossings[1].flops == pytest.approx(queries * SAMPLES_COST)
    inline = by_queries(panels)
    assert f"gen/3 at once: from {queries:,.0f} on</text>" in inline
    assert by_queries(panels) == inline
    svg, png = (by_queries_file(panels, "Queries", kind) for kind in ("svg", "png"))
    assert (svg, png) == tuple(by_queries_file(panels, "Queries", kind) for kind in ("svg", "png"))
    assert png.startswith(b"\x89PNG")
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    style = root.find("{*}style")
    assert style is not None
    assert style.text is not None
    used = set(re.findall(rb"var\((--\w+)\)", svg))
    assert {name.decode() for name in used} <= set(re.findall(r"(--\w+):", style.text))


def test_the_report_shows_it(texts: Registry, said: dict[str, Any], tmp_path: Path) -> None:
    path = report(texts, tmp_path / "report.html")
    page = path.read_text(encoding="utf-8")
    assert "When it pays for itself" in page
    assert 'aria-labelledby="by-queries-title by-queries-description"' in page
    assert "queries pay back the 9e+06 FLOPs" in page
    assert "gen/2 50.0" in page
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"url\(#([^)]*)\)", page)) <= set(ids)
    assert "://" not in page
    assert report(texts, tmp_path / "again.html").read_bytes() == path.read_bytes()
    rows = amortization_rows(said)
    assert [row["generation"] for row in rows] == ["gen/0", "gen/3 (student)"]
    assert rows[0]["queries to pay back, against gen/0"] == "–"

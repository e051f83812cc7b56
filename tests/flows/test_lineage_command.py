"""`flywheel lineage` as a user meets it: rows, models, generations, the page and OpenLineage events."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flywheel.records import digest
from storage.registry import Registry
from tests.flows.command import flywheel, flywheel_json
from tests.storage import sample

ATTEMPT = digest("attempt", 1, 0, 2)
LABEL = f"gen/1/labels#{digest('label', ATTEMPT)}"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Registry:
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        registry = sample.new_registry(tmp_path_factory.mktemp("lineage") / "registry")
        sample.make_generation(registry)
        sample.make_generation(registry)
    return registry


def test_a_label_down_to_its_rows(registry: Registry) -> None:
    document = flywheel_json("lineage", LABEL[:30], "--up", "--registry", registry.root, "--examples", "1")
    assert set(document) == {"nodes", "edges"}
    nodes = {node["address"]: node for node in document["nodes"]}
    assert [f"gen/1/attempts#{ATTEMPT}", LABEL] in document["edges"]
    assert ["gen/0/student", f"gen/1/attempts#{ATTEMPT}"] in document["edges"]
    assert nodes["gen/0/student"]["learned"] == [{"from": "gen/0/labels", "rows": sample.LABELS}]
    assert len(nodes["gen/0/labels"]["examples"]) == 1
    text = flywheel("lineage", LABEL, "--registry", registry.root).stdout
    assert text.startswith(LABEL)
    assert "best_of_n, seed 0, index 2" in text
    assert text.count("e.g. #") == 3


def test_a_model_has_counts_and_a_generation_is_as_it_was(registry: Registry) -> None:
    down = flywheel_json("lineage", f"model/{sample.SOLVER[:9]}", "--down", "--registry", registry.root)
    learned = {node["address"]: node["learned"] for node in down["nodes"] if node["kind"] == "student"}
    assert learned["gen/0/student"] == [{"from": "gen/0/labels", "rows": sample.LABELS}]
    assert learned["gen/1/student"] == [{"from": "gen/1/labels", "rows": sample.LABELS + 1}]
    plain = flywheel_json("lineage", "gen/0/student", "--registry", registry.root)
    assert all("learned" not in node and "examples" not in node for node in plain["nodes"])
    counted = flywheel_json("lineage", "gen/0/student", "--examples", "2", "--registry", registry.root)
    assert {node["address"] for node in counted["nodes"]} == {node["address"] for node in plain["nodes"]}
    assert sum(len(node.get("examples", [])) for node in counted["nodes"]) == 2


def test_the_page_and_the_events_are_files(registry: Registry, tmp_path: Path) -> None:
    page = tmp_path / "new folder" / "graph.html"
    assert flywheel_json("lineage", LABEL, "--html", page, "--registry", registry.root) == {"html": str(page)}
    text = page.read_text(encoding="utf-8")
    assert LABEL in text
    # Both ways by default: what it went into is there too.
    assert '"gen/1/evaluations"' in text
    events = tmp_path / "events.jsonl"
    told = flywheel_json("lineage", "gen/1", "--openlineage", events, "--registry", registry.root)
    assert told == {"openlineage": str(events), "events": 10, "generations": [1]}
    assert len(events.read_text(encoding="utf-8").splitlines()) == 10
    said = flywheel("lineage", "--openlineage", events, "--registry", registry.root).stdout
    assert said == f"Wrote 20 events of 2 generations to {events}\n"
    assert json.loads(events.read_text(encoding="utf-8").splitlines()[0])["job"]["name"] == "problems"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "got no address"),
        (["gen/1", "--mermaid", "--json"], "got --mermaid and --json, expected one of them"),
        (["gen/1", "--mermaid", "--html", "x"], "got --mermaid and --html, expected one of them"),
        (["gen/1/labels#ffffffffff"], "has no label whose id begins so"),
        (["gen/1/student", "--openlineage", "x"], "expected a generation such as gen/4"),
    ],
)
def test_what_is_refused(registry: Registry, arguments: list[str], words: str) -> None:
    assert words in flywheel("lineage", *arguments, "--registry", registry.root, code=2).stderr

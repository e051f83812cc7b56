"""Lineage of a registry with a fork, against the drawing of it that the sample's rules give."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flywheel.errors import InputError
from flywheel.params import load, parse
from flywheel.records import digest
from storage import git
from storage.lineage import Graph, lineage, mermaid, outline, tree
from storage.registry import Registry
from storage.views import query
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.forked import forked as forked

BASE, SOLVER = f"model/{sample.model_digest(sample.BASE)}", f"model/{sample.SOLVER}"
# Who taught whom: the champion of the parent. Generation 2 was not promoted, so 1 taught 3 as well.
TEACHERS = {0: SOLVER, 1: "gen/0/student", 2: "gen/1/student", 3: "gen/1/student", 4: "gen/1/student"}
LINES = {0: [], 1: [0], 2: [0, 1], 3: [0, 1, 2], 4: [0, 1]}
# And a student starts from the same champion.
STARTS = {**TEACHERS, 0: BASE}


def everything() -> set[tuple[str, str]]:
    edges = set()
    for generation, older in LINES.items():
        student = f"gen/{generation}/student"
        edges |= {(f"gen/{number}/labels", student) for number in [*older, generation]}
        edges |= {(TEACHERS[generation], f"gen/{generation}/labels"), (STARTS[generation], student)}
        edges.add((student, f"gen/{generation}/evaluations"))
    return edges


def reached(root: str, edges: set[tuple[str, str]]) -> set[str]:
    """Nodes that edges lead to from `root`, by repeated expansion."""
    found = {root}
    while more := {end for start, end in edges if start in found} - found:
        found |= more
    return found


def edges_of(graph: Graph) -> set[tuple[str, str]]:
    return {(cause, effect) for cause, effect in graph.edges}


def nodes_of(graph: Graph) -> set[str]:
    return {node["address"] for node in graph.nodes}


@pytest.mark.parametrize(
    "root", ["gen/4/student", "gen/3/labels", "gen/0/student", "gen/1/evaluations", "gen/0/labels"]
)
def test_up_and_down_are_what_can_be_reached(forked: Registry, root: str) -> None:
    edges = everything()
    above = reached(root, {(effect, cause) for cause, effect in edges})
    below = reached(root, edges)
    for direction, expected in (("up", above), ("down", below), ("both", above | below)):
        graph = lineage(forked, root, direction)  # type: ignore[arg-type]
        assert nodes_of(graph) == expected
        assert edges_of(graph) == {(start, end) for start, end in edges if {start, end} <= expected}
        assert graph.roots == (root,)


def test_a_generation_is_its_labels_student_and_evaluations(forked: Registry) -> None:
    edges = {(effect, cause) for cause, effect in everything()}
    graph = lineage(forked, "gen/4")
    assert nodes_of(graph) == reached("gen/4/evaluations", edges)
    assert set(graph.roots) == {"gen/4/labels", "gen/4/student", "gen/4/evaluations"}


def test_a_model_is_found_by_its_digest(forked: Registry) -> None:
    made = lineage(forked, f"model/{sample.snapshot_of(2)[:8]}")
    assert made.roots == ("gen/2/student",)
    down = lineage(forked, f"model/{sample.SOLVER[:8]}", "down")
    assert nodes_of(down) == reached(SOLVER, everything())


def test_nodes_say_what_they_are(forked: Registry) -> None:
    nodes = {node["address"]: node for node in lineage(forked, "gen/3", "both").nodes}
    assert nodes["gen/3/student"] == {
        "address": "gen/3/student",
        "kind": "student",
        "digest": sample.snapshot_of(3),
        "generation": 3,
        "status": "abandoned",
        "promoted": True,
        "parameters": 1000,
    }
    loser = next(node for node in lineage(forked, "gen/2/student").nodes if node["address"] == "gen/2/student")
    assert loser["promoted"] is False
    assert nodes["gen/2/labels"]["rows"] == sample.LABELS + 2
    assert (nodes[SOLVER]["kind"], nodes[BASE]["kind"]) == ("solver", "model")
    assert all({"address", "kind", "digest", "generation"} <= set(node) for node in nodes.values())


def test_every_label_is_where_the_graph_says(forked: Registry) -> None:
    """The set's node against the rows themselves."""
    for node in lineage(forked, "gen/4/student").nodes:
        if node["kind"] == "labels":
            sql = f"SELECT count(*) AS n FROM labels WHERE generation = {node['generation']}"
            assert list(query(forked, sql).rows) == [{"n": node["rows"]}]


def test_a_label_leads_through_its_attempt_to_its_teacher_and_to_those_it_taught(forked: Registry) -> None:
    attempt = digest("attempt", 1, 0, 2)
    label = digest("label", attempt)
    graph = lineage(forked, f"gen/1/labels#{label[:9]}", "both")
    name, tried = f"gen/1/labels#{label}", f"gen/1/attempts#{attempt}"
    node = next(node for node in graph.nodes if node["address"] == name)
    assert (node["searcher"], node["reward"], node["reward_source"]) == ("best_of_n", 1.0, "exact")
    # The sample trains each student on its own generation's labels only.
    assert {edge for edge in edges_of(graph) if name in edge} == {(tried, name), (name, "gen/1/student")}
    assert ("gen/0/student", tried) in edges_of(graph)
    assert "gen/3/student" in nodes_of(graph), "what came of that student"


def test_a_window_without_excluded_models(forked: Registry, tmp_path: Path) -> None:
    """A student did not learn from labels whose teacher its window leaves out, though the window lists their file."""
    registry = copy_of(forked, tmp_path / "registry")
    path = registry.layout.lineage / "window.json"
    window = json.loads(path.read_text(encoding="utf-8"))
    window["excluded"] = [sample.SOLVER]
    path.write_text(json.dumps(window), encoding="utf-8")
    git.run(registry.root, "commit", "-q", "-m", "Leave the solver out", "--", "lineage/window.json")
    git.run(registry.root, "tag", "-f", "-a", "-m", "Generation 4", "gen/0004")
    learned = {cause for cause, effect in lineage(registry, "gen/4/student").edges if effect == "gen/4/student"}
    assert learned == {"gen/1/student", "gen/1/labels", "gen/4/labels"}


def test_an_external_teacher_and_a_window(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(4)
    values = load(registry.layout.params).model_dump(mode="json")
    values["generate"]["teacher"], values["filter"]["window"] = 'hub/large "x"', 2
    sample.make_generation(registry, parse(values))
    graph = lineage(registry, "gen/4/student")
    teacher = f"model/{digest('external', values['generate']['teacher'])}"
    assert (teacher, "gen/4/labels") in edges_of(graph)
    learned = {cause for cause, effect in edges_of(graph) if effect == "gen/4/student" and cause.endswith("/labels")}
    assert learned == {"gen/3/labels", "gen/4/labels"}
    node = next(node for node in graph.nodes if node["address"] == teacher)
    assert (node["source"], node["verified"]) == (values["generate"]["teacher"], False)
    drawn = mermaid(graph)
    assert 'hub/large "x"' not in drawn
    assert "hub/large #34;x#34;" in drawn
    assert "not verified" in outline(graph)


def test_unknown_addresses_are_refused(forked: Registry) -> None:
    with pytest.raises(InputError, match="never published"):
        lineage(forked, "gen/8")
    with pytest.raises(InputError, match="expected gen/7"):
        lineage(forked, "student")


def test_mermaid_draws_every_node_and_edge(forked: Registry) -> None:
    graph = lineage(forked, "gen/4/student", "both")
    lines = mermaid(graph).splitlines()
    assert lines[0] == "flowchart LR"
    names = dict(re.findall(r'(n\d+)[\[(>]+"([^"<]+)', "\n".join(lines)))
    arrows = {tuple(line.strip().split(" --> ")) for line in lines if " --> " in line}
    assert {(names[start], names[end]) for start, end in arrows} == edges_of(graph)
    assert set(names.values()) == nodes_of(graph)


@pytest.mark.parametrize("direction", ["up", "down"])
def test_tree_opens_every_node_once(forked: Registry, direction: str) -> None:
    graph = lineage(forked, "gen/1/student", direction)  # type: ignore[arg-type]
    opened, edges, waiting = [], [], [tree(graph)]
    while waiting:
        node = waiting.pop()
        if node.get("repeated"):
            assert node["children"] == []
            continue
        opened.append(node["address"])
        edges += [(node["address"], child["address"]) for child in node["children"]]
        waiting += node["children"]
    assert sorted(opened) == sorted(nodes_of(graph))
    ways = edges_of(graph) if direction == "down" else {(effect, cause) for cause, effect in graph.edges}
    assert sorted(edges) == sorted(ways)
    json.dumps(tree(graph))


def test_outline_is_a_drawing_to_read(forked: Registry) -> None:
    short = {name: sample.snapshot_of(name)[:12] for name in range(2)}
    sets = {node["address"]: node["digest"][:12] for node in lineage(forked, "gen/1/student").nodes}
    assert outline(lineage(forked, "gen/1/student")).splitlines() == [
        f"gen/1/student  {short[1]}",
        f"├── gen/1/labels  {sets['gen/1/labels']}  5 labels",
        "│   └── gen/0/student, shown elsewhere here",
        f"├── gen/0/labels  {sets['gen/0/labels']}  4 labels",
        f"│   └── {SOLVER}  solver",
        f"└── gen/0/student  {short[0]}",
        f"    ├── {BASE}  model",
        "    └── gen/0/labels, shown elsewhere here",
    ]


def test_outline_of_both_ways_is_two_trees(forked: Registry) -> None:
    up, _, down = outline(lineage(forked, "gen/1/student", "both")).partition("\n\nWhat it went into:\n")
    assert up == outline(lineage(forked, "gen/1/student"))
    assert down == outline(lineage(forked, "gen/1/student", "down"))


def test_the_same_question_has_the_same_answer(forked: Registry) -> None:
    first, second = (lineage(forked, "gen/4", "both") for _ in range(2))
    assert first == second
    assert first.document() == {"nodes": first.nodes, "edges": first.edges}


def test_reading_is_quick(forked: Registry) -> None:
    start = time.perf_counter()
    lineage(forked, "gen/4", "both")
    assert time.perf_counter() - start < 1.0

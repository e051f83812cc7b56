"""Row lineage against plain loops over every row of every table."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest

from flywheel.errors import InputError, RegistryError
from flywheel.records import digest
from storage import dvc, git, lock
from storage.cache import cache_path
from storage.exclusions import Exclusion
from storage.history import published
from storage.lineage import Direction, Graph, mermaid, outline
from storage.publish import publish
from storage.registry import Registry
from storage.row_lineage import trace
from storage.schemas import BOARDS, TABLES, table_folder
from storage.tables import TableWriter, read_rows, replace_folder
from storage.views import query
from tests.storage import lineage_world as world
from tests.storage import sample
from tests.storage.conftest import copy_of
from tests.storage.lineage_world import LARGE, SECOND, Told, reached
from tests.storage.lineage_world import storied as storied
from tests.storage.test_imports import HEAVY

SOLVER, BASE = f"model/{sample.SOLVER}", f"model/{sample.model_digest(sample.BASE)}"
ARCHIVE = Path(__file__).parent / "data" / "version-1.tar.xz"
EXTERNAL = f"model/{digest('external', LARGE)}"


@pytest.fixture(scope="module")
def told(storied: Registry) -> Told:
    return world.told(storied)


def label_of(told: Told, generation: int, place: int = 0) -> str:
    return [name for name, row in told.labels.items() if row["generation"] == generation][place]


def node_of(graph: Graph, address: str) -> dict[str, Any]:
    return next(node for node in graph.nodes if node["address"] == address)


def edges_of(graph: Graph) -> set[tuple[str, str]]:
    return {(cause, effect) for cause, effect in graph.edges}


@pytest.mark.parametrize("direction", get_args(Direction))
@pytest.mark.parametrize(
    ("address", "roots"),
    [
        ("gen/4/student", {"gen/4/student"}),
        (f"model/{sample.snapshot_of(1)}", {"gen/1/student"}),
        ("gen/1/reward_model", {"gen/1/reward_model"}),
        (f"model/{sample.SOLVER[:8]}", {SOLVER}),
        (EXTERNAL, {EXTERNAL}),
        (f"model/{SECOND[:10]}", {f"model/{SECOND}"}),
        ("gen/4/labels", {f"gen/4/labels@{SECOND}", f"gen/4/labels@{sample.snapshot_of(1)}"}),
        ("gen/3/labels", {"gen/3/labels"}),
    ],
)
def test_a_walk_is_what_the_rows_reach(
    storied: Registry, told: Told, address: str, roots: set[str], direction: Direction
) -> None:
    graph = trace(storied, address, direction)
    above = reached(roots, {(effect, cause) for cause, effect in told.edges}) if direction != "down" else set()
    below = reached(roots, told.edges) if direction != "up" else set()
    assert set(graph.roots) == roots
    assert {node["address"] for node in graph.nodes} == above | below
    assert edges_of(graph) == {(cause, effect) for cause, effect in told.edges if {cause, effect} <= above | below}
    counts = {
        (entry["from"], node["address"]): entry["rows"] for node in graph.nodes for entry in node.get("learned", [])
    }
    assert counts == {edge: rows for edge, rows in told.learned.items() if set(edge) <= above | below}
    for node in graph.nodes:
        if "learned_rows" in node:
            assert node["learned_rows"] == sum(n for (_, model), n in told.learned.items() if model == node["address"])
        if node["kind"] == "labels":
            alone = node["teacher"] if "@" in node["address"] else None
            rows = [row for row in told.labels.values() if row["generation"] == node["generation"]]
            assert node["rows"] == sum(row["teacher"] == (alone or row["teacher"]) for row in rows)


def test_a_label_of_two_teachers_has_only_its_own_above_it(storied: Registry, told: Told) -> None:
    own, other = label_of(told, 4, 0), label_of(told, 4, 1)
    assert (told.labels[own]["teacher"], told.labels[other]["teacher"]) == (SECOND, sample.snapshot_of(1))
    for label, teacher in ((own, f"model/{SECOND}"), (other, "gen/1/student")):
        graph = trace(storied, f"gen/4/labels#{label}")
        above = reached({teacher}, {(effect, cause) for cause, effect in told.edges})
        attempt = f"gen/4/attempts#{next(row['parent_id'] for row in told.parents if row['label_id'] == label)}"
        problem = f"gen/4/problems#{told.labels[label]['problem_id']}"
        mine = {f"gen/4/labels#{label}", attempt, problem}
        assert {node["address"] for node in graph.nodes} == above | mine
        assert {edge for edge in edges_of(graph) if mine & set(edge)} == {
            (problem, attempt), (teacher, attempt), (attempt, f"gen/4/labels#{label}"),
        }  # fmt: skip


def test_a_label_and_its_search_say_what_the_tables_say(storied: Registry, told: Told) -> None:
    label = label_of(told, 2)
    graph = trace(storied, f"gen/2/labels#{label[:12]}")
    node = node_of(graph, f"gen/2/labels#{label}")
    row = told.labels[label]
    for name in ("problem_id", "teacher", "searcher", "reward", "reward_source", "prompt", "completion", "content_id"):
        assert node[name] == row[name]
    parents = [parent for parent in told.parents if parent["label_id"] == label]
    assert Counter((entry["id"], entry["role"]) for entry in node["parents"]) == Counter(
        (parent["parent_id"], parent["role"]) for parent in parents
    )
    assert sorted(parent["role"] for parent in parents) == ["attempt", "vote", "vote"]
    for parent in parents:
        attempt, tried = node_of(graph, f"gen/2/attempts#{parent['parent_id']}"), told.attempts[parent["parent_id"]]
        assert attempt["roles"] == [parent["role"]]
        for name in ("steps", "step_rewards", "seed", "index", "stop_reason", "flops_policy", "tokens", "output"):
            assert attempt[name] == tried[name]
        assert attempt["search_params"] == json.loads(tried["search_params"])
        problem = f"gen/2/problems#{tried['problem_id']}"
        assert {cause for cause, effect in graph.edges if effect == attempt["address"]} == {
            problem, "gen/1/student", "gen/1/reward_model",
        }  # fmt: skip
        (asked,) = query(storied, f"SELECT * FROM problems WHERE problem_id = '{tried['problem_id']}'").rows
        assert node_of(graph, problem)["payload"] == json.loads(asked["payload"])
    text = outline(graph)
    assert "step 2 (0.75): two" in text
    assert text.index("attempt  best_of_n") < text.index("vote  best_of_n")


@pytest.mark.parametrize("generation", range(5))
def test_who_learned_from_a_label(storied: Registry, told: Told, generation: int) -> None:
    for label, row in told.labels.items():
        if row["generation"] == generation:
            address = f"gen/{generation}/labels#{label}"
            graph = trace(storied, address, "down", 0)
            students = told.learners.get(label, set())
            assert {effect for cause, effect in graph.edges if cause == address} == students
            assert node_of(graph, address)["learned_by"] == sorted(students)
            for student in students:
                assert {"from": address, "rows": 1} in node_of(graph, student)["learned"]
            assert {node["address"] for node in graph.nodes} == {address} | reached(students, told.edges)


def test_both_ways_of_a_label(storied: Registry, told: Told) -> None:
    address = f"gen/1/labels#{label_of(told, 1, 3)}"
    graph = trace(storied, address, "both")
    one_by_one = [{node["address"] for node in trace(storied, address, way).nodes} for way in ("up", "down")]
    assert {node["address"] for node in graph.nodes} == one_by_one[0] | one_by_one[1]
    assert (address, "gen/2/student") not in edges_of(graph), "it learned all of them but this one"


@pytest.mark.parametrize("count", [0, 2, 100])
def test_examples_are_rows_of_the_set_that_a_student_learned(storied: Registry, told: Told, count: int) -> None:
    graph = trace(storied, "gen/3/student", "both", count)
    for node in graph.nodes:
        if node["kind"] == "labels":
            assert len(node["examples"]) == min(count, node["rows"])
            for row in node["examples"]:
                held = told.labels[row["label_id"]]
                assert (held["generation"], held["teacher"]) == (node["generation"], node["teacher"])
                assert (held["prompt"], held["completion"]) == (row["prompt"], row["completion"])
                assert row["address"] == f"gen/{held['generation']}/labels#{row['label_id']}"
                assert set(row["learned_by"]) <= told.learners.get(row["label_id"], set())
                if node["generation"] == 3:
                    first = row["label_id"] == label_of(told, 3)
                    assert row["learned_by"] == ([] if first else ["gen/3/student"])
    # Generation 3's student left out its first label: it comes after those that were learned.
    (threes,) = [node["examples"] for node in graph.nodes if node["address"] == "gen/3/labels"]
    assert label_of(told, 3) not in [row["label_id"] for row in threes[:2]]


def test_examples_of_two_teachers_are_each_ones_own(storied: Registry, told: Told) -> None:
    graph = trace(storied, "gen/4/labels", "both", 100)
    sets = [node for node in graph.nodes if node["address"].startswith("gen/4/labels@")]
    assert len(sets) == 2
    for node in sets:
        named = {row["label_id"] for row in node["examples"]}
        assert len(named) == node["rows"] == 4
        assert {told.labels[name]["teacher"] for name in named} == {node["teacher"]}
        learned = [["gen/4/student"]] if node["teacher"] == SECOND else [[]]
        assert [row["learned_by"] for row in node["examples"]] == learned * 4


def test_evaluations_say_what_they_came_to(storied: Registry) -> None:
    node = node_of(trace(storied, "gen/3/student", "down"), "gen/3/evaluations")
    assert node["metrics"]["valid"]["greedy"]["value"] == 0.25 + 3 / 10


def test_addresses_of_labels_are_told_apart(storied: Registry, told: Told) -> None:
    with pytest.raises(InputError, match=r"gen/1 has no label whose id begins so"):
        trace(storied, "gen/1/labels#ffffffffffffffff")
    with pytest.raises(InputError, match=r"gen/9 was never published"):
        trace(storied, "gen/9/labels#00")
    names = [name for name, row in told.labels.items() if row["generation"] == 4]
    shared = next(prefix for prefix in "0123456789abcdef" if sum(name.startswith(prefix) for name in names) > 1)
    with pytest.raises(InputError, match="several labels begin with; say which: gen/4/labels#") as raised:
        trace(storied, f"gen/4/labels#{shared}")
    assert all(name in str(raised.value) for name in names if name.startswith(shared))


def test_hostile_text_stays_text(storied: Registry, told: Told) -> None:
    label = next(name for name, row in told.labels.items() if row["prompt"] == world.HOSTILE)
    graph = trace(storied, f"gen/1/labels#{label}")
    assert node_of(graph, f"gen/1/labels#{label}")["prompt"] == world.HOSTILE
    assert "\x1b" not in outline(graph)
    assert "<img" not in mermaid(graph)
    json.dumps(graph.document())


def test_excluded_models_and_their_labels_are_marked(storied: Registry, tmp_path: Path) -> None:
    copied = copy_of(storied, tmp_path / "registry")
    entry = Exclusion(EXTERNAL.partition("/")[2], "it cheats", 4, 1, 5, (EXTERNAL.partition("/")[2],), (), ())
    (copied.root / "exclusions.json").write_text(json.dumps({"exclusions": [entry.document()]}), encoding="utf-8")
    git.run(copied.root, "add", "exclusions.json")
    git.run(copied.root, "commit", "-q", "-m", "Exclude")
    graph = trace(copied, "gen/3/student")
    marked = {node["address"]: node["excluded"] for node in graph.nodes if "excluded" in node}
    assert marked == {EXTERNAL: "it cheats", "gen/3/labels": "it cheats"}
    assert outline(graph).count("  excluded") == 2


def _files(registry: Registry, generation: int, table: str) -> list[Path]:
    return [cache_path(registry, file["md5"]) for file in published(registry, generation)["tables"][table]["files"]]


@pytest.fixture
def copied(storied: Registry, tmp_path: Path) -> Registry:
    return copy_of(storied, tmp_path / "registry")


def _drop(registry: Registry, generation: int, *tables: str) -> None:
    for table in tables:
        for path in _files(registry, generation, table):
            path.unlink()


def test_what_is_elsewhere_is_said_and_git_believed(copied: Registry, told: Told) -> None:
    label = label_of(told, 4)
    whole = trace(copied, f"gen/4/labels#{label}", "both")
    _drop(copied, 0, "labels")
    _drop(copied, 1, "trained_on")
    _drop(copied, 4, "attempts")
    graph = trace(copied, f"gen/4/labels#{label}", "both")
    attempt = next(node["address"] for node in whole.nodes if node["kind"] == "attempt")
    assert node_of(graph, attempt)["elsewhere"] == "rows elsewhere: `flywheel pull gen/4`"
    # Its teacher is known from the label itself.
    assert (f"model/{SECOND}", f"gen/4/labels#{label}") in edges_of(graph)
    up = trace(copied, "gen/4/student")
    assert node_of(up, "gen/1/student")["elsewhere"] == "rows elsewhere: `flywheel pull gen/1`"
    assert "learned" not in node_of(up, "gen/1/student")
    sets = node_of(up, "gen/0/labels")
    assert (sets["rows"], sets["examples"], sets["teacher"]) == (4, [], sample.SOLVER)
    assert sets["elsewhere"] == "rows elsewhere: `flywheel pull gen/0`"
    # What the window allowed stands in for what was learned.
    assert {cause for cause, effect in up.edges if effect == "gen/1/student"} == {
        "gen/0/student", "gen/0/labels", "gen/1/labels",
    }  # fmt: skip
    assert "pull gen/0" in outline(up)
    down = trace(copied, f"gen/1/labels#{label_of(told, 1)}", "down")
    assert down.nodes[0]["elsewhere"] == "rows elsewhere: `flywheel pull gen/1`"
    assert down.nodes[0]["learned_by"] == ["gen/2/student", "gen/4/student"]


def test_the_asked_row_is_brought_or_refused(copied: Registry, told: Told, tmp_path: Path) -> None:
    address = f"gen/3/labels#{label_of(told, 3)}"
    whole = trace(copied, address)
    store = tmp_path / "store"
    shutil.copytree(copied.root / ".dvc" / "cache", store)
    _drop(copied, 3, "labels", "label_parents", "attempts")
    with pytest.raises(RegistryError, match=r"the rows of gen/3 .* is not in the cache and no remote has it"):
        trace(copied, address)
    dvc.run(copied, "remote", "add", "--local", "-d", "store", str(store))
    assert trace(copied, address) == whole
    assert all(path.is_file() for table in ("labels", "attempts") for path in _files(copied, 3, table))


def test_a_registry_of_version_1_says_the_same(tmp_path: Path) -> None:
    """Its `trained_on` does not say of which generation a label is; real stages made it."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    old = Registry.open(tmp_path / "version-1")
    told = world.told(old)
    for address in ("gen/3/student", "gen/2/student", "gen/0/student"):
        graph = trace(old, address, "both")
        nodes = {node["address"] for node in graph.nodes}
        flipped = {(effect, cause) for cause, effect in told.edges}
        assert nodes == reached({address}, told.edges) | reached({address}, flipped)
        counts = {
            (entry["from"], node["address"]): entry["rows"] for node in graph.nodes for entry in node.get("learned", [])
        }
        assert counts == {edge: rows for edge, rows in told.learned.items() if set(edge) <= nodes}
    label, students = max(told.learners.items(), key=lambda item: len(item[1]))
    address = f"gen/{told.labels[label]['generation']}/labels#{label}"
    assert node_of(trace(old, address, "down"), address)["learned_by"] == sorted(students)
    assert len(students) > 1


def test_a_label_of_a_game_shows_its_position(tmp_path: Path) -> None:
    """A searched position, the solver's word on it, and what the label teaches."""
    game = digest("attempt", 0, 0, 0)
    policy = [0.0] * 8 + [0.75]
    place = {"ply": 3, "board": "X../.O./..X", "mover": 1, "value": -1.0, "policy": policy}
    found = {"move": 8, "simulations": 16, "full": True, "surprise": 0.5}
    tables: dict[str, list[dict[str, Any]]] = {
        "searched": [
            {**place, **found, "attempt_id": game, "ply": ply, "value": 0.25, "full": ply != 2} for ply in (1, 2, 3)
        ],
        "targets": [{**place, "label_id": digest("label", game)}],
        "matches": [],
        "analyses": [],
    }
    registry = sample.new_registry(
        tmp_path / "registry",
        problems={"domain": "hex", "size": 3},
        model={"network": "conv"},
        generate={"searcher": "gumbel"},
        seed_labels={"problems": 0},
        filter={"per_problem": None},
    )
    with lock.hold(registry, "make a generation"):
        params = sample.begin_generation(registry)
        sample.write_outputs(registry, params)
        parents = registry.layout.root / table_folder("label_parents", params.folder)
        solved = {"label_id": digest("label", game), "parent_id": sample.SOLVER, "role": "solver"}
        rows = [*read_rows(parents, TABLES["label_parents"]), solved]
        for name, values in {**tables, "label_parents": rows}.items():
            draft = registry.layout.tmp / "draft"
            with TableWriter(draft, {**TABLES, **BOARDS}[name]) as writer:
                writer.write(values)
            replace_folder(draft, registry.layout.root / table_folder(name, params.folder), registry.layout.tmp)
        publish(registry, params, sample.REVISION)
    label = f"gen/0/labels#{digest('label', game)}"
    graph = trace(registry, label)
    assert node_of(graph, label)["target"] == place
    searched = node_of(graph, f"gen/0/attempts#{game}")["searched"]
    assert (searched["positions"], searched["full"], searched["simulations"]) == (3, 2, 48)
    assert searched["position"] == {**place, **found, "value": 0.25}
    assert (SOLVER, label) in edges_of(graph)
    text = outline(graph)
    assert "target: ply 3, value -1.000 to the mover, 9 shares" in text
    assert "ply 3: 16 simulations found +0.250" in text


READING = """
import json, sys
from pathlib import Path
from storage.lineage import outline
from storage.registry import Registry
from storage.row_lineage import trace

graph = trace(Registry.open(Path(sys.argv[1])), sys.argv[2], "both")
packages = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"text": outline(graph), "packages": packages}))
"""


def test_it_stays_light(storied: Registry, told: Told) -> None:
    top = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", READING, str(storied.root), f"gen/2/labels#{label_of(told, 2)}"]
    result = subprocess.run(command, cwd=top, capture_output=True, text=True, check=True)
    answer = json.loads(result.stdout)
    assert "What it went into:" in answer["text"]
    assert HEAVY & set(answer["packages"]) == set()

"""Process supervision in the registry: the stage in dvc.yaml, the judge that goes in, the reward model that comes out.

generation   0      1        2               3                4
supervise    off    on       on              off              off
reward       exact  exact    process         process          exact
judge        -      -        1's (searches)  2's (searches)   -
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import ConfigError, FlywheelError, InputError, ModelError, RegistryBusy
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params, load, parse
from flywheel.records import digest
from storage import dvc, judge
from storage.addresses import resolve
from storage.history import history, published
from storage.lineage import lineage, mermaid, outline
from storage.prepare import unfinished
from storage.publish import publish
from storage.recipes import recipe_text
from storage.registry import Registry
from storage.rollback import plan, rollback, undo
from storage.tables import file_md5
from storage.views import query
from tests.storage import sample
from tests.storage.conftest import copy_of

RECIPES: list[tuple[bool, str]] = [(False, "exact"), (True, "exact"), (True, "process"), (False, "process"),
                                   (False, "exact")]  # fmt: skip


def _git(root: Path, *arguments: str) -> str:
    result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return result.stdout.strip()


def recipe(registry: Registry, enabled: bool, reward: str, **supervise: Any) -> Params:
    values = load(registry.layout.params).model_dump(mode="json")
    values["supervise"] |= {"enabled": enabled, "start": "previous", **supervise}
    values["reward"]["name"] = reward
    values["filter"]["threshold"] = 1.0 if reward == "exact" else 0.7
    return parse(values)


@pytest.fixture(scope="module")
def supervised(made: dict[int, Registry]) -> Registry:
    """The registry of the table above; for reading only."""
    target = made[0].root.parent / "supervised"
    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        registry = copy_of(made[1], target)
        for enabled, reward in RECIPES[1:]:
            sample.make_generation(registry, recipe(registry, enabled, reward))
    return registry


@pytest.fixture
def copied(supervised: Registry, tmp_path: Path) -> Registry:
    return copy_of(supervised, tmp_path / "registry")


def test_only_what_is_asked_for_is_in_the_recipe(supervised: Registry) -> None:
    shipped = recipe_text().strip()
    texts = [_git(supervised.root, "show", f"gen/{number:04d}:dvc.yaml") for number in range(5)]
    assert texts[0] == texts[4] == shipped
    assert all(word not in shipped for word in ("supervise", "judge", "reward_model"))
    assert [("supervise:" in text, "outs: [supervision, reward_model]" in text) for text in texts[1:4]] == [
        (True, True), (True, True), (False, False),
    ]  # fmt: skip
    searches = [text.split("generate:")[1].split("filter:")[0] for text in texts]
    assert ["judge" in text for text in searches] == [False, False, True, True, False]
    measures = [text.split("evaluate:")[1] for text in texts]
    assert ["reward_model" in text for text in measures] == [False, True, True, False, False]
    assert ["judge" in text for text in measures] == [False, False, False, True, False]
    for number, text in enumerate(texts):
        known = _git(supervised.root, "show", f"gen/{number:04d}:dvc.lock")
        assert ("  supervise:" in known) == ("supervise:" in text), "DVC's book has the stages that there are"


def test_the_judge_is_the_newest_ancestors_reward_model(supervised: Registry) -> None:
    for number, maker in ((2, 1), (3, 2)):
        facts = published(supervised, number)
        assert facts["judge"] == {
            "snapshot": sample.reward_snapshot_of(maker),
            "generation": maker,
            "source": f"gen/{maker:04d}/reward_model",
            "judges": True,
        }
        pointer = _git(supervised.root, "show", f"gen/{number:04d}:judge.dvc")
        assert published(supervised, maker)["outputs"]["reward_model"] in pointer
        assert pointer.endswith("path: judge")
    for number in (0, 1, 4):
        assert "judge" not in published(supervised, number)
        tree = _git(supervised.root, "ls-tree", "-r", "--name-only", f"gen/{number:04d}").split("\n")
        assert not {"judge.dvc", "lineage/judge.json"} & set(tree)
    assert not supervised.layout.judge.exists()
    assert not supervised.layout.reward_model.exists()
    assert json.loads(dvc.run(supervised, "status", "--json")) == {}
    supervised.check_clean()


def test_the_judge_is_in_place_for_the_stages(copied: Registry) -> None:
    rollback(copied, 1, "again")
    params = sample.begin_generation(copied, recipe(copied, True, "process"))
    data = (copied.layout.judge / "model.safetensors").read_bytes()
    assert b"reward-1-0" in data
    assert judge.named(copied.layout) == {**published(copied, 2)["judge"]}
    assert params.generation == 5
    # Called again, as after a kill: nothing changes, a damaged copy is mended.
    (copied.layout.judge / "config.json").unlink()
    sample.begin_generation(copied, recipe(copied, True, "process"))
    assert (copied.layout.judge / "config.json").exists()


def test_what_is_published_of_a_reward_model(supervised: Registry) -> None:
    facts = [published(supervised, number) for number in range(5)]
    assert ["reward_model" in one for one in facts] == [False, True, True, False, False]
    assert facts[2]["reward_model"] == {
        "snapshot": sample.reward_snapshot_of(2),
        "initialised_from": digest("reward base"),
        "parameters": 500,
        "training_flops": 1e6,
        "judges": True,
    }
    assert facts[1]["reward_model"]["judges"] is False
    assert facts[1]["student"]["snapshot"] == sample.snapshot_of(1)
    for number, one in enumerate(facts):
        own = {"rollouts", "step_labels", "step_label_parents"}
        assert own & set(one["tables"]) == (own if number in {1, 2} else set())
        assert {"supervision", "reward_model"} & set(one["outputs"]) == (
            {"supervision", "reward_model"} if number in {1, 2} else set()
        )
        assert one["stages"].get("supervise") == (3e6 if number in {1, 2} else None)
    paths = [file["path"] for file in facts[1]["tables"]["snapshots"]["files"]]
    assert paths == ["training/snapshots/part-00000.parquet", "supervision/snapshots/part-00000.parquet"]
    assert facts[1]["tables"]["snapshots"]["rows"] == 2


def test_tables_can_be_asked_for_in_every_registry(supervised: Registry, made: dict[int, Registry]) -> None:
    def rows(registry: Registry, sql: str, at: int | None = None) -> list[dict[str, Any]]:
        return list(query(registry, sql, at=at).rows)

    for table in ("rollouts", "step_labels", "step_label_parents"):
        assert rows(made[1], f"SELECT count(*) AS n FROM {table}") == [{"n": 0}]
    assert rows(supervised, "SELECT count(*) AS n FROM rollouts") == [{"n": 6}]
    assert rows(supervised, "SELECT count(*) AS n FROM rollouts", at=1) == [{"n": 3}]
    # Each score, recounted from the completions that its label names as parents.
    sql = """
        SELECT generation, scores[1] AS score, avg(reward) AS recounted
        FROM step_labels JOIN step_label_parents USING (step_label_id)
        JOIN (SELECT rollout_id AS parent_id, reward FROM rollouts) USING (parent_id)
        WHERE role = 'rollout' GROUP BY ALL ORDER BY 1
    """
    assert rows(supervised, sql) == [{"generation": g, "score": 0.5, "recounted": 0.5} for g in (1, 2)]
    sql = "SELECT role, count(*) AS n FROM snapshots GROUP BY 1 ORDER BY 1"
    assert rows(supervised, sql) == [{"role": "policy", "n": 5}, {"role": "reward", "n": 2}]
    sql = "SELECT count(*) AS n FROM trained_on JOIN step_labels ON label_id = step_label_id"
    assert rows(supervised, sql) == [{"n": 2}]


def test_lineage_leads_through_the_reward_model(supervised: Registry) -> None:
    graph = lineage(supervised, "gen/3", "both")
    edges = {(cause, effect) for cause, effect in graph.edges}
    through = {edge for edge in edges if any("step_labels" in end or "reward_model" in end for end in edge)}
    base = f"model/{digest('reward base')}"
    assert through == {
        ("gen/1/student", "gen/1/step_labels"),
        ("gen/1/step_labels", "gen/1/reward_model"),
        ("gen/1/reward_model", "gen/2/labels"),
        ("gen/2/student", "gen/2/step_labels"),
        ("gen/2/step_labels", "gen/2/reward_model"),
        ("gen/2/reward_model", "gen/3/labels"),
        ("gen/2/reward_model", "gen/2/evaluations"),
        ("gen/2/reward_model", "gen/3/evaluations"),
        (base, "gen/1/reward_model"),
        (base, "gen/2/reward_model"),
    } - {("gen/2/reward_model", "gen/2/evaluations")}, "the evaluations of 2 are neither cause nor effect of 3"
    nodes = {node["address"]: node for node in graph.nodes}
    assert nodes["gen/2/reward_model"] == {
        "address": "gen/2/reward_model",
        "kind": "reward_model",
        "digest": sample.reward_snapshot_of(2),
        "generation": 2,
        "status": "ancestor",
        "parameters": 500,
    }
    assert nodes["gen/2/step_labels"]["rows"] == 1
    down = {(a, b) for a, b in lineage(supervised, "gen/2/reward_model", "down").edges}
    assert ("gen/2/reward_model", "gen/2/evaluations") in down
    assert "1 labelled attempts" in outline(graph)
    assert "gen/2/reward_model" in mermaid(graph)
    assert "gen/2/reward_model" in lineage(supervised, "gen/2").roots


def test_a_reward_model_has_an_address(supervised: Registry) -> None:
    assert resolve(supervised, "gen/1/reward_model").digest == sample.reward_snapshot_of(1)
    labels = resolve(supervised, "gen/1/step_labels")
    assert (str(labels), labels.digest) == ("gen/1/step_labels", published(supervised, 1)["outputs"]["supervision"])
    found = resolve(supervised, f"model/{sample.reward_snapshot_of(2)[:10]}")
    assert (found.generation, found.digest) == (2, sample.reward_snapshot_of(2))
    assert lineage(supervised, found).roots == ("gen/2/reward_model",)
    for part in ("reward_model", "step_labels"):
        with pytest.raises(InputError, match=r"gen/3 was made without process supervision \(supervise\.enabled\)"):
            resolve(supervised, f"gen/3/{part}")


def test_a_reward_model_that_begins_as_the_student(copied: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "REWARD_BASE", sample.snapshot_of(5))
    sample.make_generation(copied, recipe(copied, True, "exact", start="base"))
    causes = {cause for cause, effect in lineage(copied, "gen/5/reward_model").edges if effect == "gen/5/reward_model"}
    assert causes == {"gen/5/student", "gen/5/step_labels"}


def _files(registry: Registry) -> dict[str, str]:
    """Every file of the folders that supervision brings, by its bytes."""
    paths = [p for name in ("judge", "supervision", "reward_model") for p in (registry.root / name).rglob("*")]
    return {p.relative_to(registry.root).as_posix(): file_md5(p) for p in paths if p.is_file()}


def test_rolled_back_and_undone(copied: Registry) -> None:
    assert plan(copied, 1)["models_abandoned"] == [
        sample.snapshot_of(2), sample.reward_snapshot_of(2), sample.snapshot_of(3), sample.snapshot_of(4),
    ]  # fmt: skip
    assert _files(copied) == {}
    rollback(copied, 2, "try")
    files = _files(copied)
    assert {name.split("/")[0] for name in files} == {"judge", "supervision", "reward_model"}
    assert b"reward-2-0" in (copied.layout.reward_model / "model.safetensors").read_bytes()
    assert b"reward-1-0" in (copied.layout.judge / "model.safetensors").read_bytes()
    assert json.loads(dvc.run(copied, "status", "--json")) == {}
    rollback(copied, 0, "all of it")
    assert _files(copied) == {}
    assert not (copied.root / "judge.dvc").exists()
    assert (copied.root / "dvc.yaml").read_text(encoding="utf-8") == recipe_text()
    assert json.loads(dvc.run(copied, "status", "--json")) == {}
    undo(copied)
    assert _files(copied) == files
    copied.check_clean()
    # From here generation 5 is judged by generation 2's.
    sample.make_generation(copied, recipe(copied, True, "process"))
    assert published(copied, 5)["judge"]["generation"] == 2


def test_a_judge_of_a_generation_in_progress_goes_with_it(copied: Registry) -> None:
    rollback(copied, 1, "back")
    params = sample.begin_generation(copied, recipe(copied, True, "process"))
    assert (copied.root / "judge.dvc").exists()
    # Folders that a stage has made and DVC has never seen.
    sample.write_outputs(copied, params)
    rollback(copied, 0, "further back")
    assert not (copied.root / "judge.dvc").exists()
    assert _files(copied) == {}
    copied.check_clean()


def test_a_judge_is_fetched_or_nothing_begins(copied: Registry) -> None:
    rollback(copied, 2, "back")
    made = published(copied, 2)["outputs"]["reward_model"]
    (copied.root / ".dvc" / "cache" / "files" / "md5" / made[:2] / made[2:]).unlink()
    with pytest.raises(FlywheelError, match=r"the reward model of gen/0002, .* is not in the cache and no remote"):
        sample.begin_generation(copied, recipe(copied, False, "process"))


def test_a_process_reward_needs_a_judge(fresh: Callable[..., Registry]) -> None:
    empty, registry = fresh(0, "empty"), fresh(1, "one")
    for here, message in (
        (empty, r"generation 0 would have nothing to evaluate with; set supervise\.enabled=true"),
        (registry, r"no generation up to gen/0000 trained one; .* supervise\.enabled=true"),
    ):
        with pytest.raises(ConfigError, match=message):
            sample.begin_generation(here, recipe(here, False, "process"))
        assert unfinished(here) is None
        here.check_clean()
    # Asking for one now comes too late for this generation's search; generation 0 has none.
    with pytest.raises(ConfigError, match="no generation up to gen/0000 trained one"):
        sample.begin_generation(registry, recipe(registry, True, "process"))
    sample.make_generation(empty, recipe(empty, True, "process"))
    facts = published(empty, 0)
    assert (facts["reward_model"]["judges"], "judge" in facts) == (True, False)


def test_where_the_next_reward_model_starts(copied: Registry) -> None:
    rollback(copied, 1, "back")
    sample.begin_generation(copied, recipe(copied, True, "exact"))
    assert judge.named(copied.layout) == {
        "snapshot": sample.reward_snapshot_of(1), "generation": 1, "source": "gen/0001/reward_model", "judges": False,
    }  # fmt: skip
    text = (copied.root / "dvc.yaml").read_text(encoding="utf-8")
    assert "deps: [problems, student, judge]" in text
    assert "judge" not in text.split("filter:")[0]
    sample.make_generation(copied, recipe(copied, True, "exact"))
    edges = [tuple(edge) for edge in lineage(copied, "gen/5", "both").edges]
    assert not [effect for cause, effect in edges if cause == "gen/1/reward_model"], "it did not judge the search"
    sample.begin_generation(copied, recipe(copied, True, "exact", start="base"))
    assert judge.named(copied.layout) is None
    assert not copied.layout.judge.exists()


def test_edits_by_hand_are_told_from_ours(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    path = registry.root / "dvc.yaml"
    before = path.read_text(encoding="utf-8")
    on = recipe(registry, True, "exact")
    sample.begin_generation(registry, on)
    registry.check_clean()
    ours = path.read_text(encoding="utf-8")
    assert ours != before
    path.write_text(ours + "# mine\n", encoding="utf-8")
    with pytest.raises(RegistryBusy, match=r"changed by hand .* dvc\.yaml"):
        sample.begin_generation(registry, on)
    path.write_text(ours, encoding="utf-8")
    # Switched off again before it was published: as if it had never been on.
    sample.begin_generation(registry, recipe(registry, False, "exact"))
    assert path.read_text(encoding="utf-8") == before
    registry.check_clean()


def test_a_recipe_of_the_users_own_is_kept(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    path = registry.root / "dvc.yaml"
    mine = path.read_text(encoding="utf-8") + "# mine\n"
    path.write_text(mine, encoding="utf-8")
    _git(registry.root, "commit", "-qm", "Mine", "--", "dvc.yaml")
    sample.make_generation(registry)
    assert path.read_text(encoding="utf-8") == mine
    sample.make_generation(registry, recipe(registry, True, "exact"))
    assert "supervise:" in path.read_text(encoding="utf-8")


def test_a_registry_from_before_learns_to_ignore_the_folders(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    path = registry.root / ".gitignore"
    old = "".join(
        line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
        if line.strip() not in {"/judge/", "/supervision/", "/reward_model/"}
    )  # fmt: skip
    path.write_text(old, encoding="utf-8")
    _git(registry.root, "commit", "-qm", "As it was", "--", ".gitignore")
    sample.make_generation(registry)
    assert path.read_text(encoding="utf-8") == old, "without supervision nothing changes"
    sample.make_generation(registry, recipe(registry, True, "exact"))
    sample.make_generation(registry, recipe(registry, True, "process"))
    assert _git(registry.root, "status", "--porcelain", "--untracked-files=all") == ""
    assert {"/judge/", "/supervision/", "/reward_model/"} <= set(path.read_text(encoding="utf-8").splitlines())


def test_a_generation_lacks_its_reward_model(fresh: Callable[[int], Registry]) -> None:
    registry = fresh(1)
    params = sample.begin_generation(registry, recipe(registry, True, "exact"))
    sample.write_outputs(registry, params.model_copy(update={"supervise": parse({}).supervise}))
    with pytest.raises(FlywheelError, match=r"supervision/ is missing or empty; run its stage"):
        publish(registry, params, sample.REVISION)


def test_the_judge_in_place_is_checked_by_its_weights(copied: Registry, tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    layout = copied.layout
    assert judge.verify(layout) is None
    layout.judge.mkdir()
    save_file({"w": np.arange(3.0)}, layout.judge / "model.safetensors")
    right = weights_digest(layout.judge)
    document = {"snapshot": right, "generation": 1, "source": "gen/0001/reward_model", "judges": True}
    (layout.lineage / "judge.json").write_text(json.dumps(document), encoding="utf-8")
    assert judge.verify(layout) == right
    save_file({"w": np.arange(3.0) + 1}, layout.judge / "model.safetensors")
    with pytest.raises(ModelError, match=f"expected {right} as lineage/judge.json says"):
        judge.verify(layout)


def test_history_counts_what_supervision_took(supervised: Registry) -> None:
    rows = history(supervised)
    assert [row["stages"].get("supervise", 0.0) for row in rows] == [0.0, 3e6, 3e6, 0.0, 0.0]
    assert [row["flops"]["policy"] for row in rows] == [1e6, 4e6, 4e6, 1e6, 1e6]

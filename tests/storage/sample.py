"""Tiny valid generations, made without a model: what the stages would write, a few rows of each table.

    registry = new_registry(tmp_path / "registry")
    make_generation(registry)                     # begin, write every output, publish: gen/0000
    make_generation(registry, promoted=False)     # gen/0001, the champion stays gen/0000

Everything is a function of the params and the generation, so that two registries given the same calls hold the same
bytes. `greedy(generation)` says which valid problems a generation solves.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from flywheel.params import Params, load, parse
from flywheel.records import canonical_json, digest
from storage import lock
from storage.prepare import begin
from storage.publish import publish
from storage.recipes import load_preset, recipe_text
from storage.registry import Registry, json_text
from storage.schemas import LEDGER, SUPERVISION, TABLES, table_folder
from storage.tables import TableWriter, replace_folder

PROBLEMS = 12
LABELS = 4
"""Labels of generation g: LABELS + g."""
SOLVER = digest("solver")
BASE = "base"
"""Name of the model that generation 0 starts from; `model_digest(BASE)` is its snapshot."""
REWARD_BASE = digest("reward base")
REVISION = "0" * 40


def new_registry(root: Path, **changes: Any) -> Registry:
    """A fresh registry; `changes` are top-level params such as seed=1 or filter={"window": 2}."""
    values = load_preset()
    for key, value in changes.items():
        values[key] = {**values[key], **value} if isinstance(value, dict) else value
    return Registry.init(root, parse(values), recipe_text(), "countdown")


def make_base(folder: Path) -> str:
    """A stand-in for the base model: two small files."""
    return write_model(folder, BASE)


def external_teacher(source: str) -> tuple[str, bool]:
    return digest("external", source), False


def begin_generation(registry: Registry, params: Params | None = None) -> Params:
    return begin(registry, params or load(registry.layout.params), make_base, external_teacher, SOLVER)


def make_generation(registry: Registry, params: Params | None = None, promoted: bool = True) -> Params:
    """Begin, write every output and publish; the params of the new generation."""
    with lock.hold(registry, "make a sample generation"):
        params = begin_generation(registry, params)
        write_outputs(registry, params, promoted)
        publish(registry, params, REVISION)
    return params


def snapshot_of(generation: int, seed: int = 0) -> str:
    return model_digest(f"student-{generation}-{seed}")


def reward_snapshot_of(generation: int, seed: int = 0) -> str:
    return model_digest(f"reward-{generation}-{seed}")


def greedy(generation: int) -> dict[str, float]:
    """Which valid problems the student of `generation` solves at once."""
    return {_problem_id(i): float(i % 3 <= generation % 3) for i in range(0, PROBLEMS, 3)}


def write_model(folder: Path, name: str) -> str:
    """A model folder with one tensor, whose bytes say the name over and over; its snapshot digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"name": name}), encoding="utf-8")
    weights = _weights(name)
    entry = {"dtype": "U8", "shape": [len(weights)], "data_offsets": [0, len(weights)]}
    header = json.dumps({"weights": entry}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + weights)
    return model_digest(name)


def model_digest(name: str) -> str:
    """What `flywheel.models.checkpoints.weights_digest` says of what `write_model` writes."""
    weights = _weights(name)
    told = json.dumps(["weights", "U8", [len(weights)], len(weights)]).encode()
    return hashlib.blake2b(told + weights, digest_size=16).hexdigest()


def _weights(name: str) -> bytes:
    return name.encode() * 400


def write_outputs(registry: Registry, params: Params, promoted: bool = True) -> None:
    """Everything that the stages of a generation leave: tables, student, metrics.json, ledger rows."""
    layout, generation = registry.layout, params.generation
    draft = layout.tmp / f"sample-{generation}"
    teacher = json.loads((layout.lineage / "teacher.json").read_text(encoding="utf-8"))["snapshot"]
    champion = json.loads((layout.lineage / "champion.json").read_text(encoding="utf-8"))
    rows = _rows(params)
    for row in (*rows["attempts"], *rows["labels"]):
        row["teacher"] = teacher
    rows["snapshots"][0]["initialised_from"] = champion["snapshot"] or model_digest(BASE)
    for name, schema in TABLES.items():
        with TableWriter(draft / table_folder(name, params.folder), schema) as writer:
            writer.write(rows[name])
    write_model(draft / "student", f"student-{generation}-{params.seed}")
    supervised = _write_supervision(params, draft) if params.supervise.enabled else []
    for name in ("problems", "attempts", f"labels/{params.folder}", "training", "evaluations", "student", *supervised):
        replace_folder(draft / name, layout.root / name, layout.tmp)
    chosen = promoted or champion["generation"] is None
    metrics = {
        "generation": generation,
        "snapshot": snapshot_of(generation, params.seed),
        "valid": {"greedy": {"value": 0.25 + generation / 10, "low": 0.1, "high": 0.9, "count": 4}},
        "test": {"greedy": {"value": 0.2 + generation / 10, "low": 0.1, "high": 0.9, "count": 4}},
        "champion": {
            "generation": generation if chosen else champion["generation"],
            "snapshot": snapshot_of(generation, params.seed) if chosen else champion["snapshot"],
            "promoted": chosen,
            "difference": None if chosen else {"value": -0.125, "low": -0.3, "high": 0.0},
        },
    }
    layout.metrics.write_text(json_text(metrics), encoding="utf-8")
    stages = ("generate", "train", *(["supervise"] if supervised else []))
    ledger = [_ledger_row(generation, stage, 1e6 * (i + 1)) for i, stage in enumerate(stages)]
    layout.ledger(generation).parent.mkdir(exist_ok=True)
    layout.ledger(generation).write_text("".join(canonical_json(row) + "\n" for row in ledger), encoding="utf-8")


def _write_supervision(params: Params, draft: Path) -> list[str]:
    """What the stage `supervise` leaves; the folders."""
    generation, seed = params.generation, params.seed
    snapshot = reward_snapshot_of(generation, seed)
    rollouts = [
        {
            "rollout_id": digest("rollout", generation, seed, i),
            "problem_id": _problem_id(1),
            "generation": generation,
            "policy": snapshot_of(generation, seed),
            "seed": seed,
            "attempt": 0,
            "step": min(i, 1),
            "index": max(0, i - 1),
            "parent_id": digest("rollout", generation, seed, 0) if i else None,
            "prefix": digest("prefix", i > 0),
            "output": f"one\ntwo {i}",
            "stop_reason": "eos",
            "status": "judged",
            "answer": f"{i}",
            "reward": float(i % 2),
            "flops_policy": 10.0,
            "tokens": 2,
        }
        for i in range(3)
    ]
    name = digest("step label", generation, seed)
    label = {
        "step_label_id": name,
        "problem_id": _problem_id(1),
        "generation": generation,
        "policy": snapshot_of(generation, seed),
        "prompt": "problem 1",
        "steps": ["one", "two 0"],
        "scores": [0.5, 0.0],
        "right": [1, 0],
        "judged": [2, 1],
        "rollouts": 2,
        "estimate": "soft",
        "tokenizer": "words",
    }
    model = {
        "snapshot": snapshot,
        "role": "reward",
        "generation": generation,
        "initialised_from": REWARD_BASE,
        "params_digest": params.digest(),
        "parameters": 500,
        "training_flops": 1e6,
        "verified": True,
    }
    rows: dict[str, list[dict[str, Any]]] = {
        "rollouts": rollouts,
        "step_labels": [label],
        "step_label_parents": [
            {"step_label_id": name, "parent_id": row["rollout_id"], "role": "rollout" if row["step"] else "attempt"}
            for row in rollouts
        ],
        "snapshots": [model],
        "trained_on": [
            {"snapshot": snapshot, "label_id": name, "generation": generation, "weight": 1.0, "epochs": 6.0}
        ],
    }
    for table, values in rows.items():
        with TableWriter(draft / "supervision" / table, {**TABLES, **SUPERVISION}[table]) as writer:
            writer.write(values)
    write_model(draft / "reward_model", f"reward-{generation}-{seed}")
    return ["supervision", "reward_model"]


def _ledger_row(generation: int, stage: str, flops: float) -> dict[str, Any]:
    row: dict[str, Any] = {name: "" if LEDGER.field(name).type == "string" else 0 for name in LEDGER.names}
    training = stage == "train"
    changes = {"generation": generation, "stage": stage, "shard": "0", "machine": "m", "numerics": "n", "seconds": 0.5}
    return {**row, **changes, "flops_policy": 0.0 if training else flops, "flops_training": flops if training else 0.0}


def _problem_id(index: int) -> str:
    return digest("problem", index)


def _rows(params: Params) -> dict[str, list[dict[str, Any]]]:
    generation, seed = params.generation, params.seed
    snapshot, count = snapshot_of(generation, seed), LABELS + generation
    problems = [
        {
            "problem_id": _problem_id(i),
            "domain": "countdown",
            "domain_version": 1,
            "split": ("valid", "train", "test")[i % 3],
            "difficulty": 1.0,
            "group": f"1 2 {i}",
            "payload": canonical_json({"numbers": [1, 2, i], "target": i + 3}),
            "reference": f"1 + 2 = 3\n3 + {i} = {i + 3}",
        }
        for i in range(PROBLEMS)
    ]
    attempts = [
        {
            "attempt_id": digest("attempt", generation, seed, i),
            "problem_id": _problem_id(1 + 3 * (i % 4)),
            "generation": generation,
            "teacher": "named by lineage",
            "searcher": "best_of_n",
            "search_params": canonical_json({"samples": 2}),
            "seed": seed,
            "index": i,
            "prompt": f"problem {i % 4}",
            "prompt_ids": [1, 2],
            "output": f"answer {i}",
            "token_ids": [3, i],
            "tokenizer": "words",
            "steps": [f"answer {i}"],
            "stop_reason": "eos",
            "status": "ok",
            "answer": f"{i}",
            "reward": float(i < count),
            "reward_source": "exact",
            "step_rewards": [],
            "flops_policy": 100.0,
            "flops_reward": 0.0,
            "tokens": 2,
        }
        for i in range(count + 2)
    ]
    labels = [
        {
            "label_id": digest("label", attempt["attempt_id"]),
            "content_id": digest("content", generation, i),
            "kind": "policy" if generation else "seed",
            "reward": 1.0,
            "weight": 1.0,
            "completion": attempt["output"],
            "completion_ids": attempt["token_ids"],
            **{name: attempt[name] for name in ("problem_id", "generation", "teacher", "searcher")},
            **{name: attempt[name] for name in ("reward_source", "prompt", "prompt_ids", "tokenizer")},
        }
        for i, attempt in enumerate(attempts[:count])
    ]
    learned = {"snapshot": snapshot, "generation": generation}
    outcome = {"snapshot": snapshot, "generation": generation, "metric": "greedy", "budget": 1, "flops": 50.0}
    evaluation = {"snapshot": snapshot, "generation": generation, "searcher": "greedy", "budget": 1, "metric": "greedy"}
    excluded = {"source": "path", "row": 3, "reason": "skipped", "detail": "not JSON"}
    return {
        "problems": problems,
        "excluded": [{"excluded_id": digest("excluded", "path", 3), **excluded}],
        "attempts": attempts,
        "labels": labels,
        "label_parents": [
            {"label_id": label["label_id"], "parent_id": attempt["attempt_id"], "role": "attempt"}
            for label, attempt in zip(labels, attempts, strict=False)
        ],
        "rejected": [{"attempt_id": row["attempt_id"], "reason": "reward"} for row in attempts[count:]],
        "snapshots": [
            {
                "snapshot": snapshot,
                "role": "policy",
                "generation": generation,
                "initialised_from": "named by lineage",
                "params_digest": params.digest(),
                "parameters": 1000,
                "training_flops": 2e6,
                "verified": True,
            }
        ],
        "trained_on": [{**learned, "label_id": label["label_id"], "weight": 1.0, "epochs": 2.0} for label in labels],
        "evaluations": [
            {**evaluation, "split": split, "value": 0.5, "low": 0.2, "high": 0.8, "count": 4, "flops_per_problem": 50.0}
            for split in ("valid", "test")
        ],
        "outcomes": [
            {**outcome, "split": "valid", "problem_id": problem, "group": problem[:4], "value": value}
            for problem, value in greedy(generation).items()
        ],
    }

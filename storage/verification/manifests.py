"""One generation's tracked files against each other: what its lineage, dvc.lock, params, metrics and ledger say.

    params.yaml ── digest ──────────┐                        ┌── md5 of git's own files (window.json, teacher.json, ...)
    metrics.json ── champion ───────┼── lineage/0007.json    │
    ledger/0007.jsonl ── FLOPs ─────┤       │                │
    dvc.lock ── md5 of each output ─┘    tables ...     dvc.lock ── deps: outputs of other stages, parent.dvc, judge.dvc

No object is opened here.
"""

from __future__ import annotations

import json
import math
from typing import Any

from flywheel.params import folder_name
from flywheel.records import digest
from storage.layout import OUTPUTS, SUPERVISED
from storage.schemas import LEDGER, SCHEMA_VERSION, tables_of
from storage.verification.findings import Findings
from storage.verification.generations import FIX, Files, Generation, md5, shaped

_LATER = {"analyses"}
"""Tables that the first registries of version 1 do not have yet."""
_FLOPS = ("policy", "prefill", "reward", "training", "padding")


def check(files: Files, generation: Generation, lock: dict[str, Any], findings: Findings) -> None:
    """`lock`: the generation's dvc.lock."""
    name, folder = generation.name, folder_name(generation.number)
    own = f"lineage/{folder}.json of {name}"

    def expect(where: str, what: str, got: Any, expected: Any) -> None:
        if got != expected:
            findings.fail("manifest", where, f"{what}: got {_short(got)}, expected {_short(expected)}", FIX)

    with shaped(findings, own):
        _check_identity(files, generation, expect)
    with shaped(findings, f"dvc.lock of {name}"):
        _check_outputs(generation, expect)
        _check_lock(files, generation, lock, expect)
    with shaped(findings, f"metrics.json of {name}"):
        _check_metrics(files, generation, expect)
    with shaped(findings, own):
        _check_tables(generation, expect)
    with shaped(findings, f"ledger/{folder}.jsonl of {name}"):
        _check_ledger(files, generation, expect)
    findings.count("manifests", len(files.blobs))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 160 else f"{text[:157]}..."


def _check_identity(files: Files, generation: Generation, expect: Any) -> None:
    name, number, lineage, params = generation.name, generation.number, generation.lineage, generation.params
    own = f"lineage/{folder_name(number)}.json of {name}"
    recipe = f"params.yaml of {name}"
    expect(own, "generation", lineage["generation"], number)
    expect(own, "whether its version is known", lineage["version"] in range(1, SCHEMA_VERSION + 1), True)
    expect(recipe, "generation", params["generation"], number)
    expect(recipe, "folder", params["folder"], folder_name(number))
    expect(recipe, "parent", params["parent"], lineage["parent"])
    told = {key: value for key, value in params.items() if key not in {"execution", "campaign"}}
    expect(recipe, "digest of the recipe, against lineage", digest(told), lineage["params_digest"])
    documents = generation.documents
    expect(own, "teacher, against lineage/teacher.json", lineage["teacher"], documents["teacher"])
    expect(own, "judge, against lineage/judge.json", lineage.get("judge"), documents.get("judge"))
    expect(f"judge.dvc of {name}", "whether it is there", generation.judge is not None, "judge" in documents)
    if not (trailers := files.trailers):
        return  # its commit cannot be read, or is no generation's, which was said
    parent = "none" if lineage["parent"] is None else str(lineage["parent"])
    expect(name, "trailer Flywheel-Parent of its commit", trailers.get("Flywheel-Parent"), parent)
    if number > 0 and lineage["version"] >= 2:
        expect(name, "whether its commit anchors the tag before it", "Flywheel-Previous-Tag" in trailers, True)


def _check_outputs(generation: Generation, expect: Any) -> None:
    """Lineage's digests are dvc.lock's, and there is one of each output that such a generation has."""
    name, outputs = generation.name, generation.outputs
    listed = {path: output.md5 for path, output in outputs.items()}
    expect(f"dvc.lock of {name}", "digests of its outputs, against lineage", listed, generation.lineage["outputs"])
    wanted = {*OUTPUTS, "metrics.json", *(SUPERVISED if generation.is_supervised else ())} - {"labels"}
    wanted.add(f"labels/{folder_name(generation.number)}")
    expect(f"dvc.lock of {name}", "its outputs", sorted(outputs), sorted(wanted))


def _check_lock(files: Files, generation: Generation, lock: dict[str, Any], expect: Any) -> None:
    """What each stage is said to have read is what other stages, pointers and git hold; and by the same params."""
    where = f"dvc.lock of {generation.name}"
    held = {path: output.md5 for path, output in generation.outputs.items()}
    held["parent"] = generation.parent.md5
    if generation.judge is not None:
        held["judge"] = generation.judge.md5
    held |= {path: md5(content) for path, content in files.blobs.items()}
    for stage, entry in lock["stages"].items():
        for read in (*entry.get("deps", []), *entry.get("outs", [])):
            if read["path"] in held:
                expect(where, f"digest of {read['path']} in stage {stage}", read["md5"], held[read["path"]])
        for key, value in entry.get("params", {}).get("params.yaml", {}).items():
            expect(where, f"{key} in stage {stage}", _plain(value), _plain(_at(generation.params, key)))


def _at(params: dict[str, Any], key: str) -> Any:
    value: Any = params
    for part in key.split("."):
        value = value[part]
    return value


def _plain(value: Any) -> Any:
    """A value of YAML: DVC writes 1e-05, which YAML 1.1, as it is read here, takes for text."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _check_metrics(files: Files, generation: Generation, expect: Any) -> None:
    metrics, lineage = json.loads(files.blobs["metrics.json"]), generation.lineage
    where = f"metrics.json of {generation.name}"
    expect(where, "generation", metrics["generation"], generation.number)
    expect(where, "snapshot, against the student's", metrics["snapshot"], lineage["student"]["snapshot"])
    told = {key: metrics["champion"][key] for key in ("generation", "snapshot", "promoted")}
    expect(where, "champion, against lineage", told, lineage["champion"])


def _check_tables(generation: Generation, expect: Any) -> None:
    lineage, name = generation.lineage, generation.name
    own = f"lineage/{folder_name(generation.number)}.json of {name}"
    known = tables_of(generation.is_supervised, generation.is_board)
    wanted = set(known) - (_LATER - lineage["tables"].keys() if lineage["version"] == 1 else set())
    expect(own, "its tables", sorted(lineage["tables"]), sorted(wanted))
    for table, entry in lineage["tables"].items():
        rows = sum(file["rows"] for file in entry["files"])
        expect(own, f"rows of table {table}, against its files'", entry["rows"], rows)
        key = ((known[table].metadata or {})[b"key"].decode()) if table in known else entry["key"]
        expect(own, f"key of table {table}", entry["key"], key)
    counts = {"kept": lineage["tables"]["labels"]["rows"], "rejected": lineage["tables"]["rejected"]["rows"]}
    expect(own, "labels, against its tables", lineage["labels"], counts)


def _check_ledger(files: Files, generation: Generation, expect: Any) -> None:
    """Its lines are whole rows of this generation, and lineage's sums are theirs."""
    path = f"ledger/{folder_name(generation.number)}.jsonl"
    where, lineage = f"{path} of {generation.name}", generation.lineage
    rows = [json.loads(line) for line in files.blobs[path].splitlines() if line]
    for row in rows:
        expect(where, "columns of a line", sorted({*row, "models"}), sorted(LEDGER.names))
        expect(where, "generation of a line", row["generation"], generation.number)
        if row.get("models"):
            own = json.loads(row["models"]).values()
            told = {kind: math.isclose(sum(c[kind] for c in own), row[f"flops_{kind}"]) for kind in _FLOPS}
            what = f"whether its models add up to the line of {row['stage']}"
            expect(where, what, told, dict.fromkeys(_FLOPS, True))
    by_kind = {kind: math.fsum(row[f"flops_{kind}"] for row in rows) for kind in _FLOPS}
    by_stage = {
        stage: math.fsum(row[f"flops_{kind}"] for row in rows if row["stage"] == stage for kind in _FLOPS)
        for stage in {row["stage"] for row in rows}
    }
    expect(where, "FLOPs by kind, against lineage", by_kind, lineage["flops"])
    expect(where, "FLOPs by stage, against lineage", by_stage, lineage["stages"])

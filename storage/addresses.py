"""Addresses: what a user calls a generation, its labels, one label, its student, or any model.

    gen/7   gen/0007   gen/7/labels   gen/7/labels#<label_id>   gen/7/student   gen/7/evaluations   model/<digest>
    gen/7/step_labels   gen/7/reward_model   (with process supervision)

A unique prefix of a digest will do. `parse` looks at the text only, `resolve` at a registry.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from flywheel.errors import InputError
from flywheel.params import folder_name

if TYPE_CHECKING:
    from storage.registry import Registry

Part = Literal["labels", "student", "step_labels", "reward_model", "evaluations"]
Kind = Literal["generation", "label", "model"] | Part

_PARTS: tuple[Part, ...] = ("labels", "student", "step_labels", "reward_model", "evaluations")
_GENERATION = re.compile(rf"gen/([0-9]{{1,9}})(?:/({'|'.join(_PARTS)}))?(?:#([0-9a-fA-F]{{1,64}}))?")
_MODEL = re.compile(r"model/([A-Za-z0-9_.:-]{1,200})")
_FORMS = (
    "gen/7, gen/7/labels, gen/7/labels#<label id>, gen/7/student, gen/7/step_labels, gen/7/reward_model, "
    "gen/7/evaluations or model/<digest>"
)
_MADE: tuple[Part, ...] = ("student", "reward_model")
"""What a generation makes that is a model."""
_SHOWN = 10
"""Candidates a message lists."""


@dataclass(frozen=True, slots=True)
class Address:
    """What is meant. `digest`: a label's id, a model's snapshot, a folder's MD5; a prefix of it before `resolve`."""

    kind: Kind
    generation: int | None = None
    digest: str | None = None

    def __str__(self) -> str:
        if self.kind == "model":
            return f"model/{self.digest}"
        part = {"generation": "", "label": f"/labels#{self.digest}"}.get(self.kind, f"/{self.kind}")
        return f"gen/{self.generation}{part}"


def parse(text: str) -> Address:
    """Read an address. Raises InputError for a text that is none."""
    text = text.strip()
    if match := _MODEL.fullmatch(text):
        return Address("model", None, match[1])
    match = _GENERATION.fullmatch(text)
    if match is None or (match[3] and match[2] != "labels"):
        raise InputError(f"got address {text!r}, expected {_FORMS}")
    generation, part, label = int(match[1]), match[2], match[3]
    if label:
        return Address("label", generation, label.lower())
    kinds: dict[str | None, Kind] = {name: name for name in _PARTS}
    return Address(kinds.get(part, "generation"), generation)


def resolve(registry: Registry, address: Address | str) -> Address:
    """The same address with its full digest, and for a model the generation that made it (None: it came from outside).

    A generation's digest is its commit. Raises InputError where nothing or more than one thing is meant, with what
    there is.
    """
    from storage.history import history, published_many

    address = parse(address) if isinstance(address, str) else address
    rows = history(registry)
    if address.kind == "model":
        return _model(address, models(published_many(registry, [row["generation"] for row in rows])))
    row = next((row for row in rows if row["generation"] == address.generation), None)
    if row is None:
        there = ", ".join(f"gen/{row['generation']}" for row in rows) or "none yet"
        raise InputError(f"got {address}, but gen/{address.generation} was never published; there are: {there}")
    if address.kind == "label":
        return _label(registry, address)
    if address.kind == "generation":
        return replace(address, digest=row["commit"])
    if address.kind == "student":
        return replace(address, digest=row["student"])
    assert address.generation is not None
    lineage = published_many(registry, [address.generation])[address.generation]
    if address.kind in {"step_labels", "reward_model"} and "reward_model" not in lineage:
        raise InputError(
            f"got {address}, but gen/{address.generation} was made without process supervision (supervise.enabled)"
        )
    if address.kind == "reward_model":
        return replace(address, digest=lineage["reward_model"]["snapshot"])
    names = {"labels": f"labels/{folder_name(address.generation)}", "step_labels": "supervision"}
    return replace(address, digest=lineage["outputs"][names.get(address.kind, "evaluations")])


def models(published: dict[int, dict[str, Any]]) -> dict[str, int | None]:
    """Every model that generations made or used: snapshot -> the first generation that made it, None if none did."""
    makers: dict[str, int | None] = {snapshot: generation for snapshot, (generation, _) in made(published).items()}
    known: dict[str, int | None] = {}
    for lineage in published.values():
        bases = [lineage[part]["initialised_from"] for part in _MADE if part in lineage]
        for snapshot in (*bases, lineage["teacher"]["snapshot"]):
            if snapshot is not None:
                known[snapshot] = makers.get(snapshot)
    return {**known, **makers}


def made(published: dict[int, dict[str, Any]]) -> dict[str, tuple[int, Part]]:
    """Every model that generations made: snapshot -> the first generation that did, and as what."""
    return {
        lineage[part]["snapshot"]: (generation, part)
        for generation, lineage in sorted(published.items(), reverse=True)
        for part in _MADE
        if part in lineage
    }


def _model(address: Address, known: dict[str, int | None]) -> Address:
    assert address.digest is not None
    found = sorted(snapshot for snapshot in known if snapshot.startswith(address.digest))
    if not found:
        raise InputError(f"got {address}, a model no generation made or used; there are: {_listed(known, 'model/')}")
    if len(found) > 1 and address.digest not in found:
        raise InputError(f"got {address}, which {len(found)} models begin with; say which: {_listed(found, 'model/')}")
    snapshot = address.digest if address.digest in found else found[0]
    return Address("model", known[snapshot], snapshot)


def _label(registry: Registry, address: Address) -> Address:
    from storage.views import query

    sql = (
        f"SELECT label_id FROM labels WHERE generation = {address.generation} "
        f"AND starts_with(label_id, '{address.digest}') ORDER BY label_id LIMIT {_SHOWN + 1}"
    )
    found = [str(row["label_id"]) for row in query(registry, sql, at=address.generation).rows]
    if not found:
        raise InputError(
            f"got {address}, but gen/{address.generation} has no label whose id begins so; list them with "
            f'`flywheel query "SELECT label_id FROM labels WHERE generation = {address.generation}"`'
        )
    if len(found) > 1 and address.digest not in found:
        there = _listed(found, f"gen/{address.generation}/labels#")
        raise InputError(f"got {address}, which several labels begin with; say which: {there}")
    return replace(address, digest=found[0])


def _listed(digests: Any, prefix: str) -> str:
    names = [f"{prefix}{digest}" for digest in sorted(digests)]
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "") if names else "none yet"

"""Where models and labels came from and what they went into: a graph read from git, offline, without any data.

    base model ----------------------------> gen/0/student --(searches)--> gen/1/labels --> gen/1/student
    solver ------------> gen/0/labels -----------^   \\-------(starts)---------------------------^
                               \\---------(window)-----------------------------------------------^

    gen/0/student --(rollouts)--> gen/0/step_labels --> gen/0/reward_model --(judges)--> gen/1/labels
                                                              \\---(starts)------> gen/1/reward_model

Edges run from cause to effect: a teacher makes labels, a reward model that judges them does too, labels and the model
it starts from make a student, a student has evaluations. That a student learned from a generation's labels is said of
its whole window here; `storage.row_lineage` counts the rows and follows a single one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flywheel.params import folder_name
from storage.addresses import Address, Part, made, parse, resolve
from storage.lineage_text import mermaid as mermaid
from storage.lineage_text import outline as outline
from storage.lineage_text import tree as tree

if TYPE_CHECKING:
    from storage.registry import Registry

Direction = Literal["up", "down", "both"]
Role = Literal["made", "judged", "learned", "began", "measured", "posed", "parent"]
"""What a cause is to its effect: a model that made rows or judged them; rows that a model learned from; weights that it
began from; what was measured; the problem of an attempt; what a label was made of."""
Nodes = dict[str, dict[str, Any]]
Edges = dict[tuple[str, str], Role]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes `{address, kind, digest, generation, ...}` and edges `[from, to]`, oldest generation first.

    Kinds: student, labels, step_labels, reward_model, evaluations; solver and model for teachers and bases that no
    generation made; label, attempt, problem and parent for single rows. `roles` says of each edge what it is.
    """

    roots: tuple[str, ...]
    direction: Direction
    nodes: list[dict[str, Any]]
    edges: list[list[str]]
    roles: tuple[Role, ...] = ()

    def document(self) -> dict[str, Any]:
        """What `flywheel lineage --json` prints."""
        return {"nodes": self.nodes, "edges": self.edges}


@dataclass(frozen=True, slots=True)
class Recorded:
    """What git says of all generations, rolled-back ones too: every node and every edge that windows allow."""

    rows: list[dict[str, Any]]
    """`storage.history.history`."""
    published: dict[int, dict[str, Any]]
    """Generation -> its lineage/NNNN.json."""
    nodes: Nodes
    edges: Edges
    makers: dict[str, tuple[int, Part]]
    windows: dict[int, list[int]]
    """Generation -> those whose labels its student may have learned from, itself the last."""

    def model(self, snapshot: str, now: int, kind: str = "model", **more: Any) -> str:
        """The address of a model that generation `now` used; a node is added for one that no generation made before.

        Only an older generation can be a cause: a student that training did not change has its cause's digest.
        """
        maker, part = self.makers.get(snapshot, (now, "student"))
        if maker < now:
            return f"gen/{maker}/{part}"
        name = f"model/{snapshot}"
        node = self.nodes.setdefault(name, {"address": name, "kind": kind, "digest": snapshot, "generation": None})
        node.update({key: value for key, value in more.items() if key not in node})
        return name

    def teacher(self, snapshot: str, now: int) -> str:
        """The address of who made rows of generation `now`: as its teacher.json has it, where that is the one."""
        teacher = self.published[now]["teacher"]
        if teacher["snapshot"] != snapshot:
            return self.model(snapshot, now)
        if teacher["kind"] == "champion":
            return f"gen/{teacher['generation']}/student"
        more = {"source": teacher["source"], "verified": teacher["verified"]}
        return self.model(snapshot, now, "solver" if teacher["kind"] == "solver" else "model", **more)

    def judge(self, now: int) -> str | None:
        """The registry's own reward model that judged the search of generation `now`, if one did."""
        judge = self.published[now].get("judge")
        return f"gen/{judge['generation']}/reward_model" if judge is not None and judge["judges"] else None


def lineage(registry: Registry, address: Address | str, direction: Direction = "up") -> Graph:
    """What `address` came from (up), what it went into (down), or both; rolled-back generations included.

    `gen/7` stands for its labels, student, reward model and evaluations together; one label is asked of
    `storage.row_lineage`. Raises InputError for an address that means nothing here or too much.
    """
    address = parse(address) if isinstance(address, str) else address
    if address.kind == "label":
        from storage.row_lineage import trace

        return trace(registry, address, direction)
    address = resolve(registry, address)
    known = recorded(registry)
    roots = roots_of(address, known.nodes)
    kept = set(roots)
    if direction in {"up", "both"}:
        kept |= _reached(roots, {(effect, cause) for cause, effect in known.edges})
    if direction in {"down", "both"}:
        kept |= _reached(roots, known.edges)
    chosen = [node for name, node in known.nodes.items() if name in kept]
    lines = {edge: role for edge, role in known.edges.items() if kept.issuperset(edge)}
    return Graph(tuple(roots), direction, chosen, [list(edge) for edge in lines], tuple(lines.values()))


def recorded(registry: Registry) -> Recorded:
    """Read all generations by git alone; nodes and edges, oldest generation first."""
    import json

    from storage import exclusions, git
    from storage.history import history, published_many

    rows = history(registry)
    published = published_many(registry, [row["generation"] for row in rows])
    windows = git.read_many(registry.root, [f"{row['tag']}:lineage/window.json" for row in rows])
    out = {model: entry.reason for entry in exclusions.read(registry) for model in entry.models} if rows else {}
    known = Recorded(rows, published, {}, {}, made(published), {})
    for row, text in zip(rows, windows, strict=True):
        window = json.loads(text or b"{}")
        left_out = set(window.get("excluded", []))
        older = [entry["generation"] for entry in window.get("generations", [])]
        older = [number for number in older if published[number]["teacher"]["snapshot"] not in left_out]
        known.windows[row["generation"]] = [*older, row["generation"]]
        _add_generation(known, row)
    for node in known.nodes.values():
        by = [node["digest"]]
        if node["kind"] == "labels":
            facts = published[node["generation"]]
            by = [facts[who]["snapshot"] for who in ("teacher", "judge") if who in facts]
        if reasons := [out[snapshot] for snapshot in by if snapshot in out]:
            node["excluded"] = reasons[0]
    return known


def _add_generation(known: Recorded, row: dict[str, Any]) -> None:
    """One generation's nodes and edges."""
    generation, nodes, edges = row["generation"], known.nodes, known.edges
    facts = known.published[generation]
    student, outputs = facts["student"], facts["outputs"]
    source = known.teacher(facts["teacher"]["snapshot"], generation)
    labels, learner, measured = (f"gen/{generation}/{part}" for part in ("labels", "student", "evaluations"))
    base = known.model(student["initialised_from"], generation) if student["initialised_from"] else None
    common = {"generation": generation, "status": row["status"]}
    nodes[labels] = {
        "address": labels,
        "kind": "labels",
        "digest": outputs[f"labels/{folder_name(generation)}"],
        **common,
        "rows": facts["labels"]["kept"],
    }
    nodes[learner] = {
        "address": learner,
        "kind": "student",
        "digest": student["snapshot"],
        **common,
        "promoted": row["promoted"],
        "parameters": student["parameters"],
    }
    nodes[measured] = {"address": measured, "kind": "evaluations", "digest": outputs["evaluations"], **common}
    edges[source, labels] = "made"
    if base:
        edges[base, learner] = "began"
    edges.update({(f"gen/{number}/labels", learner): "learned" for number in known.windows[generation]})
    edges[learner, measured] = "measured"
    if (judge := known.judge(generation)) is not None:
        edges[judge, labels] = "judged"
    trained = facts.get("reward_model")
    if trained is not None:
        taught, reward = f"gen/{generation}/step_labels", f"gen/{generation}/reward_model"
        nodes[taught] = {
            "address": taught,
            "kind": "step_labels",
            "digest": outputs["supervision"],
            **common,
            "rows": facts["tables"]["step_labels"]["rows"],
        }
        nodes[reward] = {
            "address": reward,
            "kind": "reward_model",
            "digest": trained["snapshot"],
            **common,
            "parameters": trained["parameters"],
        }
        edges[learner, taught], edges[taught, reward] = "made", "learned"
        if trained["initialised_from"] == student["snapshot"]:
            edges[learner, reward] = "began"
        elif trained["initialised_from"]:
            edges[known.model(trained["initialised_from"], generation), reward] = "began"
    judging = judge if trained is None else f"gen/{generation}/reward_model" if trained["judges"] else None
    if judging is not None:  # evaluate's judge is the newest that there is
        edges[judging, measured] = "judged"


def roots_of(address: Address, nodes: Nodes) -> list[str]:
    """The nodes that a resolved address other than a label's stands for."""
    if address.kind == "generation":
        parts = ("student", "labels", "evaluations", "reward_model")
        return [name for part in parts if (name := f"gen/{address.generation}/{part}") in nodes]
    if address.kind == "model" and address.generation is not None:
        names = [f"gen/{address.generation}/{part}" for part in ("student", "reward_model")]
        return [name for name in names if name in nodes and nodes[name]["digest"] == address.digest]
    assert str(address) in nodes, f"{address} was resolved but is no node"
    return [str(address)]


def _reached(roots: list[str], edges: Iterable[tuple[str, str]]) -> set[str]:
    following: dict[str, list[str]] = {}
    for start, end in edges:
        following.setdefault(start, []).append(end)
    seen, waiting = set(roots), deque(roots)
    while waiting:
        for end in following.get(waiting.popleft(), []):
            if end not in seen:
                seen.add(end)
                waiting.append(end)
    return seen

"""Where models and labels came from and what they went into: a graph read from git, offline, without any data.

    base model ----------------------------> gen/0/student --(searches)--> gen/1/labels --> gen/1/student
    solver ------------> gen/0/labels -----------^   \\-------(starts)---------------------------^
                               \\---------(window)-----------------------------------------------^

    gen/0/student --(rollouts)--> gen/0/step_labels --> gen/0/reward_model --(judges)--> gen/1/labels
                                                              \\---(starts)------> gen/1/reward_model

Edges run from cause to effect: a teacher makes labels, a reward model that judges them does too, labels and the model
it starts from make a student, a student has evaluations. A label of its own takes its place beside its set; whether a
student learned from it is read from the table `trained_on`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from flywheel.params import folder_name
from storage.addresses import Address, made, resolve

if TYPE_CHECKING:
    from storage.registry import Registry

Direction = Literal["up", "down", "both"]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes `{address, kind, digest, generation, ...}` and edges `[from, to]`, oldest generation first.

    Kinds: student, labels, label, step_labels, reward_model, evaluations; solver and model for teachers and bases that
    no generation made.
    """

    roots: tuple[str, ...]
    direction: Direction
    nodes: list[dict[str, Any]]
    edges: list[list[str]]

    def document(self) -> dict[str, Any]:
        """What `flywheel lineage --json` prints."""
        return {"nodes": self.nodes, "edges": self.edges}


def lineage(registry: Registry, address: Address | str, direction: Direction = "up") -> Graph:
    """What `address` came from (up), what it went into (down), or both; rolled-back generations included.

    `gen/7` stands for its labels, student, reward model and evaluations together. Raises InputError for an address
    that means nothing here or too much.
    """
    address = resolve(registry, address)
    nodes, edges = _everything(registry)
    if address.kind == "label":
        _add_label(registry, address, nodes, edges)
    roots = _roots(address, nodes)
    kept = set(roots)
    if direction in {"up", "both"}:
        kept |= _reached(roots, {(effect, cause) for cause, effect in edges})
    if direction in {"down", "both"}:
        kept |= _reached(roots, edges)
    chosen = [node for name, node in nodes.items() if name in kept]
    lines = [[cause, effect] for cause, effect in edges if cause in kept and effect in kept]
    return Graph(tuple(roots), direction, chosen, lines)


def _everything(registry: Registry) -> tuple[dict[str, dict[str, Any]], dict[tuple[str, str], None]]:
    """All nodes by address and all edges, oldest generation first. (A dict without values: a set that keeps order.)"""
    import json

    from storage import git
    from storage.history import history, published_many

    rows = history(registry)
    published = published_many(registry, [row["generation"] for row in rows])
    windows = git.read_many(registry.root, [f"{row['tag']}:lineage/window.json" for row in rows])
    nodes: dict[str, dict[str, Any]] = {}
    edges: dict[tuple[str, str], None] = {}
    makers = made(published)
    for row, window in zip(rows, windows, strict=True):
        generation, facts = row["generation"], published[row["generation"]]

        def model(snapshot: str, kind: str, now: int = generation, **more: Any) -> str:
            # Only an older generation can be a cause: a student that training did not change has its cause's digest.
            maker, part = makers.get(snapshot, (now, ""))
            if maker < now:
                return f"gen/{maker}/{part}"
            name = f"model/{snapshot}"
            nodes.setdefault(name, {"address": name, "kind": kind, "digest": snapshot, "generation": None, **more})
            return name

        teacher, student = facts["teacher"], facts["student"]
        if teacher["kind"] == "champion":
            source = f"gen/{teacher['generation']}/student"
        else:
            more = {"source": teacher["source"], "verified": teacher["verified"]}
            source = model(teacher["snapshot"], "solver" if teacher["kind"] == "solver" else "model", **more)
        labels, learner, measured = (f"gen/{generation}/{part}" for part in ("labels", "student", "evaluations"))
        base = model(student["initialised_from"], "model") if student["initialised_from"] else None
        common = {"generation": generation, "status": row["status"]}
        outputs = facts["outputs"]
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
        older = [entry["generation"] for entry in json.loads(window or b"{}").get("generations", [])]
        causes = [base] if base else []
        causes += [f"gen/{number}/labels" for number in older]
        edges[source, labels] = None
        edges.update(dict.fromkeys((cause, learner) for cause in [*causes, labels]))
        edges[learner, measured] = None
        judge, trained = facts.get("judge"), facts.get("reward_model")
        if judge is not None and judge["judges"]:
            edges[f"gen/{judge['generation']}/reward_model", labels] = None
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
            edges[learner, taught] = edges[taught, reward] = None
            if trained["initialised_from"] == student["snapshot"]:
                edges[learner, reward] = None
            elif trained["initialised_from"]:
                edges[model(trained["initialised_from"], "model"), reward] = None
        if (judging := _evaluates(generation, judge, trained)) is not None:
            edges[judging, measured] = None
    return nodes, edges


def _evaluates(generation: int, judge: dict[str, Any] | None, trained: dict[str, Any] | None) -> str | None:
    """The registry's own reward model that judged a generation's evaluation, if one did: the newest it had."""
    if trained is not None:
        return f"gen/{generation}/reward_model" if trained["judges"] else None
    return f"gen/{judge['generation']}/reward_model" if judge is not None and judge["judges"] else None


def _add_label(
    registry: Registry, address: Address, nodes: dict[str, dict[str, Any]], edges: dict[tuple[str, str], None]
) -> None:
    from storage.history import history
    from storage.views import query

    name, generation = str(address), address.generation
    label = next(query(registry, f"SELECT * FROM labels WHERE label_id = '{address.digest}'", at=generation).rows)
    shown = ("problem_id", "kind", "searcher", "reward", "reward_source")
    nodes[name] = {
        "address": name,
        "kind": "label",
        "digest": address.digest,
        "generation": generation,
        "status": nodes[f"gen/{generation}/labels"]["status"],
        **{f"label_{key}" if key == "kind" else key: label[key] for key in shown},
    }
    edges.update({(cause, name): None for cause, effect in list(edges) if effect == f"gen/{generation}/labels"})
    # Each line of generations has its own rows: ask as of the ends of all of them.
    rows = history(registry)
    parents = {row["parent"] for row in rows}
    learned: set[str] = set()
    for row in rows:
        if row["generation"] not in parents and row["generation"] >= (generation or 0):
            sql = f"SELECT DISTINCT snapshot FROM trained_on WHERE label_id = '{address.digest}'"
            learned |= {str(found["snapshot"]) for found in query(registry, sql, at=row["generation"]).rows}
    for row in rows:
        if row["student"] in learned and (f"gen/{generation}/labels", f"gen/{row['generation']}/student") in edges:
            edges[name, f"gen/{row['generation']}/student"] = None


def _roots(address: Address, nodes: dict[str, dict[str, Any]]) -> list[str]:
    if address.kind == "generation":
        parts = ("student", "labels", "evaluations", "reward_model")
        return [name for part in parts if (name := f"gen/{address.generation}/{part}") in nodes]
    if address.kind == "model" and address.generation is not None:
        names = [f"gen/{address.generation}/{part}" for part in ("student", "reward_model")]
        return [name for name in names if name in nodes and nodes[name]["digest"] == address.digest]
    assert str(address) in nodes, f"{address} was resolved but is no node"
    return [str(address)]


def _reached(roots: list[str], edges: Any) -> set[str]:
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


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart, left to right, which GitHub and many editors draw."""
    names = {node["address"]: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        start, end = {"labels": ("[(", ")]"), "step_labels": ("[(", ")]"), "evaluations": (">", "]")}.get(
            node["kind"], ("[", "]")
        )
        text = "<br/>".join(_entities(part) for part in (node["address"], *_details(node)))
        lines.append(f'    {names[node["address"]]}{start}"{text}"{end}')
    lines += [f"    {names[cause]} --> {names[effect]}" for cause, effect in graph.edges]
    if roots := [names[root] for root in graph.roots]:
        lines.append(f"    style {roots[0]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def tree(graph: Graph, root: str | None = None) -> dict[str, Any]:
    """The graph as seen from `root` (default: the first root): the node with `children`, its causes, or, where the
    graph's direction is down, its effects. A node is opened where it is nearest to the root; elsewhere it has
    `repeated: True` and no children."""
    nodes = {node["address"]: node for node in graph.nodes}
    following: dict[str, list[str]] = {}
    for cause, effect in graph.edges:
        start, end = (cause, effect) if graph.direction == "down" else (effect, cause)
        following.setdefault(start, []).append(end)
    top = {**nodes[root or graph.roots[0]], "children": []}
    opened, waiting = {top["address"]}, deque([top])
    while waiting:
        place = waiting.popleft()
        for name in sorted(following.get(place["address"], []), key=lambda name: _rank(nodes[name], graph.direction)):
            child = {**nodes[name], "children": []}
            if name in opened:
                child["repeated"] = True
            else:
                opened.add(name)
                waiting.append(child)
            place["children"].append(child)
    return top


def outline(graph: Graph, root: str | None = None) -> str:
    """`tree` as text, a node a line; those shown elsewhere already share one line."""
    lines: list[str] = []
    waiting = [(tree(graph, root), "", "")]
    while waiting:
        node, first, rest = waiting.pop()
        lines.append(
            first + "  ".join([node["address"], *_details(node)]) if "address" in node else first + node["also"]
        )
        new = [child for child in node.get("children", []) if not child.get("repeated")]
        again = [child["address"] for child in node.get("children", []) if child.get("repeated")]
        if again:
            listed = ", ".join(again) if len(again) <= 4 else f"{again[0]}, {again[1]}, ... {again[-1]} ({len(again)})"
            new.append({"also": f"{listed}, shown elsewhere here"})
        for index, child in reversed(list(enumerate(new))):
            last = index == len(new) - 1
            waiting.append((child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   ")))
    return "\n".join(lines)


def _rank(node: dict[str, Any], direction: Direction) -> tuple[int, str]:
    """Causes newest first, effects oldest first; what came from outside last or first."""
    generation = -1 if node["generation"] is None else int(node["generation"])
    return (generation if direction == "down" else -generation, str(node["address"]))


def _details(node: dict[str, Any]) -> list[str]:
    """What is worth knowing of a node beside its address."""
    details = [node["kind"]] if node["kind"] in {"solver", "model"} else [f"{node['digest'][:12]}"]
    if node["kind"] == "model" and node.get("source"):
        details.append(f"teacher {node['source']}")
    if node["kind"] in {"labels", "step_labels"}:
        details.append(f"{node['rows']:,} {'labels' if node['kind'] == 'labels' else 'labelled attempts'}")
    if node.get("verified") is False:
        details.append("not verified")
    if node.get("status") == "abandoned":
        details.append("rolled back")
    if node.get("promoted") is False:
        details.append("not promoted")
    return details


def _entities(text: str) -> str:
    """Text for a Mermaid label: what would end it, or start a tag, as an entity."""
    return "".join(f"#{ord(letter)};" if letter in '"<>&#`\\[]{}|' or ord(letter) < 32 else letter for letter in text)

"""A lineage graph in words: a tree for the terminal, and a Mermaid flowchart.

What is drawn is `storage.lineage.Graph`; nothing is read here.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.lineage import Direction, Graph

_ROWS = {"labels", "step_labels"}
_SHOWN = 80
"""Characters of a text in a line."""
_SIBLINGS = 8
"""Attempts of one label that are listed; hundreds may have voted."""
_Node = dict[str, Any]


def mermaid(graph: Graph) -> str:
    """The graph as a Mermaid flowchart, left to right, which GitHub and many editors draw."""
    names = {node["address"]: f"n{index}" for index, node in enumerate(graph.nodes)}
    lines = ["flowchart LR"]
    for node in graph.nodes:
        start, end = {"labels": ("[(", ")]"), "step_labels": ("[(", ")]"), "evaluations": (">", "]")}.get(
            node["kind"], ("[", "]")
        )
        text = "<br/>".join(_entities(part) for part in (node["address"], *details(node)))
        lines.append(f'    {names[node["address"]]}{start}"{text}"{end}')
    lines += [f"    {names[cause]} --> {names[effect]}" for cause, effect in graph.edges]
    if roots := [names[root] for root in graph.roots]:
        lines.append(f"    style {roots[0]} stroke-width:3px")
    return "\n".join(lines) + "\n"


def tree(graph: Graph, root: str | None = None, direction: Direction | None = None) -> _Node:
    """The graph as seen from `root` (default: the first root): the node with `children`, its causes, or, where the
    direction (default: the graph's) is down, its effects. A node is opened where it is nearest to the root; elsewhere
    it has `repeated: True` and no children."""
    direction = direction or graph.direction
    nodes = {node["address"]: node for node in graph.nodes}
    following: dict[str, list[str]] = {}
    for cause, effect in graph.edges:
        start, end = (cause, effect) if direction == "down" else (effect, cause)
        following.setdefault(start, []).append(end)
    top = {**nodes[root or graph.roots[0]], "children": []}
    opened, waiting = {top["address"]}, deque([top])
    while waiting:
        place = waiting.popleft()
        for name in sorted(following.get(place["address"], []), key=lambda name: _rank(nodes[name], direction)):
            child = {**nodes[name], "children": []}
            if name in opened:
                child["repeated"] = True
            else:
                opened.add(name)
                waiting.append(child)
            place["children"].append(child)
    return top


def outline(graph: Graph, root: str | None = None) -> str:
    """`tree` as text, a node a line; those shown elsewhere already share one line. What a row says, and examples of a
    set, stand below their node. A graph of both directions is two trees."""
    if graph.direction != "both":
        return "\n".join(_drawn(tree(graph, root)))
    down = tree(graph, root, "down")
    went = ["", "What it went into:", *_drawn(down, noted=False)] if down["children"] else []
    return "\n".join([*_drawn(tree(graph, root, "up")), *went])


def _drawn(top: _Node, noted: bool = True) -> list[str]:
    """A tree's lines; the notes of its top node only if `noted`."""
    lines: list[str] = []
    waiting = [(top, "", "")]
    while waiting:
        node, first, rest = waiting.pop()
        lines.append(
            first + "  ".join([node["address"], *details(node)]) if "address" in node else first + node["also"]
        )
        below = _children(node)
        if "address" in node and (noted or node is not top):
            lines += [f"{rest}{'│   ' if below else '    '}{note}" for note in notes(node)]
        for index, child in reversed(list(enumerate(below))):
            last = index == len(below) - 1
            waiting.append((child, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   ")))
    return lines


def _children(node: _Node) -> list[_Node]:
    """What stands below a node: its new children, then a line for those that are shown elsewhere."""
    new = [child for child in node.get("children", []) if not child.get("repeated")]
    again = [child["address"] for child in node.get("children", []) if child.get("repeated")]
    attempts = [child for child in new if child["kind"] == "attempt"]
    if len(attempts) > _SIBLINGS:
        out = {child["address"] for child in attempts[_SIBLINGS:]}
        # Their teacher and problem are those of the ones that are listed.
        new = [child for child in new if child["address"] not in out]
        roles = sorted({role for child in attempts[_SIBLINGS:] for role in child.get("roles", [])})
        new.append({"also": f"{len(out)} more attempts ({', '.join(roles)}); all of them with --json"})
    if again:
        listed = ", ".join(again) if len(again) <= 4 else f"{again[0]}, {again[1]}, ... {again[-1]} ({len(again)})"
        new.append({"also": f"{listed}, shown elsewhere here"})
    return new


def _rank(node: _Node, direction: Direction) -> tuple[int, bool, str]:
    """Causes newest first, effects oldest first; what came from outside last or first. The attempt that a label is
    comes before those that voted for it."""
    generation = -1 if node["generation"] is None else int(node["generation"])
    voted = node["kind"] == "attempt" and "attempt" not in node.get("roles", [])
    return (generation if direction == "down" else -generation, voted, str(node["address"]))


def details(node: _Node) -> list[str]:
    """What is worth knowing of a node beside its address."""
    kind = node["kind"]
    parts = [kind] if kind in {"solver", "model", "problem", "parent"} else [f"{node['digest'][:12]}"]
    if kind == "model" and node.get("source"):
        parts.append(f"teacher {short(node['source'])}")
    if kind in _ROWS:
        parts.append(f"{node['rows']:,} {'labels' if kind == 'labels' else 'labelled attempts'}")
    if kind in {"label", "attempt"}:
        # The address ends in the digest.
        parts = [*_row(node)]
    if "learned" in node:
        parts.append(_learned(node))
    if node.get("verified") is False:
        parts.append("not verified")
    if node.get("status") == "abandoned" and kind not in {"attempt", "problem", "parent"}:
        parts.append("rolled back")
    if "excluded" in node:
        parts.append("excluded")
    if node.get("promoted") is False:
        parts.append("not promoted")
    if "elsewhere" in node:
        parts.append(node["elsewhere"])
    return parts


def _row(node: _Node) -> list[str]:
    if node["kind"] == "label":
        return [f"{node['searcher']}, reward {node['reward']:g} ({node['reward_source']})"]
    parts = [", ".join(node["roles"])]
    if "searcher" in node:
        reward = "no reward" if node["reward"] is None else f"reward {node['reward']:g} ({node['reward_source']})"
        parts.append(f"{node['searcher']}, seed {node['seed']}, index {node['index']}, {reward}")
    return parts


def _learned(node: _Node) -> str:
    sets = {entry["from"] for entry in node["learned"]}
    # A label by itself counts where its set is not drawn.
    entries = [entry for entry in node["learned"] if entry["from"].partition("#")[0] not in sets - {entry["from"]}]
    rows, total = sum(entry["rows"] for entry in entries), node["learned_rows"]
    of = "step labels" if node["kind"] == "reward_model" else "labels"
    return f"learned {total:,} {of}" if rows == total else f"learned {rows:,} of these, {total:,} {of} in all"


def notes(node: _Node) -> list[str]:
    """Lines below a node: what a row says, and a set's examples."""
    if node["kind"] == "label":
        return [f"{name}: {short(node[name])}" for name in ("prompt", "completion")] + _target(node)
    if node["kind"] == "problem" and "payload" in node:
        reference = [f"reference: {short(node['reference'])}"] if node["reference"] else []
        return [f"{node['domain']}, {node['split']}: {short(node['payload'])}", *reference]
    if node["kind"] == "attempt" and "searcher" in node:
        return _search(node)
    return [
        f"e.g. #{row['label_id'][:12]}  {short(row['prompt'], 40)} -> {short(row['completion'], 40)}"
        for row in node.get("examples", [])
    ]


def _search(node: _Node) -> list[str]:
    lines = [
        f"search: {short(node['search_params'])}",
        f"stopped: {node['stop_reason']}, {node['judged']}; {node['tokens']:,} tokens, "
        f"{node['flops_policy']:.3g} FLOPs, reward {node['flops_reward']:.3g} FLOPs",
    ]
    rewards = node["step_rewards"]
    # A game's steps are its moves; the one in question is said below.
    for index, step in enumerate(node["steps"] if "searched" not in node else []):
        reward = f" ({rewards[index]:.3g})" if index < len(rewards) else ""
        lines.append(f"step {index + 1}{reward}: {short(step)}")
    if "searched" in node:
        found = node["searched"]
        lines.append(f"positions searched: {found['positions']}, {found['full']} of them in full")
        if found["position"]:
            place = found["position"]
            lines.append(f"ply {place['ply']}: {place['simulations']} simulations found {place['value']:+.3f}")
    return lines


def _target(node: _Node) -> list[str]:
    target = node.get("target")
    if target is None:
        return []
    return [f"target: ply {target['ply']}, value {target['value']:+.3f} to the mover, {len(target['policy'])} shares"]


def short(value: Any, length: int = _SHOWN) -> str:
    """A value on one line, clipped; control characters, which a terminal would obey, as their escapes."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)
    text = "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)
    return text if len(text) <= length else text[: length - 1] + "…"


def _entities(text: str) -> str:
    """Text for a Mermaid label: what would end it, or start a tag, as an entity."""
    return "".join(f"#{ord(letter)};" if letter in '"<>&#`\\[]{}|' or ord(letter) < 32 else letter for letter in text)

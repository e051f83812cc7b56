"""Lineage down to rows: from one label to its attempts, search, problem and teacher, and from there on, generation by
generation, to all that taught the teacher; and from any model to the labels it made or judged and all that learned.

    gen/7/problems#p --> gen/7/attempts#a --> gen/7/labels#l --> gen/7/student --> ...
    gen/6/student ------------^  ^
    gen/6/reward_model ----------'       gen/0..6/labels --(counted)--> gen/6/student

Read from the tables in DVC's cache, in place (`storage.lineage_query`), and from git; rolled-back generations take
part. Where a table is not in the cache, its node says so and git's word stands in for the rows, except for the label
that was asked for.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import InputError
from storage.addresses import Address, models, parse, resolve
from storage.lineage import Direction, Graph, Recorded, recorded, roots_of
from storage.lineage_query import Asked, Set, Tables, Walked, label_sets, walk
from storage.lineage_rows import attempt_facts, beginning, examples, label_facts, problem_facts

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from storage.registry import Registry

EXAMPLES = 3
MEMORY_LIMIT = "1GB"
"""What DuckDB may hold before it spills to disk."""
_OF_A_LABEL = ("labels", "label_parents", "attempts", "problems", "targets", "searched")
_SHOWN = 10


def trace(registry: Registry, address: Address | str, direction: Direction = "up", count: int = EXAMPLES) -> Graph:
    """What `address` came from (up), what it went into (down), or both, as the rows have it; `count` examples a set.

    Beside what `storage.lineage.lineage` says, a model's node says what it `learned` (rows by set) and, in all,
    `learned_rows`; a set's node its teacher, `examples` and how many rows. Nodes of rows say what the tables do.
    Raises InputError for an address that means nothing here or too much, RegistryError where a label's rows are not in
    the cache and cannot be brought.
    """
    address = parse(address) if isinstance(address, str) else address
    known = recorded(registry)
    tables = Tables(registry, known.published)
    with _connection() as connection:
        asked = None
        facts: dict[str, Any] = {}
        if address.kind == "label":
            asked, facts = _asked(connection, registry, known, tables, address)
        sets = label_sets(connection, known, tables)
        roots = [asked.address] if asked else _roots(registry, address, known, sets)
        found = walk(connection, known, tables, sets, roots, direction, asked)
        _tell_sets(connection, known, tables, sets, found, count)
        if asked is not None:
            _tell_rows(connection, known, tables, asked, facts, found)
            if direction != "up":
                _tell_who_learned(known, asked, found)
        _tell_models(known, found)
    return _graph(known, found, roots, direction)


def _connection() -> DuckDBPyConnection:
    import duckdb

    connection = duckdb.connect(":memory:")
    connection.execute(f"SET memory_limit = '{MEMORY_LIMIT}'")
    connection.execute(
        "SET temp_directory = $folder", {"folder": str(Path(tempfile.gettempdir()) / "flywheel-lineage")}
    )
    connection.execute("SET autoinstall_known_extensions = false")
    return connection


def _asked(
    connection: DuckDBPyConnection, registry: Registry, known: Recorded, tables: Tables, address: Address
) -> tuple[Asked, dict[str, Any]]:
    """The label that is meant, and its facts."""
    generation, prefix = address.generation, address.digest
    assert generation is not None
    assert prefix is not None
    if generation not in known.published:
        resolve(registry, Address("generation", generation))  # says what there is
    _bring(registry, tables, generation)
    names = beginning(connection, tables, generation, prefix, _SHOWN + 1)
    if not names:
        raise InputError(
            f"got {address}, but gen/{generation} has no label whose id begins so; list them with "
            f'`flywheel query "SELECT label_id FROM labels WHERE generation = {generation}" --at gen/{generation}`'
        )
    if len(names) > 1 and prefix not in names:
        there = ", ".join(f"gen/{generation}/labels#{name}" for name in names[:_SHOWN])
        more = ", ..." if len(names) > _SHOWN else ""
        raise InputError(f"got {address}, which several labels begin with; say which: {there}{more}")
    facts = label_facts(connection, tables, generation, names[0])
    return Asked(f"gen/{generation}/labels#{names[0]}", generation, names[0], facts["teacher"]), facts


def _bring(registry: Registry, tables: Tables, generation: int) -> None:
    """Where a generation's labels are not in the cache: bring them from the remote, with all that is told of one."""
    if tables.paths(generation, "labels") is None:
        from storage import remotes

        md5s = [file["md5"] for table in _OF_A_LABEL for file in tables.files(generation, table)]
        remotes.bring(registry, md5s, f"the rows of gen/{generation}")


def _roots(registry: Registry, address: Address, known: Recorded, sets: list[Set]) -> list[str]:
    """The nodes that an address stands for; labels by several teachers are several."""
    named = {f"model/{one.teacher}" for one in sets if f"model/{one.teacher}".startswith(str(address))}
    if (
        address.kind == "model"
        and len(named) == 1
        and not named & {f"model/{name}" for name in models(known.published)}
    ):
        return list(named)  # a teacher that rows know of and git does not
    roots = []
    for root in roots_of(resolve(registry, address), known.nodes):
        by = [one.address for one in sets if root == f"gen/{one.generation}/labels"]
        roots += by or [root]
    return roots


def _tell_sets(
    connection: DuckDBPyConnection,
    known: Recorded,
    tables: Tables,
    sets: list[Set],
    found: Walked,
    count: int,
) -> None:
    """Who made each set that was reached, who judged it, and some of its rows."""
    reached = [one for one in sets if one.address in found.nodes]
    students: dict[str, int] = {}
    for cause, effect, role, _ in found.edges:
        if role == "learned" and effect.endswith("/student") and effect not in found.elsewhere:
            number = int(effect.split("/")[1])
            students[cause] = min(number, students.get(cause, number))
    rows = examples(connection, tables, [(one, students.get(one.address)) for one in reached], count)
    for one in reached:
        of_git = known.nodes[f"gen/{one.generation}/labels"]
        node = {**of_git, "address": one.address, "rows": one.rows, "teacher": one.teacher, "made_by": one.maker}
        if (judge := known.judge(one.generation)) is not None:
            node["judged_by"] = judge
        node["examples"] = rows.get(one.address, [])
        if not one.here:
            node["elsewhere"] = _elsewhere(one.generation)
        known.nodes[one.address] = node


def _tell_models(known: Recorded, found: Walked) -> None:
    """What each model that was reached learned from, and what its evaluation came to."""
    learned: dict[str, list[dict[str, Any]]] = {}
    for cause, effect, role, count in sorted(found.edges, key=lambda edge: _place(known, edge[0])):
        if role == "learned" and effect not in found.elsewhere:
            # A single label is a row.
            learned.setdefault(effect, []).append({"from": cause, "rows": count or 1})
    for name in found.nodes & set(known.nodes):
        node = known.nodes[name]
        if name in found.elsewhere:
            node["elsewhere"] = _elsewhere(node["generation"])
        elif node["kind"] in {"student", "reward_model"}:
            node["learned"], node["learned_rows"] = learned.get(name, []), found.learned.get(name, 0)
        elif node["kind"] == "evaluations":
            row = next(row for row in known.rows if row["generation"] == node["generation"])
            node["metrics"] = {split: row["metrics"].get(split, {}) for split in ("valid", "test")}


def _tell_rows(
    connection: DuckDBPyConnection,
    known: Recorded,
    tables: Tables,
    asked: Asked,
    facts: dict[str, Any],
    found: Walked,
) -> None:
    """Nodes of the label, and of the attempts, problems and other parents that were reached."""
    generation = asked.generation
    status = known.nodes[f"gen/{generation}/labels"]["status"]
    common = {"generation": generation, "status": status}
    known.nodes[asked.address] = {
        "address": asked.address,
        "kind": "label",
        "digest": asked.label_id,
        **common,
        **facts,
    }
    roles: dict[str, list[str]] = {}
    for parent in facts["parents"]:
        roles.setdefault(parent["id"], []).append(parent["role"])
    posed = [name.partition("#")[2] for name in found.nodes if name.startswith(f"gen/{generation}/problems#")]
    rows = {
        "attempts": attempt_facts(connection, tables, generation, list(roles), facts.get("target", {}).get("ply")),
        "problems": problem_facts(connection, tables, generation, posed),
    }
    for name in sorted(found.nodes - set(known.nodes)):
        place, _, digest = name.rpartition("#")
        table = place.rpartition("/")[2]
        if table == "" and name.startswith("model/"):
            digest = name.partition("/")[2]
            known.nodes[name] = {"address": name, "kind": "model", "digest": digest, "generation": None}
            continue
        node = {"address": name, "kind": table.removesuffix("s"), "digest": digest, **common}
        if table != "problems":
            node["roles"] = roles.get(digest, [])
        if tables.paths(generation, table) is None:
            node["elsewhere"] = _elsewhere(generation)
        known.nodes[name] = node | rows.get(table, {}).get(digest, {})


def _tell_who_learned(known: Recorded, asked: Asked, found: Walked) -> None:
    """The models that learned from the label; those whose rows are elsewhere may have."""
    node = known.nodes[asked.address]
    node["learned_by"] = sorted(effect for cause, effect, *_ in found.edges if cause == asked.address)
    unread = [
        number
        for number, window in known.windows.items()
        if asked.generation in window and f"gen/{number}/student" in found.elsewhere
    ]
    if unread:
        node["elsewhere"] = _elsewhere(*unread)


def _elsewhere(*generations: int) -> str:
    return f"rows elsewhere: `flywheel pull {' '.join(f'gen/{number}' for number in generations)}`"


def _graph(known: Recorded, found: Walked, roots: list[str], direction: Direction) -> Graph:
    """Nodes and edges in order: oldest generation first, within it causes before effects."""
    nodes = sorted((known.nodes[name] for name in found.nodes), key=lambda node: _place(known, node["address"]))
    places = {node["address"]: index for index, node in enumerate(nodes)}
    lines = sorted(found.edges, key=lambda edge: (places[edge[1]], places[edge[0]]))
    return Graph(
        tuple(roots),
        direction,
        nodes,
        [[cause, effect] for cause, effect, *_ in lines],
        tuple(role for *_, role, _ in lines),  # type: ignore[misc]
    )


_WITHIN = ("model", "solver", "problem", "attempt", "parent", "labels", "label", "student", "step_labels",
           "reward_model", "evaluations")  # fmt: skip


def _place(known: Recorded, name: str) -> tuple[int, int, str]:
    node = known.nodes[name]
    generation = -1 if node["generation"] is None else int(node["generation"])
    return generation, _WITHIN.index(node["kind"]), name

"""What changed between two generations, on one line or on two: read from git and DVC's cache, not from the work tree.

    0 -- 1 -- 2 -- 3        diff 3 5: removed is what only 2 and 3 taught, added what only 4 and 5 teach; the files of
          \\-- 4 -- 5        0 and 1 are on both lines and are not compared

The labels of a generation are those that a student of it may learn from: of all its line, without those of excluded
models, as `flywheel query --at` sees them. How rows are told apart is said in `storage.diff_rows`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flywheel.errors import InputError, RegistryError
from storage import cache, diff_figures, exclusions, git, views
from storage.changes import changed_params
from storage.diff_rows import SHAPES, File, Side, are_same, compare
from storage.history import published_many, tagged, window
from storage.registry import require_generation
from storage.schemas import BOARDS, SUPERVISION, TABLES

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from storage.registry import Registry

_MODELS = {
    "student": ("snapshot",),
    "reward_model": ("snapshot",),
    "champion": ("snapshot", "generation"),
    "teacher": ("snapshot", "source"),
    "judge": ("snapshot", "source"),
}
"""What is told of each model that a generation made or used."""


@dataclass(frozen=True, slots=True)
class _Line:
    """One side of a diff: a generation; its line, oldest first; those off it whose labels an exclusion kept; what their
    lineage files say; and the models that are out."""

    number: int
    line: list[int]
    kept: list[int]
    facts: dict[int, dict[str, Any]]
    out: frozenset[str]

    @property
    def own(self) -> dict[str, Any]:
        return self.facts[self.number]


def diff(registry: Registry, before: int, after: int, table: str = "labels", limit: int = 3) -> dict[str, Any]:
    """How generation `after` differs from `before`.

    - "from", "to"; "relation": what `to` is to `from`: same, descendant, ancestor or fork; "common": the newest
      generation of both lines, null where there is none;
    - under the name of `table`: what `diff_rows.compare` says of all rows of the two lines, with up to `limit` examples
      of each kind (a label's with its "address"), and "own", the same of the rows that the two wrote themselves;
    - "tables": rows and files of each table, of the one line, of the other, and of both, from lineage alone;
    - "rewards" of the attempts and the labels that each made; "reasons" of rejection; "params", "metrics", "code",
      "models"; "flops" by kind and in "total". Each with "from" and "to"; see `diff_figures`.

    Raises InputError for a generation that was never published or a table whose rows have no key, RegistryError where a
    file is neither in the cache nor with the remote.
    """
    if table not in SHAPES:
        raise InputError(f"got table {table!r}, expected one whose rows have a key: {', '.join(SHAPES)}")
    tags = [require_generation(registry, generation) for generation in (before, after)]
    old, new = lines = _lines(registry, before, after)
    names = [f"{tag}:{name}" for name in ("params.yaml", "metrics.json") for tag in tags]
    texts = [text or b"" for text in git.read_many(registry.root, names)]
    measured = [json.loads(text) for text in texts[2:]]
    revisions = tagged(registry)
    common = [number for number in old.line if number in new.line]

    def own(name: str) -> tuple[list[File], list[File]]:
        first, second = (_there(registry, name, _files(registry, name, line, alone=True)) for line in lines)
        return first, second

    with _connection(registry) as connection:
        outcomes = own("outcomes")
        return {
            "from": before,
            "to": after,
            "relation": _relation(old, new),
            "common": common[-1] if common else None,
            table: _rows(connection, registry, table, lines, limit),
            "tables": _tables(registry, lines),
            "rewards": {name: diff_figures.rewards(connection, *own(name)) for name in ("attempts", "labels")},
            "reasons": diff_figures.reasons(connection, *own("rejected")),
            "params": {key: {"from": a, "to": b} for key, (a, b) in changed_params(texts[0], texts[1]).items()},
            "metrics": diff_figures.metrics(connection, measured[0], measured[1], outcomes),
            "code": {"from": revisions[before].code_revision, "to": revisions[after].code_revision},
            "models": _models(old.own, new.own),
            "flops": _flops(old.own["flops"], new.own["flops"]),
        }


def _lines(registry: Registry, before: int, after: int) -> tuple[_Line, _Line]:
    """Both sides, as `flywheel query --at` sees them."""
    entries = exclusions.read(registry)
    line = {number: window(registry, number) for number in (before, after)}
    applying = {number: exclusions.applying(entries, line[number], False) for number in line}
    kept = {number: exclusions.kept(applying[number], line[number]) for number in line}
    facts = published_many(registry, sorted({each for one in (line, kept) for held in one.values() for each in held}))
    first, second = (
        _Line(number, line[number], kept[number], facts, frozenset(exclusions.models(applying[number])))
        for number in (before, after)
    )
    return first, second


def _files(registry: Registry, table: str, side: _Line, alone: bool = False) -> list[File]:
    """Files of a table on a line, oldest first; `alone`: of the generation itself."""
    if alone or table in views.NEWEST_ONLY:
        numbers = [side.number]
    else:
        numbers = sorted([*side.line, *(side.kept if table in views.OF_LABELS else [])])
    if table in views.OF_EACH_LABEL and not alone:
        numbers = [number for number in numbers if exclusions.judged_by(side.facts[number]) not in side.out]
    return [
        File(number, file["md5"], file["rows"], cache.cache_path(registry, file["md5"]))
        for number in numbers
        for file in side.facts[number]["tables"].get(table, {"files": []})["files"]
    ]


def _there(registry: Registry, table: str, files: list[File]) -> list[File]:
    """The files, brought from the remote where they are not in the cache."""
    absent = [file for file in files if not file.path.exists()]
    if absent:
        from storage import remotes

        numbers = ", ".join(f"gen/{number}" for number in dict.fromkeys(file.generation for file in absent))
        remotes.bring(registry, [file.md5 for file in absent], f"table {table} of {numbers}")
    return files


@contextmanager
def _connection(registry: Registry) -> Iterator[DuckDBPyConnection]:
    """DuckDB with bounded memory that can read nothing but the cache. Raises RegistryError for a damaged file."""
    import duckdb

    folder = cache.cache_path(registry, "0" * 32).parent.parent
    with duckdb.connect(":memory:") as connection:
        for setting in (
            f"memory_limit = '{views.MEMORY_LIMIT}'",
            f"temp_directory = {views.quoted(views.spill_folder(registry))}",
            "preserve_insertion_order = false",
            "autoinstall_known_extensions = false",
            "autoload_known_extensions = false",
            f"allowed_directories = [{views.quoted(f'{folder}/')}]",
            "enable_external_access = false",
            "lock_configuration = true",
        ):
            connection.execute(f"SET {setting}")
        try:
            yield connection
        except (duckdb.IOException, duckdb.InvalidInputException, duckdb.BinderException) as error:
            raise RegistryError(
                f"a table cannot be read, a file of it is damaged or of another version: {error}"
            ) from error


def _rows(
    connection: DuckDBPyConnection, registry: Registry, table: str, lines: tuple[_Line, _Line], limit: int
) -> dict[str, Any]:
    files = [_files(registry, table, line) for line in lines]
    mine = [_files(registry, table, line, alone=True) for line in lines]
    outs = [line.out if table == "labels" else frozenset[str]() for line in lines]
    first, second = (Side(tuple(held), out) for held, out in zip(files, outs, strict=True))
    for held in [*mine, *([] if are_same(first, second) else files)]:
        _there(registry, table, held)
    found = compare(connection, table, first, second, limit)
    first, second = (Side(tuple(held)) for held in mine)
    own = compare(connection, table, first, second)
    if table == "labels":
        pairs = [row for pair in found["examples"]["changed"] for row in pair.values()]
        for row in (*found["examples"]["added"], *found["examples"]["removed"], *pairs):
            row["address"] = f"gen/{row['generation']}/labels#{row['label_id']}"
    return {**found, "own": {name: value for name, value in own.items() if name not in {"by", "examples"}}}


def _tables(registry: Registry, lines: tuple[_Line, _Line]) -> dict[str, dict[str, dict[str, int]]]:
    """{table: {"rows", "files": {"from", "to", "same"}}}; "same": of files that both lines have."""
    found = {}
    for table in {**TABLES, **SUPERVISION, **BOARDS}:
        before, after = ({file.md5: file for file in _files(registry, table, line)} for line in lines)
        held = {"from": before, "to": after, "same": {md5: file for md5, file in before.items() if md5 in after}}
        if before or after:
            rows = {name: sum(file.rows for file in files.values()) for name, files in held.items()}
            found[table] = {"rows": rows, "files": {name: len(files) for name, files in held.items()}}
    return found


def _models(old: dict[str, Any], new: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        role: {
            side: {field: facts[role][field] for field in fields} if role in facts else None
            for side, facts in (("from", old), ("to", new))
        }
        for role, fields in _MODELS.items()
        if role in old or role in new
    }


def _flops(old: dict[str, float], new: dict[str, float]) -> dict[str, dict[str, float]]:
    sides = [{**flops, "total": math.fsum(flops.values())} for flops in (old, new)]
    return {
        kind: {"from": sides[0][kind], "to": sides[1][kind], "difference": sides[1][kind] - sides[0][kind]}
        for kind in sides[0]
    }


def _relation(old: _Line, new: _Line) -> str:
    if old.number == new.number:
        return "same"
    return "descendant" if old.number in new.line else "ancestor" if new.number in old.line else "fork"

"""Models whose labels are out: `exclusions.json`, in git, untouched by rollbacks, honoured by every later window.

    4 -- 5 -- 6 -- 7      the student of 5 is bad: it made the labels of 6 and, by its own student, those of 7
     \\    \\__ the labels of 5 were made by the student of 4: they are clean and stay
      8 ----------- goes on from 4 and learns from the labels of 0 to 5 and its own

Bad are the model, every model that learned from a label which a bad one made or judged, and every model that began from
a bad one's weights. What is bad is found by rows, from the tables. Acting on it is `storage.rollback`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flywheel.errors import InputError, RegistryError
from storage import git
from storage.history import published_many, window
from storage.layout import tag_name
from storage.registry import json_text

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

    from storage.registry import Registry

_BAD = """
WITH RECURSIVE
    judged AS (SELECT unnest($judged) AS generation, unnest($judges) AS judge),
    taught AS (SELECT DISTINCT generation, teacher FROM labels),
    mixed AS (SELECT generation FROM taught GROUP BY generation HAVING count(*) > 1),
    policies AS (SELECT DISTINCT snapshot FROM snapshots WHERE role = 'policy'),
    learned AS (SELECT DISTINCT snapshot, generation FROM trained_on SEMI JOIN policies USING (snapshot)),
    causes(cause, snapshot) AS (
        SELECT teacher, snapshot FROM learned JOIN taught USING (generation) ANTI JOIN mixed USING (generation)
        UNION
        SELECT l.teacher, t.snapshot FROM trained_on t JOIN labels l USING (label_id)
            WHERE t.generation IN (SELECT generation FROM mixed) AND l.generation IN (SELECT generation FROM mixed)
        UNION
        SELECT judge, snapshot FROM learned JOIN judged USING (generation)
        UNION
        SELECT l.policy, t.snapshot FROM trained_on t JOIN step_labels l ON t.label_id = l.step_label_id
        UNION
        SELECT initialised_from, snapshot FROM snapshots WHERE initialised_from IS NOT NULL
    ),
    bad(snapshot) AS (
        SELECT $model
        UNION
        SELECT causes.snapshot FROM bad JOIN causes ON causes.cause = bad.snapshot
    )
SELECT snapshot FROM bad ORDER BY snapshot
"""
"""The causes of a generation whose labels have one teacher are found by generation; else label by label."""


_READ = ("labels", "trained_on", "snapshots", "step_labels")


@dataclass(frozen=True, slots=True)
class Exclusion:
    """One entry of exclusions.json. `source` and `to`: the heads before and after it (`from` and `to` in the file);
    `next`: the number that the next generation then had; `models`: all that is bad; `generations`: those that were
    left for it; `labels_kept`: those of them, and of earlier exclusions, whose clean labels stay."""

    model: str
    reason: str
    source: int
    to: int
    next: int
    models: tuple[str, ...]
    generations: tuple[int, ...]
    labels_kept: tuple[int, ...]

    def document(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "reason": self.reason,
            "from": self.source,
            "to": self.to,
            "next": self.next,
            "models": list(self.models),
            "generations": list(self.generations),
            "labels_kept": list(self.labels_kept),
        }


FILE = "exclusions.json"


def read(registry: Registry, revision: str = "HEAD") -> list[Exclusion]:
    """The exclusions in force, oldest first. Raises RegistryError for a damaged file."""
    text = git.read_many(registry.root, [f"{revision}:{FILE}"])[0]
    return parse(text) if text is not None else []


def parse(text: bytes) -> list[Exclusion]:
    """Entries of an exclusions.json. Raises RegistryError where it is not what Flywheel writes."""
    try:
        entries = json.loads(text)["exclusions"]
        return [
            Exclusion(
                str(entry["model"]),
                str(entry["reason"]),
                int(entry["from"]),
                int(entry["to"]),
                int(entry["next"]),
                tuple(map(str, entry["models"])),
                tuple(map(int, entry["generations"])),
                tuple(map(int, entry["labels_kept"])),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"exclusions.json is damaged ({error!r}); restore it: `git restore --source=HEAD exclusions.json`"
        ) from error


def models(entries: list[Exclusion]) -> set[str]:
    """Every model that is out."""
    return {model for entry in entries for model in entry.models}


def text(entries: list[Exclusion]) -> str:
    """The file."""
    return json_text({"exclusions": [entry.document() for entry in entries]})


def applying(entries: list[Exclusion], line: list[int], tip: bool = True) -> list[Exclusion]:
    """The exclusions that `line` went on after. `tip`: whether its last generation is the head, from which a next one
    is about to go on."""
    after: dict[int, int | None] = dict(zip(line, [*line[1:], None], strict=bool(line)))
    return [
        entry
        for entry in entries
        for child in [after.get(entry.to, -1)]
        if (tip if child is None else child >= entry.next)
    ]


def kept(entries: list[Exclusion], line: list[int]) -> list[int]:
    """Generations off `line` whose clean labels its students learn from, by exclusions that apply to it."""
    return sorted({number for entry in entries for number in entry.labels_kept} - set(line))


def require_clean(entries: list[Exclusion], generation: int, facts: dict[str, Any]) -> None:
    """Raise InputError where going on from `generation`, of these facts, would go on from an excluded model."""
    if made := _made(facts) & models(entries):
        entry = next(entry for entry in entries if made & set(entry.models))
        raise InputError(
            f"{tag_name(generation)} came of model/{entry.model[:12]}, which is excluded ({entry.reason}); go back to "
            f"gen/{entry.to} or before, or take the exclusion back with `flywheel undo`"
        )


def require_clean_line(registry: Registry, entries: list[Exclusion], generation: int) -> None:
    """As `require_clean`, for a generation of any line: what an exclusion found bad is of the line it was made on.

    From git alone: a student is bad where a generation that it learned from was searched or judged by a bad model, or
    where it began from one.
    """
    line = window(registry, generation)
    names = [f"{tag_name(number)}:lineage/window.json" for number in line]
    windows = [json.loads(text or b"{}") for text in git.read_many(registry.root, names)]
    seen = {entry["generation"] for document in windows for entry in document.get("generations", [])}
    facts = published_many(registry, sorted(seen | set(line)))
    bad = models(entries)
    for number, document in zip(line, windows, strict=True):
        out = set(document.get("excluded", []))
        learned = [entry["generation"] for entry in document.get("generations", [])]
        sources = [facts[other] for other in learned if facts[other]["teacher"]["snapshot"] not in out]
        causes = {cause for one in [*sources, facts[number]] for cause in _makers(one)}
        if {*causes, facts[number]["student"]["initialised_from"]} & bad:
            bad |= {facts[number][role]["snapshot"] for role in ("student", "reward_model") if role in facts[number]}
    require_clean(entries, generation, facts[generation])
    if _made(facts[generation]) & bad:
        named = ", ".join(f"model/{entry.model[:12]} ({entry.reason})" for entry in entries)
        raise InputError(
            f"{tag_name(generation)} came of an excluded model, {named}; go back to one before, or take the exclusion "
            "back with `flywheel undo`"
        )


def judged_by(facts: dict[str, Any]) -> str | None:
    """The registry's own reward model that judged a generation's search, if one did."""
    judge = facts.get("judge")
    return str(judge["snapshot"]) if judge is not None and judge["judges"] else None


def _makers(facts: dict[str, Any]) -> set[str]:
    """The models that made a generation's labels: who searched, and who judged the search."""
    return {facts["teacher"]["snapshot"], *filter(None, [judged_by(facts)])}


def _made(facts: dict[str, Any]) -> set[str]:
    """The models that a next generation would go on from."""
    return {facts[role]["snapshot"] for role in ("student", "champion", "reward_model") if role in facts}


def find(registry: Registry, model: str, reason: str) -> tuple[Exclusion, dict[str, int]]:
    """What excluding the model with this digest comes to, and label rows {"dropped", "kept"}; changes nothing.

    Raises InputError where no clean generation is left to go on from, RegistryError where tables are not in the cache.
    """
    from storage import views

    entries, line = read(registry), window(registry, None)
    if not line:
        raise InputError("there is no generation yet, so nothing to exclude")
    held = kept(applying(entries, line), line)
    # What came of a model may have come by way of another line, whose labels an earlier exclusion kept.
    facts = published_many(registry, registry.generations())
    judges = {number: judge for number, one in facts.items() if (judge := judged_by(one)) is not None}
    with views.connect(registry, tables=_READ, every_line=True) as connection:
        bad = _bad(connection, model, judges)
        clean = [number for number in line if not _made(facts[number]) & bad]
        if not clean:
            raise InputError(
                f"every generation came of model/{model[:12]}, generation 0 too; there is none to go on from: "
                "make another registry with `flywheel init`"
            )
        judged = [number for number, judge in judges.items() if judge in bad | models(entries)]
        counts = connection.execute(
            "SELECT generation, count(*) FILTER (WHERE NOT bad), count(*) FILTER (WHERE bad) FROM (SELECT generation, "
            "list_contains($models, teacher) OR list_contains($judged, generation) AS bad FROM labels "
            "WHERE list_contains($here, generation)) GROUP BY 1",
            {"models": sorted(bad | models(entries)), "judged": judged, "here": [*line, *held]},
        ).fetchall()
    good = {number: rows for number, rows, _ in counts}
    to = clean[-1]
    left = [number for number in line if number > to]
    stays = [number for number in [*held, *left] if good.get(number)]
    later = registry.next_generation()
    entry = Exclusion(model, reason, line[-1], to, later, tuple(sorted(bad)), tuple(left), tuple(sorted(stays)))
    return entry, {"dropped": sum(rows for *_, rows in counts), "kept": sum(good.values())}


def _bad(connection: DuckDBPyConnection, model: str, judges: dict[int, str]) -> set[str]:
    bound = {"model": model, "judged": list(judges), "judges": list(judges.values())}
    return {str(row[0]) for row in connection.execute(_BAD, bound).fetchall()}

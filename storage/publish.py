"""After a generation ran: its outputs into DVC's cache, its facts into git, and last the tag that readers go by.

Order is what makes a kill harmless: digests noted -> cache -> remote -> lineage -> commit -> tag -> scratch removed. Up
to the commit nothing is visible and everything can be done again; from the commit on `storage.recovery` adds the tag.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel.errors import FlywheelError, RegistryError, StorageFull
from flywheel.params import Params
from storage import cache, dvc, git, lock
from storage.layout import SUPERVISED, tag_name
from storage.prepare import unfinished
from storage.registry import json_text, recorded_paths, write_state
from storage.schemas import SCHEMA_VERSION, table_folders, tables_of
from storage.tables import file_md5, replace_text

if TYPE_CHECKING:
    from storage.registry import Registry

_ROOM_BYTES = 64 * 2**20
_KINDS = ("policy", "prefill", "reward", "training", "padding")


def publish(registry: Registry, params: Params, code_revision: str) -> str:
    """Publish the generation that `storage.prepare.begin` readied and the stages have made; its tag.

    Needs every output of dvc.yaml, metrics.json and the ledger's rows in place. Every cached object is hashed again
    before the commit. Raises StorageFull, or FlywheelError if something is missing or does not hash to what was made;
    then nothing was published and it can be called again.
    """
    generation, tag = params.generation, tag_name(params.generation)
    with lock.ensure(registry, f"publish {tag}"):
        if generation in registry.generations():
            return tag
        entry = unfinished(registry)
        if entry is None or entry["generation"] != generation:
            raise FlywheelError(f"{tag} was not begun here; expected {entry and tag_name(entry['generation'])}")
        if committed(registry) != generation:
            _check_room(registry, params)
            mend_outputs(registry, generation)
            made = _note_outputs(registry, params)
            _drop_damaged(registry, made)
            dvc.commit(registry)
            outputs = _check_cache(registry, made)
            if dvc.remote(registry) is not None:
                dvc.push(registry)
            replace_text(registry.layout.published(generation), json_text(_lineage(registry, params, outputs)))
            _commit(registry, params, entry, code_revision)
        tag_head(registry, generation)
        close(registry, generation)
        return tag


def commit_files(registry: Registry, paths: list[Path], message: str, trailers: dict[str, str]) -> str:
    """Commit just these files of the registry (results of control runs, which are no generation); the commit."""
    with lock.ensure(registry, "commit files"):
        names = [Path(os.path.abspath(registry.root / path)).relative_to(registry.root).as_posix() for path in paths]
        git.run(registry.root, "add", "--", *names)
        if git.run(registry.root, "diff", "--cached", "--name-only", "--", *names):
            text = git.message(message, trailers)
            git.run(registry.root, "commit", "-q", "--cleanup=verbatim", "-F", "-", "--only", "--", *names, stdin=text)
        return git.run(registry.root, "rev-parse", "HEAD")


def committed(registry: Registry) -> int | None:
    """The newest generation that HEAD's line has a commit of, tagged or not."""
    commits = git.commits_with(registry.root, "Flywheel-Generation", newest=1)
    return int(commits[0].trailers["Flywheel-Generation"]) if commits else None


def tag_head(registry: Registry, generation: int) -> None:
    """Tag the newest commit of `generation`: from here on readers see it."""
    commit = git.commits_with(registry.root, "Flywheel-Generation", newest=1)[0]
    assert int(commit.trailers["Flywheel-Generation"]) == generation
    git.run(registry.root, "tag", "-a", "-m", f"Generation {generation}", tag_name(generation), commit.sha)


def tag_object(registry: Registry, generation: int) -> str:
    """The object id of a generation's annotated tag; the next commit and MLflow hold it, so that a tag that was moved
    or made anew is found."""
    return git.run(registry.root, "rev-parse", f"refs/tags/{tag_name(generation)}")


def close(registry: Registry, generation: int) -> None:
    """Drop the scratch of a published generation."""
    shutil.rmtree(registry.layout.work(generation), ignore_errors=True)
    write_state(registry, unfinished=None)


def mend_outputs(registry: Registry, generation: int) -> list[str]:
    """Put back files that a DVC killed between unlinking and linking left only in the cache; their paths."""
    path = _manifest(registry, generation)
    if not path.exists():
        return []
    mended = []
    for output, files in json.loads(path.read_text(encoding="utf-8")).items():
        folder = registry.root / output
        absent = {name: md5 for name, md5 in files.items() if not (folder / name).exists()}
        kept = [name for name in files if name not in absent]
        # Any other change means that the stage ran again; its files are then its own affair.
        if (
            not absent
            or set(cache.listing(folder)) - set(files)
            or any(file_md5(folder / name) != files[name] for name in kept)
        ):
            continue
        for name, md5 in absent.items():
            source = cache.cache_path(registry, md5)
            if source.exists():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                draft = registry.layout.tmp / md5
                draft.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, draft)
                os.replace(draft, folder / name)
                mended.append(f"{output}/{name}")
    path.unlink()
    return mended


def _manifest(registry: Registry, generation: int) -> Path:
    return registry.layout.work(generation) / "outputs.json"


def _folders(params: Params) -> list[str]:
    folders = ["problems", "attempts", f"labels/{params.folder}", "student", "training", "evaluations"]
    return [*folders, *SUPERVISED] if params.supervise.enabled else folders


def _check_room(registry: Registry, params: Params) -> None:
    sizes = 0
    if (cache.setting(registry.root, "cache", "type") or dvc.LINKS).split(",")[0] != "hardlink":
        paths = [path for name in _folders(params) for path in cache.listing(registry.root / name).values()]
        sizes = sum(path.stat().st_size for path in paths)
    free = shutil.disk_usage(registry.root).free
    if free < sizes + _ROOM_BYTES:
        raise StorageFull(
            f"{registry.root} has {free / 2**20:.0f} MiB left, publishing {tag_name(params.generation)} needs "
            f"{(sizes + _ROOM_BYTES) / 2**20:.0f} MiB; free some and run again: finished work is kept"
        )


def _note_outputs(registry: Registry, params: Params) -> dict[str, dict[str, str]]:
    """MD5 of every output file before DVC moves it; kept on disk until the generation is published."""
    made = {}
    for name in _folders(params):
        files = {path: file_md5(where) for path, where in cache.listing(registry.root / name).items()}
        if not files:
            raise FlywheelError(
                f"cannot publish {tag_name(params.generation)}: {name}/ is missing or empty; run its stage"
            )
        made[name] = files
    replace_text(_manifest(registry, params.generation), json_text(made))
    return made


def _drop_damaged(registry: Registry, made: dict[str, dict[str, str]]) -> None:
    """Remove cached objects that no longer hash to their names, where the stages have just made the right bytes.

    DVC trusts a read-only object without looking, and would link the damaged one over the sound output.
    """
    for name, files in made.items():
        for path, md5 in files.items():
            cached = cache.cache_path(registry, md5)
            if cached.exists() and not cached.samefile(registry.root / name / path) and file_md5(cached) != md5:
                cached.unlink()


def _check_cache(registry: Registry, made: dict[str, dict[str, str]]) -> dict[str, cache.Output]:
    """The outputs that DVC recorded, once each object in the cache hashes to what the stages made."""
    outputs = cache.lock_outputs((registry.root / "dvc.lock").read_text(encoding="utf-8"))
    wrong = []
    for name, files in made.items():
        if name not in outputs or cache.tree(registry, outputs[name]) != files:
            wrong.append(f"{name}/ changed while it was recorded")
            continue
        for path, md5 in files.items():
            where = cache.cache_path(registry, md5)
            if not where.exists() or file_md5(where) != md5:
                wrong.append(f"{name}/{path} is damaged in the cache ({where})")
    if wrong:
        raise FlywheelError(f"not published: {'; '.join(wrong)}. Remove damaged objects from the cache and run again")
    return outputs


def _lineage(registry: Registry, params: Params, outputs: dict[str, cache.Output]) -> dict[str, Any]:
    """What lineage/NNNN.json says. No clock, no run id, no machine: the same run gives the same bytes."""
    layout, generation, supervised = registry.layout, params.generation, params.supervise.enabled
    metrics = _read(layout.metrics)
    if metrics.get("generation") != generation or not isinstance(metrics.get("champion"), dict):
        got = f"generation {metrics.get('generation')}, champion {metrics.get('champion')!r}"
        raise FlywheelError(f"{layout.metrics} should be evaluate's of generation {generation}; got {got}")
    schemas = tables_of(supervised, params.problems.domain == "hex")
    tables = {name: _table(registry, name, schema, params, outputs) for name, schema in schemas.items()}
    made = {"student": _model(registry, "training/snapshots", "policy")}
    if supervised:
        # Evaluate's judge is the newest there is: this one.
        judges = params.reward.by_own_model
        made["reward_model"] = {**_model(registry, "supervision/snapshots", "reward"), "judges": judges}
    judge = layout.lineage / "judge.json"
    return {
        "version": SCHEMA_VERSION,
        "generation": generation,
        "parent": params.parent,
        "teacher": _read(layout.lineage / "teacher.json"),
        **made,
        **({"judge": _read(judge)} if judge.exists() else {}),
        "champion": {field: metrics["champion"][field] for field in ("generation", "snapshot", "promoted")},
        "params_digest": params.digest(),
        "tables": tables,
        "outputs": {name: output.md5 for name, output in outputs.items()},
        **_flops(layout.ledger(generation)),
        "labels": {"kept": tables["labels"]["rows"], "rejected": tables["rejected"]["rows"]},
    }


def _model(registry: Registry, folder: str, role: str) -> dict[str, Any]:
    """The one model of a role that a stage wrote down in its table `snapshots`."""
    import pyarrow.parquet as pq

    paths = sorted((registry.root / folder).glob("*.parquet"))
    rows = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist() if row["role"] == role]
    if len(rows) != 1:
        what = "student" if role == "policy" else "reward model"
        raise FlywheelError(f"table snapshots in {folder}/ should name one {what} (role {role}); got {len(rows)}")
    return {field: rows[0][field] for field in ("snapshot", "initialised_from", "parameters", "training_flops")}


def _table(
    registry: Registry, name: str, schema: Any, params: Params, outputs: dict[str, cache.Output]
) -> dict[str, Any]:
    """A table's files, read from the cache, with the range of its key from Parquet's statistics."""
    import pyarrow.parquet as pq

    key = (schema.metadata or {})[b"key"].decode()
    files, lows, highs = [], [], []
    for path, md5 in _files(registry, table_folders(name, params.folder, params.supervise.enabled), outputs):
        cached = cache.cache_path(registry, md5)
        footer = pq.read_metadata(cached)
        files.append({"path": path, "md5": md5, "rows": footer.num_rows, "bytes": cached.stat().st_size})
        # A list column has leaves of another name, so that fields and leaves are numbered differently.
        leaf = next(i for i in range(footer.num_columns) if footer.schema.column(i).path == key)
        for group in range(footer.num_row_groups):
            statistics = footer.row_group(group).column(leaf).statistics
            if statistics is not None and statistics.has_min_max:
                lows.append(str(statistics.min))
                highs.append(str(statistics.max))
    rows = sum(file["rows"] for file in files)
    return {"files": files, "rows": rows, "key": key, "low": min(lows, default=None), "high": max(highs, default=None)}


def _files(registry: Registry, folders: list[str], outputs: dict[str, cache.Output]) -> Iterator[tuple[str, str]]:
    """(path in the registry, MD5) of a table's Parquet files, folder by folder."""
    for where in folders:
        output = next(o for o in outputs.values() if where == o.path or where.startswith(o.path + "/"))
        paths = [(f"{output.path}/{inside}", md5) for inside, md5 in sorted(cache.tree(registry, output).items())]
        # Right there: `problems/` holds the table `excluded` in a folder of its own.
        found = [(path, md5) for path, md5 in paths if path.rpartition("/")[0] == where and path.endswith(".parquet")]
        if not found:
            raise FlywheelError(f"there is no Parquet file in {where}/; its stage must write one, be it without rows")
        yield from found


def _flops(ledger: Path) -> dict[str, dict[str, float]]:
    """FLOPs by kind and by stage over all rows; `fsum`, so that the order and number of shards do not show."""
    try:
        rows = [json.loads(line) for line in ledger.read_text(encoding="utf-8").splitlines() if line]
    except FileNotFoundError:
        raise FlywheelError(
            f"there is no ledger {ledger}; the stages' costs must be written before publishing"
        ) from None
    stages = sorted({row["stage"] for row in rows})
    return {
        "flops": {kind: math.fsum(row[f"flops_{kind}"] for row in rows) for kind in _KINDS},
        "stages": {
            stage: math.fsum(row[f"flops_{kind}"] for row in rows if row["stage"] == stage for kind in _KINDS)
            for stage in stages
        },
    }


def _commit(registry: Registry, params: Params, entry: dict[str, Any], code_revision: str) -> None:
    generation = params.generation
    trailers = {
        "Flywheel-Generation": str(generation),
        "Flywheel-Parent": "none" if params.parent is None else str(params.parent),
        "Flywheel-Run": str(entry["run"]),
        **({"Flywheel-Previous-Tag": tag_object(registry, generation - 1)} if generation else {}),
        "Code-Revision": code_revision,
    }
    text = git.message(f"Publish generation {generation}", trailers)
    paths = [*recorded_paths(registry), "ledger"]
    # What a commit cut off has taken out of the index is still in HEAD, and is to go.
    gone = [path for path in recorded_paths(registry, "HEAD") if path not in paths]
    git.run(registry.root, "add", "-A", "--", *paths)
    paths += gone
    git.run(registry.root, "commit", "-q", "--cleanup=verbatim", "-F", "-", "--only", "--", *paths, stdin=text)
    name = registry.layout.published(generation).relative_to(registry.root).as_posix()
    written = [(registry.root / path).read_bytes() for path in (name, "dvc.lock", "params.yaml")]
    if git.read_many(registry.root, [f"HEAD:{path}" for path in (name, "dvc.lock", "params.yaml")]) != written:
        raise RegistryError(
            f"git in {registry.root} gives back other bytes than were committed; check it with `git fsck`"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FlywheelError(f"there is no {path}; the stage that writes it has not run") from None
    except ValueError as error:
        raise FlywheelError(f"{path} is not JSON: {error}; run the stage that writes it again") from error
    if not isinstance(value, dict):
        raise FlywheelError(f"{path}: got {type(value).__name__}, expected an object")
    return value

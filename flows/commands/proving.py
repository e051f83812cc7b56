"""Proving what was published: verify."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import output
from flows.commands.options import DEFAULT_REGISTRY, Json, RegistryPath

if TYPE_CHECKING:
    from storage.verification.findings import Tell
    from storage.verification.verify import Verdict

_SHOWN = 20
"""Failures of an area that the text lists; `--json` has all."""
_AREAS = {
    "git": ("git", "tag"),
    "manifests": ("manifest", "file"),
    "cache": ("object",),
    "models": ("model",),
    "tables": ("table",),
    "pointers": ("pointer",),
}
"""A line each: its name, and the kinds of failure that belong there."""


def verify(
    registry: RegistryPath = DEFAULT_REGISTRY,
    quick: Annotated[
        bool, typer.Option("--quick", help="Git and sizes only: hash no object, weigh no model, open no table.")
    ] = False,
    jobs: Annotated[int | None, typer.Option(min=1, help="Threads; by default one a core.")] = None,
    as_json: Json = False,
) -> None:
    """Prove the whole history: every object, tag, manifest, model and table is what it says. Exit code 1 if not."""
    from storage.verification.verify import verify as verify_registry

    with _progress() as tell:
        verdict = verify_registry(registry, quick, jobs, tell)
    output.show(as_json, verdict.document(), text_of(verdict))
    if not verdict.ok:
        raise typer.Exit(1)


@contextlib.contextmanager
def _progress() -> Iterator[Tell]:
    """A bar on stderr where that is a terminal."""
    console = output.console(stderr=True)
    if not console.is_terminal:
        yield lambda _what, _done, _of: None
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        bar = progress.add_task("", total=None)
        yield lambda what, done, of: progress.update(bar, description=what, completed=done, total=of)


def text_of(verdict: Verdict) -> str:
    """A line an area, what could not be proved, then each failure in a line of its own with what to do."""
    lines = [
        f"{area:<10} {told}: {_state(verdict, kinds)}" for (area, kinds), told in zip(*_told(verdict), strict=True)
    ]
    lines += [f"note       {note}" for note in verdict.notes]
    for area, kinds in _AREAS.items():
        failures = [failure for failure in verdict.failures if failure.what in kinds]
        lines += [f"{one.what:<10} {one.where}: {one.why}; {one.fix}" for one in failures[:_SHOWN]]
        if len(failures) > _SHOWN:
            lines.append(f"{area:<10} ... and {len(failures) - _SHOWN} more; `--json` lists all")
    count = len(verdict.failures)
    said = "All of it holds" if verdict.ok else f"{count} {'thing does' if count == 1 else 'things do'} not hold"
    return "\n".join([*lines, f"{said}, looked at in {verdict.seconds:.1f} s."])


def _told(verdict: Verdict) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """The areas that were looked at, and what there was in each."""
    counts = {name: f"{number:,}" for name, number in verdict.checked.items()}
    hashed = f"{verdict.checked['bytes'] / 1e6:,.1f} MB hashed at {verdict.bytes_per_second / 1e6:,.0f} MB/s"
    elsewhere = "".join(f", {counts[name]} {name}" for name in ("elsewhere", "lost") if verdict.checked[name])
    told = {
        "git": "{commits} commits, {tags} tags, {anchors} anchors, {git_objects} objects".format_map(counts),
        "manifests": "{manifests} manifests, {files} files of the work tree".format_map(counts),
        "cache": f"{counts['objects']} objects, " + ("not hashed" if verdict.quick else hashed) + elsewhere,
        "models": f"{counts['models']} models weighed, {counts['unverified']} unverified teachers",
        "tables": "{tables} tables, {rows} rows".format_map(counts),
        "pointers": f"{counts['aliases']} aliases",
    }
    skipped = {"models", "tables"} if verdict.quick else set()
    areas = [(area, kinds) for area, kinds in _AREAS.items() if area not in skipped]
    return areas, [told[area] for area, _ in areas]


def _state(verdict: Verdict, kinds: tuple[str, ...]) -> str:
    count = sum(failure.what in kinds for failure in verdict.failures)
    return f"{count} failed" if count else "sound"

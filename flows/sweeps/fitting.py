"""All fits that a sweep's tables allow, their document, their figures and their section of a page."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from flows.plain import json_text
from flows.sweeps import (
    contest,
    hex_document,
    hex_figures,
    hex_fits,
    markdown,
    page,
    paying,
    results,
    text_figures,
    text_fits,
    text_page,
)
from flywheel.errors import InputError
from storage.tables import replace_text, write_table


@dataclass(frozen=True, slots=True)
class Fitted:
    """What `flywheel fit` found."""

    document: dict[str, Any]
    section: Callable[[Path], str]
    """Markdown, given the folder of the pictures as seen from the page."""


def fit(folder: Path, out: Path, draws: int, family: str | None = None) -> Fitted:
    """Fit and draw; `fits.json`, the figures and for boards `ratings.parquet` go to `out`. `family` chooses among
    several of texts. Raises InputError for a folder without tables, and for what the fits cannot do without."""
    if not (folder / "results.parquet").is_file():
        raise InputError(f"there is no {folder}/results.parquet; `flywheel sweep` makes one, give its folder")
    domains = set(pc.unique(results.read(folder)["domain"]).to_pylist())
    if results.contest(folder) is not None:
        fitted = _contest(folder, draws)
    elif domains == {"hex"}:
        fitted = _with_amortization(_hex(folder, out, draws), folder, out, draws)
    elif "hex" not in domains:
        fitted = _with_amortization(_texts(folder, out, draws, family), folder, out, draws)
    else:
        raise InputError(f"{folder} holds results of Hex and of texts; give each a sweep of its own")
    note = results.note(folder)
    document = fitted.document | {"note": note}
    replace_text(out / "fits.json", json_text(document, indent=1) + "\n")
    return Fitted(document, lambda pictures: f"{note}\n\n{fitted.section(pictures)}".strip())


def _contest(folder: Path, draws: int) -> Fitted:
    section = results.contest(folder)
    assert section is not None, folder
    found = contest.held(folder, section, draws)
    return Fitted(dataclasses.asdict(found), lambda _: contest.page(found))


def _hex(folder: Path, out: Path, draws: int) -> Fitted:
    found = hex_fits.fit(folder, draws)
    hex_figures.draw(found, out)
    write_table(out / "ratings.parquet", hex_document.ratings(found))
    return Fitted(hex_fits.as_dict(found), lambda pictures: page.hex_section(found, pictures))


def _texts(folder: Path, out: Path, draws: int, family: str | None) -> Fitted:
    found = text_fits.fit(folder, draws, family=family)
    text_figures.draw(found, text_fits.read(folder, family), out)
    return Fitted(found.as_dict(), lambda pictures: text_page.section(found, pictures))


def _with_amortization(fitted: Fitted, folder: Path, out: Path, draws: int) -> Fitted:
    cells = paying.paid(folder, draws)
    paying.draw(cells, out)
    return Fitted(
        fitted.document | {"amortization": [each.as_dict() for each in cells]},
        lambda pictures: f"{fitted.section(pictures)}\n\n{page.amortization_section(cells, pictures)}",
    )


def write_into_page(fitted: Fitted, folder: Path, out: Path, target: Path) -> None:
    """Put the section into a page, between the marks with the folder's name. Raises InputError without them."""
    pictures = Path(os.path.relpath(out, target.parent))
    markdown.write_into(target, folder.resolve().name, fitted.section(pictures))

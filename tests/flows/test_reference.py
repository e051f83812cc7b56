"""The documents say what the code does: reference pages are current, and the README names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer

from flows.cli import app
from flows.reference import PAGES
from storage import recipes

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", PAGES)
def test_reference_pages_are_current(name: str) -> None:
    """If this fails: python -m flows.reference."""
    assert (ROOT / name).read_text(encoding="utf-8") == PAGES[name]()


def test_everything_in_the_reference_has_a_meaning() -> None:
    for page in PAGES.values():
        assert not re.search(r"\| +\|$", page(), re.MULTILINE)


def test_readme_names_every_command_and_preset() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [name for name in commands if f"flywheel {name}" not in readme] == []
    assert [name for name in recipes.presets() if f"`{name}`" not in readme] == []


def test_links_between_documents_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target:
                assert (page.parent / target).exists(), f"{page.name} links to {target}"

"""A lineage graph as one HTML file: laid out by generation, to pan, search, open and click through.

The page holds the graph as JSON and scripts of our own (`lineage.js` and what it builds on); it loads nothing from
anywhere. Its content security policy lets through those and its style by their digests only, and the scripts put data
into the page as text, never as markup, so that a prompt is shown and not obeyed.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.lineage import Graph

_FILES = ("lineage.html.j2", "lineage.css", "lineage_layout.js", "lineage_words.js", "lineage_search.js", "lineage.js")


def write(graph: Graph, path: Path, registry: str) -> Path:
    """Write the page to `path`. Raises InputError for a folder."""
    from flywheel.errors import InputError
    from storage.tables import replace_text

    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file to write the page to, such as {path / 'graph.html'}")
    replace_text(path, render(graph, registry))
    return path


def render(graph: Graph, registry: str) -> str:
    """The page as text; `registry`: its name, for the heading."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from storage.lineage import outline

    files = importlib.resources.files("flows")
    template, style, *scripts = (files.joinpath(name).read_text(encoding="utf-8") for name in _FILES)
    script = "".join(scripts)
    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    data = {"roots": graph.roots, "nodes": graph.nodes, "edges": graph.edges, "roles": graph.roles}
    return page.from_string(template).render(
        title=f"{registry}: lineage of {graph.roots[0]}",
        registry=registry,
        root=graph.roots[0],
        style=Markup(style),
        script=Markup(script),
        style_digest=_digest(style),
        script_digest=_digest(script),
        data=Markup(embedded(data)),
        outline=outline(graph),
    )


def embedded(value: object) -> str:
    """JSON that can stand in a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

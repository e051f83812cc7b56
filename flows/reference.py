"""The reference pages, written from the code: `python -m flows.reference` makes docs/params.md and docs/commands.md."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def params_page() -> str:
    """Every key of params.yaml: its type, default and meaning."""
    from pydantic import BaseModel

    from flywheel.params import Params

    lines = [
        "# params.yaml",
        "",
        "Everything chosen for one generation. Unknown keys are refused. `--set section.key=value` changes a value",
        "for the generations that a command makes and for those after them; each registry keeps every value that a",
        "generation used. `execution` says how the work is run and never what it yields.",
        "",
        "Written from `flywheel/params.py` by `python -m flows.reference`.",
    ]
    top = [name for name, field in Params.model_fields.items() if not _is_section(field.annotation, BaseModel)]
    lines += ["", "## At the top", *_rows(Params, top)]
    for name, field in Params.model_fields.items():
        section = field.annotation
        if _is_section(section, BaseModel):
            lines += ["", f"## {name}", *_rows(section, list(section.model_fields))]  # type: ignore[union-attr]
    return "\n".join(lines) + "\n"


def _is_section(annotation: Any, base: type) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, base)


def _rows(model: Any, names: list[str]) -> list[str]:
    lines = ["", "| key | default | meaning |", "|---|---|---|"]
    for name in names:
        field = model.model_fields[name]
        default = "null" if field.default is None else _shown(field.default)
        lines.append(f"| `{name}` | `{default}` | {' '.join((field.description or '').split())} |")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    return json.dumps(value) if isinstance(value, str) and "\n" in value else str(value).replace("True", "true")


def commands_page() -> str:
    """Every command with its arguments and options, and the exit codes."""
    import typer

    from flows.cli import app

    group: Any = typer.main.get_command(app)
    lines = [
        "# flywheel on the command line",
        "",
        "`--registry PATH` (or `FLYWHEEL_REGISTRY`, default `registry`) names the registry. With `--json` a command",
        "puts one JSON document on stdout and nothing else; notes and progress go to stderr.",
        "`flywheel --install-completion` sets up shell completion.",
        "",
        "| exit code | means |",
        "|---|---|",
        "| 0 | done |",
        "| 1 | the work failed |",
        "| 2 | bad input or usage |",
        "| 3 | the registry is held by another process, or in conflict |",
        "| 130 | interrupted; `flywheel run` goes on from there |",
        "",
        "Written from `flows/commands/` by `python -m flows.reference`.",
    ]
    for name, command in group.commands.items():
        lines += ["", f"## flywheel {name}", "", " ".join((command.help or "").split()), ""]
        lines += ["| argument or option | default | meaning |", "|---|---|---|"]
        for parameter in command.params:
            shown = ", ".join(f"`{option}`" for option in parameter.opts)
            if parameter.param_type_name == "argument":
                shown = f"`{parameter.metavar or parameter.name.upper()}`"
            default = "" if parameter.default in (None, False, "") or parameter.required else f"`{parameter.default}`"
            lines.append(f"| {shown} | {default} | {' '.join((parameter.help or '').split())} |")
    return "\n".join(lines) + "\n"


PAGES = {"docs/params.md": params_page, "docs/commands.md": commands_page}


def main() -> None:
    """Write the pages below the current folder, the top of a checkout."""
    for name, page in PAGES.items():
        Path(name).write_text(page(), encoding="utf-8")
        sys.stderr.write(f"wrote {name}\n")


if __name__ == "__main__":
    main()

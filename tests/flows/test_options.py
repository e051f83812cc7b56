"""Options that commands share: what their help says is so, and saying it costs no import."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer

from flows.cli import app
from storage import recipes
from tests.flows.command import environment


@pytest.mark.parametrize("name", ["init", "compare"])
def test_the_help_of_preset_lists_those_that_ship(name: str) -> None:
    command: Any = typer.main.get_command(app).commands[name]  # type: ignore[attr-defined]
    text = next(parameter.help for parameter in command.params if parameter.name == "preset")
    assert text == f"A shipped recipe: {', '.join(recipes.presets())}."


def test_the_application_is_there_before_the_params_are() -> None:
    script = "import sys, flows.cli; print([name for name in ('pydantic', 'pyarrow', 'yaml') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout == "[]\n"

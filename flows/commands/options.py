"""Options that several commands share, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flywheel.errors import InputError

if TYPE_CHECKING:
    from storage.registry import Registry

RegistryPath = Annotated[
    Path, typer.Option("--registry", "-r", envvar="FLYWHEEL_REGISTRY", help="The registry's folder.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=V", help="Change a param; may be given again.")
]
# Written out: to ask storage.recipes imports the params, which `--help` would wait for; a test compares.
Preset = Annotated[
    str, typer.Option(help="A shipped recipe: countdown, countdown-4, gsm8k-smoke, hex-3, hex-5, hex-7, smoke.")
]
DEFAULT_REGISTRY = Path("registry")


def generation_number(opened: Registry, text: str) -> int:
    """The number of the generation that `text` names. Raises InputError for any other address."""
    from storage import addresses

    address = addresses.resolve(opened, text)
    if address.generation is None or str(address) != f"gen/{address.generation}":
        raise InputError(f"got {text!r}, expected a generation such as gen/4")
    return address.generation


def numbers(option: str, text: str) -> list[int]:
    """Whole numbers by commas. Raises InputError."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"{option}: got {text!r}, expected whole numbers by commas, e.g. 0,1,2") from None

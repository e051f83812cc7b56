"""Whether what a registry's params name may be used here.

Nothing in a registry is ever executed, but its params may name code to run (a command for failures, a function of the
user's as a reward) or a server that problems are sent to, with the user's key. In a registry made on this machine they
are the user's own words. In a clone they are another's, so they are shown once and not used before
`flywheel run --trust`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from flywheel.errors import ConfigError, RegistryError
from storage.registry import json_text
from storage.tables import replace_text

if TYPE_CHECKING:
    from flywheel.params import Params
    from storage.registry import Registry

MARK = "cloned.json"


def require(registry: Registry, params: Params) -> None:
    """Raise ConfigError where a clone's params name code and nobody has trusted them yet."""
    mark = _mark(registry)
    if mark is None or mark.get("trusted") is True:
        return
    named = {"execution.on_failure": params.execution.on_failure, "reward.function": params.reward.function}
    found = [f"{key}: {value!r} would be run on this machine" for key, value in named.items() if value is not None]
    if params.generate.teacher.startswith(("http://", "https://")):
        found.append(
            f"generate.teacher: problems would be sent to {params.generate.teacher}, with OPENAI_API_KEY if set"
        )
    if found:
        raise ConfigError(
            [*found, "if that is what you want, say so once with `flywheel run --trust`; else change them with --set"],
            f"the recipe, cloned from {mark.get('from')},",
        )


def trust(registry: Registry) -> None:
    """Let a clone's params name code from now on; in a registry of this machine's own it changes nothing."""
    mark = _mark(registry)
    if mark is not None:
        replace_text(registry.layout.local / MARK, json_text({**mark, "trusted": True}))


def _mark(registry: Registry) -> dict[str, Any] | None:
    path = registry.layout.local / MARK
    try:
        mark = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise RegistryError(f"{path} is damaged ({error}); clone the registry anew") from error
    if not isinstance(mark, dict):
        raise RegistryError(f"{path}: got {type(mark).__name__}, expected an object; clone the registry anew")
    return mark

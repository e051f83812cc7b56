"""What a clone's params name is not run before it is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from flywheel.errors import ConfigError
from flywheel.params import load, parse
from storage import trust
from storage.registry import Registry


def _naming_code(registry: Registry, **sections: dict[str, str]) -> None:
    values = load(registry.layout.params).model_dump(mode="json")
    for name, changes in sections.items():
        values[name].update(changes)
    trust.require(registry, parse(values))


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("execution", {"on_failure": "rm -rf ."}),
        ("reward", {"name": "function", "function": "os:system"}),
        ("generate", {"teacher": "http://elsewhere.example/v1"}),
    ],
)
def test_a_clone_names_no_code_before_it_is_trusted(
    fresh: Callable[[int], Registry], section: str, changes: dict[str, str]
) -> None:
    registry = fresh(1)
    _naming_code(registry, **{section: changes})  # made here: the user's own words
    mark = registry.layout.local / trust.MARK
    mark.write_text(json.dumps({"from": "/elsewhere", "trusted": False}), encoding="utf-8")
    _naming_code(registry)
    with pytest.raises(ConfigError, match=r"cloned from /elsewhere.*(?s:.)*would be (run on this machine|sent to)"):
        _naming_code(registry, **{section: changes})
    trust.trust(registry)
    assert json.loads(mark.read_text(encoding="utf-8")) == {"from": "/elsewhere", "trusted": True}
    _naming_code(registry, **{section: changes})

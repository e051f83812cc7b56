"""What differs between two params.yaml: dotted keys with both values; a generation's own number is none of it."""

from __future__ import annotations

from typing import Any

from storage.cache import yaml_mapping

_OWN = ("generation", "folder", "parent")


def changed_params(before: bytes, after: bytes) -> dict[str, list[Any]]:
    """Dotted key -> [value before, value after], in order of the key; None stands for a key that is not there."""
    if _lines(before) == _lines(after):  # as a rule, and parsing takes milliseconds
        return {}
    old, new = (dict(_leaves("", yaml_mapping(text.decode(), "params.yaml"))) for text in (before, after))
    keys = sorted({*old, *new} - set(_OWN))
    return {key: [old.get(key), new.get(key)] for key in keys if old.get(key) != new.get(key)}


def _lines(text: bytes) -> list[bytes]:
    own = tuple(f"{name}:".encode() for name in _OWN)
    return [line for line in text.splitlines() if not line.startswith(own)]


def _leaves(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        return [(prefix, value)]
    return [leaf for name, inner in value.items() for leaf in _leaves(f"{prefix}.{name}".lstrip("."), inner)]

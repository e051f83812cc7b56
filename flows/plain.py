"""Values as JSON has them: records as objects, bytes as hex, null where JSON has no number."""

from __future__ import annotations

import json
import math
from dataclasses import fields, is_dataclass
from typing import Any


def plain(value: Any) -> Any:
    """The value with dataclasses and tuples opened, and null for what is no number and for the infinities."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any, indent: int | None = None) -> str:
    """JSON of a value, made plain."""
    return json.dumps(plain(value), indent=indent, default=_told, allow_nan=False)


def _told(value: Any) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)

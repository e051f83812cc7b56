"""Which objects `flywheel gc` took out of the cache: `.flywheel/dropped.json`, this machine's own.

{"dropped": [MD5s, sorted], "lost": [those of them of which no remote was known to have a copy]}. Written before an
object goes, so that whoever misses one finds it here; one that is back in the cache is no longer dropped, whatever the
file says.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flywheel.errors import RegistryError
from storage.cache import cache_path

if TYPE_CHECKING:
    from storage.registry import Registry


@dataclass(frozen=True, slots=True)
class Dropped:
    """MD5s (`.dir` at the end of a folder's list) that are not in the cache because they were dropped."""

    objects: frozenset[str]
    lost: frozenset[str]


def path(registry: Registry) -> Path:
    """The file; absent where nothing was ever dropped."""
    return registry.layout.local / "dropped.json"


def read(registry: Registry) -> Dropped:
    """What is dropped now. Raises RegistryError for a damaged file."""
    objects, lost = _stated(registry)
    gone = frozenset(md5 for md5 in objects if not cache_path(registry, md5).exists())
    return Dropped(gone, gone & lost)


def add(registry: Registry, objects: Iterable[str], lost: Iterable[str]) -> None:
    """State that `objects` are about to go, `lost` of them without a copy anywhere."""
    new, gone = set(objects), set(lost)
    assert gone <= new
    _change(registry, lambda held, known: (held | new, (known - new) | gone))


def forget(registry: Registry, objects: Iterable[str]) -> None:
    """State that `objects` are back."""
    if path(registry).exists():
        back = set(objects)
        _change(registry, lambda held, known: (held - back, known - back))


def _change(registry: Registry, change: Callable[[set[str], set[str]], tuple[set[str], set[str]]]) -> None:
    from storage.tables import replace_text

    where = path(registry)
    where.parent.mkdir(exist_ok=True)
    # Readers bring objects back without the registry's lock.
    with (where.parent / "dropped.lock").open("a") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        before = _stated(registry)
        after = change(*before)
        if after != before:
            body = {"dropped": sorted(after[0]), "lost": sorted(after[1])}
            replace_text(where, json.dumps(body, indent=1) + "\n")


def _stated(registry: Registry) -> tuple[set[str], set[str]]:
    where = path(registry)
    try:
        body = json.loads(where.read_text(encoding="utf-8"))
        return set(map(str, body["dropped"])), set(map(str, body["lost"]))
    except FileNotFoundError:
        return set(), set()
    except (ValueError, KeyError, TypeError) as error:
        raise RegistryError(
            f"{where} is damaged ({error!r}); remove it: what was dropped then counts as missing until it is brought"
        ) from error

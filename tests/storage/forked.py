"""A registry whose line was left once: generations 0 to 3, rolled back to 1, then 4 with parent 1.

0 -- 1 -- 4        the line HEAD stands on
      \\-- 2 -- 3   rolled back: "bad labels"; 2 was not promoted
"""

from __future__ import annotations

import pytest

from storage.registry import Registry
from storage.rollback import rollback
from tests.storage import sample
from tests.storage.conftest import copy_of, use_identity

REASON = "bad labels"


@pytest.fixture(scope="module")
def forked(made: dict[int, Registry]) -> Registry:
    """Made by the first module that asks; for reading only."""
    target = made[4].root.parent / "forked"
    if target.exists():
        return Registry.open(target)
    with pytest.MonkeyPatch.context() as patch:
        use_identity(patch)
        registry = copy_of(made[4], target)
        rollback(registry, 1, REASON)
        sample.make_generation(registry)
    return registry

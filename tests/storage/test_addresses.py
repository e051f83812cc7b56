"""Addresses: what can be written, and what it means in a real registry."""

from __future__ import annotations

import pytest
import yaml

from flywheel.errors import InputError
from flywheel.records import digest
from storage import git
from storage.addresses import Address, parse, resolve
from storage.registry import Registry
from tests.storage import sample
from tests.storage.forked import forked as forked


@pytest.mark.parametrize(
    ("text", "address", "canonical"),
    [
        ("gen/7", Address("generation", 7), "gen/7"),
        ("gen/0007", Address("generation", 7), "gen/7"),
        (" gen/12345 ", Address("generation", 12345), "gen/12345"),
        ("gen/7/labels", Address("labels", 7), "gen/7/labels"),
        ("gen/0007/student", Address("student", 7), "gen/7/student"),
        ("gen/7/evaluations", Address("evaluations", 7), "gen/7/evaluations"),
        ("gen/7/labels#0AF3", Address("label", 7, "0af3"), "gen/7/labels#0af3"),
        ("model/0af3", Address("model", None, "0af3"), "model/0af3"),
    ],
)
def test_addresses_are_read_and_written(text: str, address: Address, canonical: str) -> None:
    assert parse(text) == address
    assert str(address) == canonical
    assert parse(canonical) == address


@pytest.mark.parametrize(
    "text",
    ["", "7", "gen", "gen/", "gen/-1", "gen/x", "gen/7/", "gen/7/teacher", "gen/7#0a", "gen/7/student#0a",
     "gen/7/labels#", "gen/7/labels#xyz", "model/", "model/a/b", "gen/7/labels#0a'; DROP", "gen/٧", "model/a b"],
)  # fmt: skip
def test_what_is_no_address_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(InputError, match=r"expected gen/7, gen/7/labels, .* or model/<digest>"):
        parse(text)


def test_outputs_resolve_to_what_dvc_recorded(forked: Registry) -> None:
    for generation in (0, 2, 4):
        stages = yaml.safe_load(git.run(forked.root, "show", f"gen/{generation:04d}:dvc.lock"))["stages"]
        outs = {entry["path"]: entry["md5"] for stage in stages.values() for entry in stage["outs"]}
        assert resolve(forked, f"gen/{generation}/labels").digest == outs[f"labels/{generation:04d}"]
        assert resolve(forked, f"gen/{generation}/evaluations").digest == outs["evaluations"]


def test_generations_and_students_resolve(forked: Registry) -> None:
    commit = git.run(forked.root, "rev-parse", "gen/0003^{commit}")
    assert resolve(forked, "gen/3") == Address("generation", 3, commit)
    assert resolve(forked, "gen/0004/student") == Address("student", 4, sample.snapshot_of(4))


def test_a_unique_prefix_of_a_model_will_do(forked: Registry) -> None:
    student = sample.snapshot_of(2)
    assert resolve(forked, f"model/{student[:6]}") == Address("model", 2, student)
    assert resolve(forked, f"model/{sample.SOLVER[:6]}") == Address("model", None, sample.SOLVER)
    base = sample.model_digest(sample.BASE)
    assert resolve(forked, f"model/{base}") == Address("model", None, base)


def test_a_unique_prefix_of_a_label_will_do(forked: Registry) -> None:
    wanted = _labels(4)[0]
    assert resolve(forked, f"gen/4/labels#{wanted[:8]}") == Address("label", 4, wanted)
    assert resolve(forked, f"gen/4/labels#{wanted}") == Address("label", 4, wanted)
    abandoned = _labels(3)[0]
    assert resolve(forked, f"gen/3/labels#{abandoned[:8]}").digest == abandoned


def test_an_ambiguous_prefix_lists_the_candidates(forked: Registry) -> None:
    base = sample.model_digest(sample.BASE)
    models = [*(sample.snapshot_of(generation) for generation in range(5)), base, sample.SOLVER]
    several = _sharing_a_digit(models)
    with pytest.raises(InputError) as caught:
        resolve(forked, f"model/{several[0][0]}")
    assert all(f"model/{snapshot}" in str(caught.value) for snapshot in several)
    labels = _sharing_a_digit(_labels(4))
    with pytest.raises(InputError) as caught:
        resolve(forked, f"gen/4/labels#{labels[0][0]}")
    assert all(f"gen/4/labels#{label}" in str(caught.value) for label in labels)


def test_what_is_not_there_says_what_is(forked: Registry, made: dict[int, Registry]) -> None:
    with pytest.raises(InputError, match=r"gen/9/student.*there are: gen/0, gen/1, gen/2, gen/3, gen/4"):
        resolve(forked, "gen/9/student")
    with pytest.raises(InputError, match=rf"no generation made or used; there are: .*model/{sample.snapshot_of(0)}"):
        resolve(forked, "model/zz")
    with pytest.raises(InputError, match="gen/4 has no label whose id begins so"):
        resolve(forked, f"gen/4/labels#{_labels(3)[0]}")
    with pytest.raises(InputError, match="there are: none yet"):
        resolve(made[0], "gen/0")


def _labels(generation: int) -> list[str]:
    """Ids of the sample's labels, from the rule that makes them."""
    attempts = [digest("attempt", generation, 0, index) for index in range(sample.LABELS + generation)]
    return sorted(digest("label", attempt) for attempt in attempts)


def _sharing_a_digit(names: list[str]) -> list[str]:
    first = next(name[0] for name in sorted(names) if sum(other[0] == name[0] for other in names) > 1)
    return [name for name in sorted(names) if name[0] == first]

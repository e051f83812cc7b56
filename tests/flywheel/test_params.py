"""Params: what is refused and how it is said, overrides, and that file, presets and documentation agree."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from flywheel import params
from flywheel.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]


def problems_of(values: dict[str, object]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        params.parse(values)
    return caught.value.problems


def test_the_shipped_file_holds_the_defaults() -> None:
    loaded = params.load(ROOT / "params.yaml")
    assert loaded == params.Params()
    written = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert written == params.Params().model_dump(mode="json"), "every value stands in the file"


def test_dump_and_load_are_inverse(tmp_path: Path) -> None:
    given_ = params.parse({"seed": 5, "generate": {"teacher": "some/model"}, "evaluate": {"budgets": [2, 8]}})
    (tmp_path / "params.yaml").write_text(params.dump(given_), encoding="utf-8")
    assert params.load(tmp_path / "params.yaml") == given_


@pytest.mark.parametrize("generation", [0, 7, 8, 9, 10, 18, 77, 80, 100, 1234, 8999])
def test_folders_are_names_to_dvc_too(generation: int) -> None:
    """DVC reads YAML 1.2, where an unquoted 0008 is a number; its `labels/${folder}` would then be labels/8."""
    from ruamel.yaml import YAML

    text = params.dump(params.Params().for_generation(generation, None))
    read = YAML(typ="safe").load(text)
    assert read["folder"] == f"{generation:04d}" == yaml.safe_load(text)["folder"]


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_parse(path: Path) -> None:
    changed = yaml.safe_load(path.read_text())
    loaded = params.parse(changed)
    for section, values in changed.items():
        for key, value in values.items():
            got = getattr(getattr(loaded, section), key)
            assert (list(got) if isinstance(got, tuple) else got) == value


def sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    nested = [field.annotation for field in model.model_fields.values()]
    return [model, *[kind for kind in nested if isinstance(kind, type) and issubclass(kind, BaseModel)]]


def test_every_value_is_documented() -> None:
    for section in sections(params.Params):
        for name, field in section.model_fields.items():
            is_section = isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
            assert is_section or field.description, f"{section.__name__}.{name} has no docstring"


def test_an_unknown_key_is_refused_with_a_hint() -> None:
    (problem,) = problems_of({"generate": {"sample": 4}})
    assert problem == "generate.sample: unknown key; did you mean samples?"
    (problem,) = problems_of({"generat": {}})
    assert problem == "generat: unknown key; did you mean generate?"
    (problem,) = problems_of({"seed_labels": {"zzz": 1}})
    assert problem == "seed_labels.zzz: unknown key; known here: problems, per_problem"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"generate": {"samples": 0}}, "generate.samples: got 0; input should be greater than 0"),
        ({"generate": {"samples": "many"}}, "generate.samples: got 'many'"),
        ({"generate": {"samples": 2.5}}, "generate.samples: got 2.5"),
        ({"generate": {"temperature": 0}}, "generate.temperature: got 0"),
        ({"generate": {"temperature": float("nan")}}, "generate.temperature: got nan"),
        ({"generate": {"searcher": "beam_me_up"}}, "generate.searcher: got 'beam_me_up'"),
        ({"generate": 3}, "generate: got 3"),
        ({"filter": {"threshold": float("nan")}}, "filter.threshold: got nan"),
        ({"campaign": {"max_flops": float("inf")}}, "campaign.max_flops: got inf"),
        ({"problems": {"numbers": 7}}, "problems.numbers: got 7"),
        ({"problems": {"smallest": 9, "largest": 3}}, "smallest (9) is above largest (3)"),
        ({"problems": {"numbers": 3, "smallest": 4, "largest": 4}}, "make one hand"),
        ({"problems": {"shares": [0.5, 0.5, 0.5]}}, "add up to 1"),
        ({"problems": {"shares": [1.0, 0.0, 0.0]}}, "three positive numbers"),
        ({"problems": {"shares": [0.5, 0.5]}}, "problems.shares"),
        ({"model": {"hidden_size": 30, "heads": 4}}, "hidden_size (30) must be heads (4) times an even head size"),
        ({"model": {"hidden_size": 12, "heads": 4}}, "even head size"),
        ({"evaluate": {"budgets": [4, 1]}}, "must be a rising list"),
        ({"evaluate": {"budgets": []}}, "must be a rising list"),
        ({"evaluate": {"budgets": [0, 1]}}, "evaluate.budgets.0: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**63}, "seed: got"),
        (
            {"generate": {"teacher": "http://me:hunter2@host:8000/v1"}},
            "generate.teacher: the address of the server at host:8000 holds a user, a password or a query, and params "
            "are kept in git; leave them out and set OPENAI_API_KEY in the environment",
        ),
        ({"execution": {"device": "tpu"}}, "execution.device: got 'tpu'; input should be 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_impossible_values_are_refused(values: dict[str, object], says: str) -> None:
    (problem,) = problems_of(values)
    assert says in problem


def test_every_problem_is_reported_at_once() -> None:
    values = {"generate": {"samples": 0, "sampels": 1}, "evaluate": {"budgets": [3, 2]}, "train": {"epochs": -1}}
    problems = problems_of(values)
    assert len(problems) == 4
    assert {problem.split(":")[0] for problem in problems} == {
        "generate.samples", "generate.sampels", "evaluate.budgets", "train.epochs",
    }  # fmt: skip
    with pytest.raises(ConfigError, match=r"params.yaml has 4 problems:\n  - ") as caught:
        params.parse(values)
    assert caught.value.exit_code == 2


def test_overrides_are_yaml_and_leave_the_original_alone() -> None:
    values: dict[str, object] = {"generate": {"samples": 4}}
    result = params.apply(values, ["generate.samples=8", "filter.window=null", "evaluate.budgets=[1, 2]", "seed=3"])
    assert result == {
        "generate": {"samples": 8}, "filter": {"window": None}, "evaluate": {"budgets": [1, 2]}, "seed": 3,
    }  # fmt: skip
    assert values == {"generate": {"samples": 4}}


def test_bad_overrides_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        params.apply({"seed": 1}, ["samples", "=3", "generation=4", "a=[1", "seed.x=3", "generate.samples=3"])
    assert [problem.split(":")[0] for problem in caught.value.problems] == [
        "--set 'samples'", "--set '=3'", "--set 'generation=4'", "--set 'a=[1'", "--set 'seed.x=3'",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"), [(None, "there is no file"), ("a: [", "not YAML"), ("- 1", "got list, expected sections")]
)
def test_a_file_that_is_no_params(tmp_path: Path, text: str | None, says: str) -> None:
    path = tmp_path / "params.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        params.load(path)


def test_the_digest_is_of_the_recipe_not_of_how_it_is_run() -> None:
    base = params.Params()
    assert base.digest() == params.parse({"execution": {"shards": 9}, "campaign": {"generations": 2}}).digest()
    assert base.digest() != params.parse({"train": {"epochs": 11}}).digest()
    later = base.for_generation(7, 4)
    assert (later.generation, later.folder, later.parent) == (7, "0007", 4)


@settings(deadline=None)
@given(st.dictionaries(st.text(), st.none() | st.integers() | st.text() | st.lists(st.integers()) | st.just({"x": 1})))
def test_any_mapping_gives_params_or_a_config_error(values: dict[str, object]) -> None:
    known = set(params.Params.model_fields)
    if set(values) <= known:
        return
    assert len(problems_of(values)) >= len(set(values) - known)

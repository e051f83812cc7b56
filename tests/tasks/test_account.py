"""The ledger against PyTorch's FLOP counter, stage by stage, on small registries: nothing is left out, nothing is made
up. Also whose work it was, by model, and how long it took."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flywheel import params as parameters
from flywheel.compute import Cost
from flywheel.errors import Interrupted
from flywheel.learning import board_training
from flywheel.models import language
from flywheel.models.checkpoints import weights_digest
from flywheel.params import Params
from flywheel.problems import domain as domains
from storage.layout import Layout
from tasks import evaluate, filter, generate, models, problems, stage, supervise, train
from tasks.stage import Hooks, Report
from tests.tasks.counting import Counted
from tests.tasks.test_boards import laid_out as board_laid_out
from tests.tasks.test_boards import recipe as board_recipe

VALUES: dict[str, Any] = {
    "problems": {"numbers": 3, "train": 120, "valid": 16, "test": 16},
    "seed_labels": {"problems": 60},
    "model": {"hidden_size": 32, "layers": 2, "heads": 2, "intermediate_size": 64},
    "generate": {"samples": 4, "problems": 20, "unit": 10},
    "filter": {"threshold": 0.0},
    "train": {"epochs": 1, "seed_epochs": 12, "patience": 4, "batch_size": 16, "learning_rate": 0.01},
    "supervise": {"enabled": True, "problems": 20, "attempts": 2, "rollouts": 2, "batch_size": 16, "epochs": 1},
    "evaluate": {"budgets": [1, 4]},
    "execution": {"device": "cpu", "threads": 1},
}
SEARCHES: dict[str, dict[str, Any]] = {
    "best_of_n": {},
    "beam": {"searcher": "beam", "width": 2, "max_steps": 3, "lookahead": 1},
}


@dataclass(frozen=True)
class Measured:
    report: Report
    counted: Counted
    models: dict[str, str]
    """By role, the snapshots that may have worked."""

    @property
    def ratio(self) -> float:
        return self.report.cost.executed / self.counted.total


def recipe(generation: int, **changes: Any) -> Params:
    values = {name: {**section, **changes.get(name, {})} for name, section in VALUES.items()}
    values |= {name: section for name, section in changes.items() if name not in values}
    return parameters.parse(values).for_generation(generation, generation - 1 if generation else None)


def begin(layout: Layout, documents: dict[str, Any]) -> None:
    """What `prepare` writes."""
    layout.lineage.mkdir(exist_ok=True)
    for name, document in documents.items():
        (layout.lineage / f"{name}.json").write_text(json.dumps(document), encoding="utf-8")


def teacher(snapshot: str) -> dict[str, Any]:
    return {"kind": "champion", "source": None, "snapshot": snapshot, "generation": 0}


def measured(run: Callable[[Params, Layout], Report], params: Params, layout: Layout) -> Measured:
    """Run a stage under the counter. The trial that says how a model is sampled, which no stage is billed for, is made
    before."""
    models.forget()
    if run is generate.run:
        models.load_teacher(params, layout).shares_prompts  # type: ignore[attr-defined] # noqa: B018
    elif run in (evaluate.run, supervise.run):
        student = models.snapshot_of(layout.student)
        models.load_sampler(str(layout.student), student, params.execution).shares_prompts  # noqa: B018
    counted = Counted()
    report = counted.of(lambda: run(params, layout))
    folders = {"teacher": layout.parent, "student": layout.student, "judge": layout.judge, "made": layout.reward_model}
    named = {role: weights_digest(folder) for role, folder in folders.items() if folder.exists()}
    return Measured(report, counted, named)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """Two generations of Countdown by hand: a seed, its reward model, two searches, a student, its evaluation."""
    layout, seed = Layout(tmp_path_factory.mktemp("account") / "registry"), recipe(0)
    domain = domains.load(seed.problems)
    snapshot = language.create(seed.model, domain.vocabulary(), domain.corpus(), 3, layout.parent)
    nobody, nothing = {"generation": None, "snapshot": None, "valid_greedy": {}, "metrics": None}, {"generations": []}
    begin(layout, {"teacher": teacher(snapshot), "champion": nobody, "tried": nothing, "window": nothing})
    problems.run(seed, layout)
    assert generate.run(seed, layout).cost == Cost(), "a solver takes no FLOPs"
    filter.run(seed, layout)
    found = {"train a seed": measured(train.run, seed, layout), "supervise": measured(supervise.run, seed, layout)}
    found["evaluate"] = measured(evaluate.run, seed, layout)
    shutil.rmtree(layout.parent)
    shutil.copytree(layout.student, layout.parent)
    shutil.copytree(layout.reward_model, layout.judge)
    snapshot, source = weights_digest(layout.judge), "gen/0000/reward_model"
    judge = {"snapshot": snapshot, "generation": 0, "source": source, "judges": True}
    begin(layout, {"teacher": teacher(weights_digest(layout.parent)), "judge": judge})
    judged = {"reward": {"name": "process", "batch_size": 16}, "filter": {"threshold": 0.3}}
    for name, settings in SEARCHES.items():
        more = judged if name == "beam" else {}
        found[name] = measured(generate.run, recipe(1, generate=settings, **more), layout)
    generate.run(recipe(1), layout)
    filter.run(recipe(1), layout)
    found["train"] = measured(train.run, recipe(1), layout)
    found["supervise again"] = measured(supervise.run, recipe(1, supervise={"start": "previous"}), layout)
    found["evaluate, judged"] = measured(evaluate.run, recipe(1, **judged), layout)
    models.forget()
    return found


@pytest.fixture(scope="module", params=["mlp", "conv"])
def boards(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Measured]:
    """A generation of Hex by hand."""
    params = board_recipe(model={"network": request.param, "hidden_size": 8, "layers": 2})
    layout = board_laid_out(tmp_path_factory.mktemp("account") / "registry", params)
    found = {}
    for name, run in (("generate", generate.run), ("filter", filter.run), ("train", train.run),
                      ("evaluate", evaluate.run)):  # fmt: skip
        counted = Counted()
        report = counted.of(lambda run=run: run(params, layout))  # type: ignore[misc]
        folders = {"teacher": layout.parent, "student": layout.student}
        named = {role: weights_digest(folder) for role, folder in folders.items() if folder.exists()}
        found[name] = Measured(report, counted, named)
    return found


STAGES = ["train a seed", "supervise", "evaluate", *SEARCHES, "train", "supervise again", "evaluate, judged"]


@pytest.mark.parametrize("name", STAGES)
def test_the_ledger_is_what_the_counter_counts(texts: dict[str, Measured], name: str) -> None:
    found = texts[name]
    assert found.counted.total > 1e6
    assert found.ratio == pytest.approx(1.0, abs=0.02)
    # What kernels multiply and mask out is not in the ledger; with answers as short as these it is little.
    assert found.report.cost.executed == pytest.approx(found.counted.multiplied, rel=0.1)


@pytest.mark.parametrize("name", ["generate", "train", "evaluate"])
def test_a_board_s_ledger_is_what_the_counter_counts(boards: dict[str, Measured], name: str) -> None:
    assert boards[name].counted.total > 1e5
    assert boards[name].ratio == pytest.approx(1.0, rel=1e-9)


def test_no_stage_without_a_network_takes_flops(boards: dict[str, Measured]) -> None:
    """The filter may ask the solver, which is none."""
    assert boards["filter"].report.cost == Cost()
    assert boards["filter"].counted.total == 0.0


def test_kinds_are_told_apart(texts: dict[str, Measured]) -> None:
    for name, kinds in {
        "train a seed": {"policy", "training"},
        "train": {"policy", "training", "padding"},
        "supervise": {"policy", "prefill", "training", "padding"},
        "evaluate": {"policy", "prefill", "padding"},
        "evaluate, judged": {"policy", "prefill", "padding", "reward"},
        "best_of_n": {"policy", "prefill", "padding"},
        "beam": {"policy", "prefill", "padding", "reward"},
    }.items():
        cost = texts[name].report.cost
        there = {kind for kind in ("policy", "prefill", "reward", "training", "padding") if getattr(cost, kind)}
        assert there - {"reward", "padding"} == kinds - {"reward", "padding"}, name
        assert kinds <= there, name


@pytest.mark.parametrize(
    ("name", "roles"),
    [
        ("train a seed", {"student"}),
        ("supervise", {"student", "made"}),
        ("evaluate", {"student"}),
        ("best_of_n", {"teacher"}),
        ("beam", {"teacher", "judge"}),
        ("train", {"student"}),
        ("supervise again", {"student", "made"}),
        ("evaluate, judged", {"student", "made"}),
    ],
)
def test_work_is_of_the_models_that_did_it(texts: dict[str, Measured], name: str, roles: set[str]) -> None:
    found = texts[name]
    assert set(found.report.models) == {found.models[role] for role in roles}
    adds_up(found.report)
    if name.startswith("supervise"):
        student, made = (found.report.models[found.models[role]] for role in ("student", "made"))
        assert student.training == 0.0 < min(student.policy, student.prefill)
        assert made.policy == made.prefill == 0.0 < made.training
    for role in roles & {"judge", "made"} if "supervise" not in name else ():
        judging = found.report.models[found.models[role]]
        assert (judging.policy, judging.training) == (0.0, 0.0)
        assert judging.reward == found.report.cost.reward > 0.0


def test_a_match_is_of_both_its_players(boards: dict[str, Measured]) -> None:
    report, named = boards["evaluate"].report, boards["evaluate"].models
    assert set(report.models) == {named["student"], named["teacher"]}
    adds_up(report)
    assert set(boards["generate"].report.models) == {named["teacher"]}
    assert set(boards["train"].report.models) == {named["student"]}


def adds_up(report: Report) -> None:
    total = sum(report.models.values(), Cost())
    for kind in ("policy", "prefill", "reward", "training", "padding", "tokens"):
        assert getattr(total, kind) == pytest.approx(getattr(report.cost, kind)), kind
    row = json.loads(report.ledger_row()["models"])
    assert {snapshot: Cost(**cost) for snapshot, cost in row.items()} == report.models


def test_a_sampler_is_tried_once_a_process_and_cheaply(tmp_path: Path) -> None:
    """The one pass that no stage is billed for."""
    params = recipe(0)
    domain = domains.load(params.problems)
    language.create(params.model, domain.vocabulary(), domain.corpus(), 3, tmp_path / "model")
    models.forget()
    sampler = models.load_sampler(str(tmp_path / "model"), None, params.execution)
    counted = Counted()
    counted.of(lambda: sampler.shares_prompts)
    assert 0 < counted.total < 50 * models.load_sampler(str(tmp_path / "model"), None, params.execution).prompt_flops(1)
    again = Counted()
    again.of(lambda: models.load_sampler(str(tmp_path / "model"), None, params.execution).shares_prompts)
    assert again.total == 0.0


def test_seconds_of_a_training_outlive_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks tick a second a step: what an earlier life took is in the ledger too."""
    params = board_recipe()
    layout = board_laid_out(tmp_path / "registry", params)
    generate.run(params, layout)
    filter.run(params, layout)
    alone = Layout(Path(shutil.copytree(layout.root, tmp_path / "alone")))
    now, made = [0.0], [0]
    monkeypatch.setattr(stage.time, "monotonic", lambda: now[0])
    step = board_training._step

    def slow(*arguments: Any) -> Any:
        now[0] += 10.0
        return step(*arguments)

    def stop() -> None:
        made[0] += 1
        if made[0] == 5:
            raise Interrupted("stop")

    monkeypatch.setattr(board_training, "_step", slow)
    whole = train.run(params, alone)
    with pytest.raises(Interrupted):
        train.run(params, layout, Hooks(should_stop=stop))
    report = train.run(params, layout)
    assert report.cost == whole.cost
    assert report.seconds == pytest.approx(whole.seconds) == 10.0 * now[0] / 20.0


@pytest.mark.slow
@pytest.mark.parametrize("layers", [2, 4])
def test_learning_from_pairs_is_counted_too(tmp_path: Path, layers: int) -> None:
    """The reference's pass, the student's last one, and the head that TRL multiplies once more on the way back."""
    from flywheel.learning import preference

    settings = recipe(1, model={**VALUES["model"], "layers": layers}, train={"preference_epochs": 2})
    domain = domains.load(settings.problems)
    language.create(settings.model, domain.vocabulary(), domain.corpus(), 3, tmp_path / "model")
    model = language.load(tmp_path / "model", "cpu")
    pairs = [
        preference.Preference([5, 6, 7 + n], list(range(8, 14 + n % 5)), list(range(9, 12 + n % 3))) for n in range(20)
    ]
    counted = Counted()
    training = counted.of(
        lambda: preference.train(
            model.model, model.tokenizer, pairs, settings.train, seed=1, fill=model.fill_id, work=tmp_path / "work"
        )
    )
    assert training.cost.executed / counted.total == pytest.approx(1.0, abs=0.02)


def test_every_process_of_a_training_is_billed(tmp_path: Path) -> None:
    spent = stage.Spent(tmp_path / "seconds")
    (tmp_path / "seconds").write_text("100.0")
    gone_on = stage.Spent(tmp_path / "seconds")
    assert spent.beyond() == 0.0
    assert gone_on.beyond() == 100.0
    assert gone_on.beyond(3) == pytest.approx(300.0, abs=1.0)

"""The stages of a board game on 3x3: games by the rules, labels that say what search, game and solver said, matches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from flywheel import params as parameters
from flywheel.errors import ConfigError, InputError, Interrupted, ModelError
from flywheel.models import board_net
from flywheel.models.board_net import BoardShape
from flywheel.params import Params
from flywheel.problems.hex import FIRST, NOBODY, cell_of, parse
from flywheel.problems.hex_positions import canonical
from flywheel.problems.hex_solver import WINS, Solver
from storage.layout import Layout
from storage.rows import read_problems
from storage.schemas import ATTEMPTS, LABEL_PARENTS, LABELS, MATCHES, OUTCOMES, REJECTED, SEARCHED, TARGETS, TRAINED_ON
from storage.tables import read_rows
from tasks import evaluate, filter, generate, problems, train
from tasks.boards import matches
from tasks.boards import train as board_train
from tasks.boards.networks import solver_snapshot
from tasks.stage import Hooks

VALUES: dict[str, Any] = {
    "problems": {"domain": "hex", "size": 3, "train": 82, "valid": 20, "test": 40},
    "seed_labels": {"problems": 0},
    "model": {"hidden_size": 16, "layers": 1},
    "generate": {"searcher": "gumbel", "samples": 3, "problems": 12, "unit": 3, "simulations": 8, "sampled_plies": 3},
    "filter": {"threshold": 0.0, "per_problem": None},
    "train": {"epochs": 2, "batch_size": 16},
    "evaluate": {"budgets": [4, 8], "match_budget": 8, "openings": 3},
    "execution": {"device": "cpu", "threads": 1},
}


def recipe(**changes: dict[str, Any]) -> Params:
    values = {name: {**section, **changes.get(name, {})} for name, section in VALUES.items()}
    return parameters.parse(values).for_generation(1, 0)


@pytest.fixture
def board(tmp_path: Path) -> Layout:
    return laid_out(tmp_path / "registry", recipe())


def laid_out(root: Path, settings: Params) -> Layout:
    """A folder laid out for generation 1, with problems and a parent."""
    made = Layout(root)
    snapshot = train.make_base(settings, made.parent)
    made.lineage.mkdir()
    teacher = {"kind": "champion", "source": None, "snapshot": snapshot, "generation": 0}
    metrics = {"valid": None, "elo": {"greedy": {"value": 0.0}}}
    champion = {"generation": 0, "snapshot": snapshot, "valid_greedy": {}, "metrics": metrics}
    for name, document in (
        ("teacher", teacher), ("champion", champion), ("tried", {"generations": []}), ("window", {"generations": []}),
    ):  # fmt: skip
        (made.lineage / f"{name}.json").write_text(json.dumps(document))
    problems.run(settings, made)
    return made


def searched(layout: Layout) -> list[dict[str, Any]]:
    return read_rows(layout.attempts / "searched", SEARCHED)


def targets(layout: Layout) -> list[dict[str, Any]]:
    labels = read_rows(layout.labels(1) / "labels", LABELS)
    found = read_rows(layout.labels(1) / "targets", TARGETS)
    assert [row["label_id"] for row in labels] == [row["label_id"] for row in found]
    return [{**label, **target} for label, target in zip(labels, found, strict=True)]


def test_games_can_be_replayed_and_say_who_won(board: Layout) -> None:
    report = generate.run(recipe(), board)
    games = read_rows(board.attempts, ATTEMPTS)
    assert len(games) == report.rows_out == 12 * 3
    assert len({game["attempt_id"] for game in games}) == len(games)
    at = {(row["attempt_id"], row["ply"]): row for row in searched(board)}
    for game in games:
        state = parse([game["prompt"]])
        opener = int(state.movers[0])
        for step in game["steps"]:
            assert state.winners[0] == NOBODY
            row = at.pop((game["attempt_id"], int(state.plies[0])))
            assert (row["board"], row["mover"], row["move"]) == (state.text(0), state.movers[0], cell_of(step, 3))
            state.play([cell_of(step, 3)])
        assert game["answer"] == ("X" if state.winners[0] == FIRST else "O")
        assert game["reward"] == float(state.winners[0] == opener)
        assert game["output"].split() == game["steps"]
    assert not at, "no position is searched that no game came to"
    assert sum(game["flops_policy"] for game in games) == pytest.approx(report.cost.policy, rel=1e-12)
    assert report.cost.policy % BoardShape("mlp", 16, 1, 3).flops == 0.0


def test_units_and_shards_make_the_same_games(board: Layout) -> None:
    generate.run(recipe(), board)
    whole = [path.read_bytes() for path in sorted(board.attempts.rglob("*.parquet"))]
    for path in board.work(1).glob("generate*"):
        path.unlink() if path.is_file() else [*map(Path.unlink, path.iterdir())]
    for shard in (1, 0):
        generate.run_shard(recipe(), board, shard, 2)
    generate.finish(recipe(), board)
    assert [path.read_bytes() for path in sorted(board.attempts.rglob("*.parquet"))] == whole


def test_a_stop_keeps_the_units_that_are_whole(board: Layout) -> None:
    calls = 0

    def stop() -> None:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise Interrupted("asked to")

    with pytest.raises(Interrupted):
        generate.run_shard(recipe(), board, 0, 1, Hooks(should_stop=stop))
    (folder,) = (path for path in board.work(1).iterdir() if path.is_dir())
    assert len(list(folder.glob("unit-*.parquet"))) == 1
    before = next(folder.glob("unit-*.parquet")).stat().st_mtime_ns
    generate.run(recipe(), board)
    assert (folder / "unit-00000.parquet").stat().st_mtime_ns == before


def test_labels_are_what_search_and_outcome_said_and_never_a_held_out_position(board: Layout) -> None:
    generate.run(recipe(), board)
    report = filter.run(recipe(), board)
    games = {game["attempt_id"]: game for game in read_rows(board.attempts, ATTEMPTS)}
    held_out = {problem.group for problem in read_problems(board.problems, ["valid", "test"])}
    parents = {row["label_id"]: row for row in read_rows(board.labels(1) / "label_parents", LABEL_PARENTS)}
    at = {(row["attempt_id"], row["ply"]): row for row in searched(board)}
    kept = targets(board)
    for row in kept:
        assert parents[row["label_id"]]["role"] == "attempt"
        game = games[parents[row["label_id"]]["parent_id"]]
        found = at.pop((game["attempt_id"], row["ply"]))
        outcome = 1.0 if (game["answer"] == "X") == (row["mover"] == FIRST) else -1.0
        assert row["value"] == outcome
        assert row["policy"] == found["policy"]
        assert row["reward"] == pytest.approx(1 - abs(found["value"] - outcome) / 2)
        assert row["weight"] == 1.0
        assert canonical(row["board"], row["mover"]) not in held_out
        assert row["completion"] in game["steps"]
    dropped = read_rows(board.labels(1) / "rejected", REJECTED)
    assert all(canonical(row["board"], row["mover"]) in held_out for row in at.values())
    assert {(row["attempt_id"], row["reason"]) for row in dropped} == {
        (name, f"ply {ply}: a valid or test position") for name, ply in at
    }
    assert dropped, "on 3x3 some game must come to one of them, or this shows nothing"
    assert (report.rows_in, report.rows_out) == (len(kept) + len(dropped), len(kept))


def test_the_threshold_drops_positions_where_search_and_outcome_disagree(board: Layout) -> None:
    generate.run(recipe(), board)
    filter.run(recipe(filter={"threshold": 0.6}), board)
    low = {(row["attempt_id"], row["ply"]) for row in searched(board)}
    games = {game["attempt_id"]: game for game in read_rows(board.attempts, ATTEMPTS)}
    said = [row["reason"].split(": ")[1] for row in read_rows(board.labels(1) / "rejected", REJECTED)]
    below = 0
    for row in searched(board):
        outcome = 1.0 if (games[row["attempt_id"]]["answer"] == "X") == (row["mover"] == FIRST) else -1.0
        below += 1 - abs(row["value"] - outcome) / 2 < 0.6
    assert 0 < said.count("below threshold") <= below < len(low)
    assert all(row["reward"] >= 0.6 for row in targets(board))


def test_the_solver_has_the_last_word_where_few_cells_are_empty(board: Layout) -> None:
    generate.run(recipe(), board)
    filter.run(recipe(filter={"relabel": 5}), board)
    solver, parents = Solver(3), read_rows(board.labels(1) / "label_parents", LABEL_PARENTS)
    solved = {row["label_id"] for row in parents if row["parent_id"] == solver_snapshot()}
    seen = set()
    for row in targets(board):
        games = parse([row["board"]])
        assert (row["label_id"] in solved) == (row["reward_source"] == "solver") == (row["board"].count(".") <= 5)
        if row["label_id"] not in solved:
            continue
        value = int(solver.solve(games).values[0])
        assert (row["value"], row["reward"]) == (value, 1.0)
        policy = np.array(row["policy"])
        assert policy.sum() == pytest.approx(1.0, abs=1e-5)
        if value == WINS:
            assert (policy[solver.moves(games)[0] != WINS] == 0.0).all()
        seen.add(value)
    assert seen == {1, -1}


def test_surprise_gives_weight_and_keeps_the_mean(board: Layout) -> None:
    generate.run(recipe(), board)
    filter.run(recipe(filter={"surprise": 0.5}), board)
    at = {(row["board"], tuple(row["policy"])): row["surprise"] for row in searched(board)}
    mean = np.mean([row["surprise"] for row in searched(board)])
    for row in targets(board):
        assert row["weight"] == pytest.approx(0.5 + 0.5 * at[row["board"], tuple(row["policy"])] / mean)


def test_moves_that_only_carried_the_game_on_are_no_labels(board: Layout) -> None:
    settings = recipe(generate={"full_share": 0.5, "fast_simulations": 2})
    generate.run(settings, board)
    report = filter.run(settings, board)
    full = [row["full"] for row in searched(board)]
    assert 0 < sum(full) < len(full)
    assert report.rows_in == sum(full)


def test_the_student_learns_the_window_and_says_of_what(board: Layout) -> None:
    generate.run(recipe(), board)
    filter.run(recipe(), board)
    report = train.run(recipe(), board)
    kept = targets(board)
    learned = read_rows(board.training / "trained_on", TRAINED_ON)
    assert [row["label_id"] for row in learned] == [row["label_id"] for row in kept]
    assert {row["epochs"] for row in learned} == {2.0}
    student = board_net.load(board.student)
    assert {row["snapshot"] for row in learned} == {student.snapshot}
    assert student.snapshot != board_net.load(board.parent).snapshot
    assert report.cost.training == student.shape.training_flops * len(kept) * 2
    before = board.student.joinpath("model.safetensors").read_bytes()
    assert train.run(recipe(), board).reused
    (board.work(1) / "train.json").unlink()
    train.run(recipe(), board)
    assert board.student.joinpath("model.safetensors").read_bytes() == before


def test_the_window_s_law_takes_the_newest(board: Layout) -> None:
    assert [board_train.law(n, None) for n in (0, 10**6)] == [0, 10**6]
    assert [board_train.law(n, 100) for n in (50, 100)] == [50, 100]
    # Wu 2019: c = 250,000 labels; of ten times as many 250,000 (1 + 0.4 (10^0.75 - 1) / 0.75) = 866,455 are learned.
    assert board_train.law(2_500_000, 250_000) == 866_455
    settings = recipe(train={"window_law": 20})
    generate.run(settings, board)
    filter.run(settings, board)
    train.run(settings, board)
    kept = [row["label_id"] for row in targets(board)]
    learned = [row["label_id"] for row in read_rows(board.training / "trained_on", TRAINED_ON)]
    assert learned == kept[len(kept) - board_train.law(len(kept), 20) :]
    assert len(learned) < len(kept)


def test_a_generation_without_labels_cannot_train(board: Layout) -> None:
    settings = recipe(generate={"full_share": 1e-9})
    generate.run(settings, board)
    filter.run(settings, board)
    assert not targets(board)
    with pytest.raises(InputError, match="generation 1 has no label to train on"):
        train.run(settings, board)


@pytest.fixture
def evaluated(board: Layout) -> tuple[Layout, dict[str, Any]]:
    generate.run(recipe(), board)
    filter.run(recipe(), board)
    train.run(recipe(), board)
    evaluate.run(recipe(), board)
    return board, json.loads(board.metrics.read_text())


def test_outcomes_say_whether_the_move_keeps_the_win(evaluated: tuple[Layout, dict[str, Any]]) -> None:
    board, metrics = evaluated
    rows = read_rows(board.evaluations / "outcomes", OUTCOMES)
    positions = {problem.problem_id: problem for problem in read_problems(board.problems, ["valid", "test"])}
    net = board_net.load(board.student)
    solver = Solver(3)
    for row in rows:
        if row["metric"] != "greedy":
            continue
        games = parse([positions[row["problem_id"]].payload["board"]])
        logits, _ = board_net.evaluator(net)(games.views().astype(np.float32))
        own = np.full(9, -np.inf)
        own[games.cells_of_views()[0]] = logits[0]
        own[~games.legal()[0]] = -np.inf
        assert row["value"] == float(solver.moves(games)[0, own.argmax()] == WINS)
    cells = {(row["split"], row["metric"], row["budget"]) for row in rows}
    assert cells == {(s, m, b) for s in ("valid", "test") for m, b in (("greedy", 1), ("search", 4), ("search", 8))}
    for split, count in (("valid", 20), ("test", 40)):
        assert set(metrics[split]) == {"greedy", "search@4", "search@8"}
        values = [r["value"] for r in rows if (r["split"], r["metric"], r["budget"]) == (split, "search", 8)]
        assert metrics[split]["search@8"]["value"] == pytest.approx(np.mean(values))
        assert metrics[split]["search@8"]["count"] == count == len(values)


def test_matches_are_played_from_both_sides_by_the_rules(evaluated: tuple[Layout, dict[str, Any]]) -> None:
    board, metrics = evaluated
    openings = {problem.problem_id: problem for problem in read_problems(board.problems, ["train"])}
    rows = read_rows(board.evaluations / "matches", MATCHES)
    assert len(rows) == 6 * 2 * 3
    met: dict[frozenset[str], dict[str, list[str]]] = {}
    for row in rows:
        games = parse([openings[row["problem_id"]].payload["board"]])
        for move in row["moves"].split():
            games.play([cell_of(move, 3)])
        assert row["winner"] == (row["first"] if games.winners[0] == FIRST else row["second"])
        met.setdefault(frozenset((row["first"], row["second"])), {}).setdefault(row["problem_id"], []).append(
            row["first"]
        )
    assert set(met) == {
        frozenset(pair)
        for pair in (
            ("gen/1@8", "gen/1"), ("gen/1", "random"), ("gen/1", "perfect"), ("gen/1@8", "perfect"),
            ("gen/1", "gen/0"), ("gen/1@8", "gen/0@8"),
        )
    }  # fmt: skip
    assert all(set(firsts) == pair for pair, games in met.items() for firsts in games.values())
    assert set(metrics["elo"]) == {"greedy", "search@8", "random"}
    perfect = [row for row in rows if "perfect" in (row["first"], row["second"])]
    assert sum(row["winner"] == "perfect" for row in perfect) * 2 >= len(perfect), "nobody is better than perfect"


@pytest.mark.parametrize(
    "changes",
    [
        {"problems": {"swap": True}, "filter": {"relabel": 5}},
        {"model": {"network": "conv", "hidden_size": 4}, "train": {"ema": 0.9}},
        {"generate": {"searcher": "puct"}, "train": {"start": "base"}},
    ],
    ids=["swap", "conv", "puct"],
)
def test_the_other_rules_networks_and_searches_go_all_the_way(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = recipe(**changes)
    board = laid_out(tmp_path / "registry", settings)
    for stage in (generate, filter, train, evaluate):
        stage.run(settings, board)
    metrics = json.loads(board.metrics.read_text())
    assert metrics["test"]["search@8"]["count"] == 40
    assert set(metrics["elo"]) == {"greedy", "search@8", "random"}
    swaps = [game for game in read_rows(board.attempts, ATTEMPTS) if "swap" in game["steps"]]
    assert bool(swaps) == settings.problems.swap
    shape = board_net.load(board.student).shape
    assert (shape.network, shape.swap) == (settings.model.network, settings.problems.swap)


def test_a_gate_keeps_out_a_student_who_does_not_win_enough(board: Layout) -> None:
    generate.run(recipe(), board)
    filter.run(recipe(), board)
    train.run(recipe(), board)
    for gate, promoted in ((None, True), (0.0, True), (1.0, False)):
        settings = recipe(evaluate={"gate": gate})
        evaluate.run(settings, board)
        decision = json.loads(board.metrics.read_text())["champion"]
        assert decision["promoted"] is promoted
        assert decision["generation"] == int(promoted)
        assert decision["difference"]["count"] == 6


def test_without_perfect_play_ratings_go_on_from_the_champion_s(board: Layout) -> None:
    settings = recipe()
    before = {"generation": 0, "metrics": {"elo": {"greedy": {"value": 250.0}}}}
    budget = settings.evaluate.match_budget
    wins = [("gen/1", "gen/0")] * 3 + [("gen/0", "gen/1"), ("gen/1", "random"), (f"gen/1@{budget}", "gen/1")]
    rows = [{"first": winner, "second": loser, "winner": winner} for winner, loser in wins]
    elo = matches.rated(settings, rows, before)
    # Half a win each way is the prior: 3.5 to 1.5.
    assert elo["greedy"]["value"] == pytest.approx(250 + 400 * np.log10(3.5 / 1.5), abs=1e-6)


def test_a_teacher_of_another_game_or_size_is_refused(board: Layout, tmp_path: Path) -> None:
    from tasks import models

    board_net.create(BoardShape("mlp", 8, 1, 4), 1, tmp_path / "larger")
    with pytest.raises(ModelError, match="boards of 4 cells a side without the swap rule, expected 3"):
        models.identify_teacher(recipe(generate={"teacher": str(tmp_path / "larger")}))
    (tmp_path / "text").mkdir()
    (tmp_path / "text/config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(ModelError, match="model of kind llama, expected a network for Hex"):
        models.identify_teacher(recipe(generate={"teacher": str(tmp_path / "text")}))


def test_settings_of_texts_are_refused_for_boards_and_the_other_way_round() -> None:
    for changes, words in (
        ({"generate": {"searcher": "tree"}}, "searcher tree does not search domain hex"),
        ({"seed_labels": {"problems": 5}}, "seed_labels.problems: got 5, expected 0"),
        ({"model": {"base": "gpt2"}}, "model.base: got 'gpt2', expected None"),
    ):
        with pytest.raises(ConfigError, match=words):
            recipe(**changes)
    with pytest.raises(ConfigError, match="searcher gumbel does not search domain countdown"):
        parameters.parse({"generate": {"searcher": "gumbel"}})
    with pytest.raises(ConfigError, match=r"problems\.size: got 9"):
        recipe(problems={"size": 9})


def test_pairs_of_labels_and_targets_are_of_one_order_in_parts(board: Layout) -> None:
    generate.run(recipe(), board)
    filter.run(recipe(), board)
    for labels, what in zip(
        sorted((board.labels(1) / "labels").glob("*.parquet")), sorted((board.labels(1) / "targets").glob("*.parquet")),
        strict=True,
    ):  # fmt: skip
        assert pq.read_table(labels, columns=["label_id"]).equals(pq.read_table(what, columns=["label_id"]))

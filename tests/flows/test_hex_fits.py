"""Fits to a sweep of Hex whose players' strengths are known: games are drawn from them, the laws must come back."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from flows.sweeps import arena, fitting, hex_figures, hex_fits, markdown, page, paying, results, text_figures
from flows.sweeps.text_calibration import Calibration
from flywheel.errors import InputError
from flywheel.evaluation.intervals import Interval
from flywheel.evaluation.ratings import expected
from flywheel.scaling.tradeoff import Pairs, Tradeoff
from storage.tables import write_table

SLOPE, SIZE_SLOPE, OFFSET = 500.0, -400.0, -2200.0
"""Of the truth: Elo by decades of training and by board size."""
A_DECADE_OF_SEARCH = 350.0
BUDGETS = (0, 4, 16)
OPENINGS = 24
UNSOLVED = 6
"""A board that no solver plays."""


def truth(size: int, flops: float, budget: int) -> float:
    searched = A_DECADE_OF_SEARCH * np.log10(1 + budget)
    return float(min(0.0, SLOPE * np.log10(flops) + SIZE_SLOPE * size + OFFSET + searched))


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two boards, two widths, three seeds, eight snapshots, three budgets."""
    return made(tmp_path_factory.mktemp("sweep"), {4: 8, 5: 8})


@pytest.fixture(scope="module")
def with_an_unsolved_board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A third board whose runs end short of perfection: the truth of the player it is rated by is -96 Elo."""
    return made(tmp_path_factory.mktemp("unsolved"), {4: 8, 5: 8, UNSOLVED: 3})


def made(folder: Path, boards: dict[int, int]) -> Path:
    """Tables of boards with so many generations each."""
    random = np.random.default_rng(5)
    rows: list[dict[str, Any]] = []
    games: list[dict[str, Any]] = []
    for size, generations in boards.items():
        elo = {} if size == UNSOLVED else {arena.PERFECT: 0.0}
        for width in (8, 32):
            for seed in (0, 1, 2):
                run = f"{size}x{size}-w{width}-seed-{seed}"
                for generation in range(generations + 1):
                    flops = 10.0 ** (6.2 + 0.35 * generation + (width == 32) * 0.1 + 0.8 * (size > 4))
                    for budget in BUDGETS:
                        who = arena.name(run, generation, budget)
                        elo[who] = truth(size, flops, budget) + random.normal(0, 15)
                        rows.append(a_row(size, width, seed, run, generation, budget, flops))
        met = [(one, other) for one in elo for other in elo if one < other and abs(elo[one] - elo[other]) < 300]
        chosen = random.choice(len(met), size=900, replace=False)
        for number in chosen.tolist():
            games += played(f"{size}x{size}", *met[number], elo, random)
    write_table(folder / "results.parquet", pa.Table.from_pylist(rows, schema=results.RESULTS))
    problems = [
        {"family": f"{size}x{size}", "problem_id": str(k), "group": str(k)} for size in boards for k in range(4)
    ]
    write_table(folder / "problems.parquet", pa.Table.from_pylist(problems, schema=results.PROBLEMS))
    write_table(folder / "games.parquet", pa.Table.from_pylist(games, schema=arena.GAMES))
    return folder


def changed(folder: Path, target: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    """Tables whose results are others."""
    shutil.copytree(folder, target)
    rows = [row | change(row) for row in results.read(folder).to_pylist()]
    write_table(target / "results.parquet", pa.Table.from_pylist(rows, schema=results.RESULTS))
    return target


def a_row(size: int, width: int, seed: int, run: str, generation: int, budget: int, flops: float) -> dict[str, Any]:
    invested = flops if generation else 0.0
    return {
        "sweep": "known", "family": f"{size}x{size}", "cell": f"w{width}", "seed": seed, "held_back": False,
        "domain": "hex", "size": size, "run": run, "generation": generation, "tag": f"gen/{generation:04d}",
        "tag_object": "0" * 40, "code_revision": "x", "snapshot": f"{run}/{generation}", "parameters": width,
        "hidden_size": width, "layers": 2, "label_budget": 64, "label_flops": invested / 2,
        "training_flops": invested / 2, "reward_model_flops": 0.0, "evaluation_flops": 0.0, "useful_flops": invested,
        "seconds": 1.0, "metric": "search" if budget else "greedy", "budget": budget, "value": 0.5, "low": 0.4,
        "high": 0.6, "count": 4, "query_flops": 1e3 * (1 + budget),
        "outcomes": [1.0, 1.0, float(generation > 2 or budget > 4), 0.0],
    }  # fmt: skip


def played(
    family: str, one: str, other: str, elo: dict[str, float], random: np.random.Generator
) -> list[dict[str, Any]]:
    wins = expected(elo[one] - elo[other])
    return [
        {
            "family": family, "first": first, "second": second, "opening": opening,
            "first_won": bool(random.random() < (wins if first == one else 1 - wins)), "plies": 9,
        }
        for opening in range(OPENINGS)
        for first, second in ((one, other), (other, one))
    ]  # fmt: skip


def test_strengths_slope_and_size_come_back(tables: Path) -> None:
    fits = hex_fits.fit(tables, draws=40)
    assert [(each.size, each.anchor) for each in fits.rated] == [(4, arena.PERFECT), (5, arena.PERFECT)]
    for each in fits.rated:
        off = [each.elo[0, k] - truth(each.size, max(row["train_flops"], 1.0), row["budget"])
               for k, row in enumerate(each.rows) if row["generation"] > 0]  # fmt: skip
        assert np.std(off) < 40
    [first, *_] = fits.frontiers
    fitted, found = first.law, first.intervals
    assert (first.budget, first.boards) == (0, hex_fits.ALL)
    assert found is not None
    assert fitted.slope == pytest.approx(SLOPE, rel=0.12)
    assert found.slope.low < SLOPE < found.slope.high
    assert fitted.compute_factor == pytest.approx(10 ** (-SIZE_SLOPE / SLOPE), rel=0.25)
    line, _ = fits.tradeoffs[5]
    # A decade of training is worth 500 Elo, a decade of simulations 350.
    assert line.slope == pytest.approx(-SLOPE / A_DECADE_OF_SEARCH, rel=0.25)


def test_saturated_points_do_not_flatten_the_slope(tables: Path) -> None:
    fitted = hex_fits.fit(tables, draws=10).frontiers[0].law
    held = fitted.points
    assert (held.elo[~fitted.used] > -50).all()
    assert (held.elo[fitted.used] <= -50).all()


def test_the_page_holds_the_fits_numbers_and_is_written_between_its_marks(tables: Path, tmp_path: Path) -> None:
    fitted = fitting.fit(tables, tmp_path / "out", draws=20)
    text = tmp_path / "page.md"
    text.write_text(f"before\n<!-- {tables.name} -->\nold\n<!-- end of {tables.name} -->\nafter\n", encoding="utf-8")
    fitting.write_into_page(fitted, tables, tmp_path / "out", text)
    written = text.read_text(encoding="utf-8")
    assert written.startswith("before\n")
    assert written.endswith("after\n")
    assert "old" not in written
    slope = fitted.document["frontiers"]["0"][hex_fits.ALL]["slope"]
    assert f"| 0 | all boards | {slope:.0f} |" in written
    assert "(out/frontier.svg)" in written
    # The same tables give the same bytes, pictures too.
    held = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    fitting.fit(tables, tmp_path / "out", draws=20)
    assert held == {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="has no place for other"):
        markdown.write_into(text, "other", "x")


def test_no_fit_sees_a_cell_that_is_held_back(tables: Path, tmp_path: Path) -> None:
    def held_back(row: dict[str, Any]) -> dict[str, Any]:
        return {"held_back": row["cell"] == "w32"}

    def and_other(row: dict[str, Any]) -> dict[str, Any]:
        other = {"label_flops": row["label_flops"] / 30, "query_flops": row["query_flops"] / 30, "parameters": 5}
        return held_back(row) | (other if row["cell"] == "w32" else {})

    one = hex_fits.fit(changed(tables, tmp_path / "one", held_back), draws=10)
    other = hex_fits.fit(changed(tables, tmp_path / "other", and_other), draws=10)
    assert one.frontiers
    assert len(one.tradeoffs) == 2
    assert {str(run) for run in one.frontiers[0].law.points.runs} == {"4x4/w8", "5x5/w8"}
    documents = [hex_fits.as_dict(fits) for fits in (one, other)]
    for name in ("frontiers", "tradeoffs", "variants", "not identified"):
        assert documents[0][name] == documents[1][name]
    # They are rated all the same.
    assert {row["cell"] for row in one.rated[0].rows} == {"w8", "w32"}


def test_no_held_back_player_is_what_a_board_is_rated_by(with_an_unsolved_board: Path, tmp_path: Path) -> None:
    folder = changed(with_an_unsolved_board, tmp_path / "held", lambda row: {"held_back": row["cell"] == "w32"})
    assert hex_fits.fit(folder, draws=10).rated[-1].anchor == "6x6-w8-seed-0/gen/3@16"


def test_two_families_of_one_size_are_refused(tables: Path, tmp_path: Path) -> None:
    folder = changed(tables, tmp_path / "two", lambda row: {"size": 4})
    with pytest.raises(InputError, match="got families 4x4 and 5x5, both of 4x4 boards, expected one a size"):
        hex_fits.fit(folder, draws=10)


def test_boards_without_perfect_play_are_fitted_apart_and_set_lower(with_an_unsolved_board: Path) -> None:
    fits = hex_fits.fit(with_an_unsolved_board, draws=40)
    assert [each.solved for each in fits.rated] == [True, True, False]
    assert fits.rated[2].anchor == "6x6-w32-seed-0/gen/3@16"
    solved, every = fits.frontiers_at(0)
    assert (solved.boards, every.boards) == (hex_fits.SOLVED, hex_fits.ALL)
    assert (set(solved.law.points.sizes), set(every.law.points.sizes)) == ({4, 5}, {4, 5, 6})
    factor = 10 ** (-SIZE_SLOPE / SLOPE)
    assert solved.intervals is not None
    assert solved.intervals.compute_factor.low < factor < solved.intervals.compute_factor.high
    found = {
        each.name: each.compute_factor for each in fits.variants if (each.budget, each.boards) == (0, hex_fits.ALL)
    }
    # The anchor is 96 Elo short of perfection, so that the board seems so much easier than it is.
    short, lowered = found["as above"], found["boards without perfect play 100 Elo lower"]
    assert short == pytest.approx(every.law.compute_factor)
    assert short < found["boards without perfect play 50 Elo lower"] < lowered
    assert abs(np.log(lowered / factor)) < 0.5 * abs(np.log(short / factor))
    assert not any("lower" in each.name for each in fits.variants if each.boards == hex_fits.SOLVED)
    section = page.hex_section(fits, Path("figures"))
    for each in (solved, every):
        assert f"| 0 | {each.boards} | {each.law.slope:.0f} | {each.intervals.slope.low:.0f} to" in section
    assert (
        "`6x6-w32-seed-0/gen/3@16`. If that player is x Elo short of perfect play, all points of 6x6 lie x" in section
    )
    assert [board["perfect_play"] for board in hex_fits.as_dict(fits)["boards"]] == [True, True, False]


def test_a_sweep_without_an_arena_is_told_what_its_file_needs(tables: Path, tmp_path: Path) -> None:
    folder = changed(tables, tmp_path / "none", lambda row: {})
    (folder / "games.parquet").unlink()
    with pytest.raises(InputError, match="the sweep's file needs `arena:`"):
        hex_fits.fit(folder, draws=10)


def test_the_tradeoff_is_told_with_fewer_players_too(tables: Path) -> None:
    fits = hex_fits.fit(tables, draws=10)
    for size, (line, _) in fits.tradeoffs.items():
        told = {each.name: each for each in fits.tradeoff_variants if each.size == size}
        assert (told["as above"].slope, told["as above"].within) == (line.slope, line.within)
        for name in told.keys() - {"as above"}:
            assert told[name].slope != line.slope, name
    assert "| without the largest network |" in page.hex_section(fits, Path())


def test_a_board_without_games_is_named(tables: Path, tmp_path: Path) -> None:
    folder = changed(tables, tmp_path / "some", lambda row: {})
    games = pq.read_table(folder / "games.parquet")
    write_table(folder / "games.parquet", games.filter(pc.equal(games["family"], "4x4")))
    found = hex_fits.fit(folder, draws=10)
    assert found.reasons["5x5, 5x5"] == "no games yet: they are played once all runs of a seed are made"


def test_one_network_is_one_of_one_width_and_depth(tables: Path, tmp_path: Path) -> None:
    """Cells of one name that differ in depth are no network in common."""
    names = {each.name for each in hex_fits.fit(tables, draws=10).variants}
    assert "4x4 and 5x5 alone, one network: 32 wide, 2 layers" in names
    deeper = changed(tables, tmp_path / "deeper", lambda row: {"layers": 4 if row["size"] == 5 else 2})
    assert not any("network" in each.name for each in hex_fits.fit(deeper, draws=10).variants)


def test_a_seed_that_has_not_come_as_far_is_left_out_of_what_is_paid(tables: Path, tmp_path: Path) -> None:
    whole = paying.paid(tables, 20)
    rows = results.read(tables).to_pylist()
    last = max(row["generation"] for row in rows)
    short = [row for row in rows if row["seed"] != 1 or row["generation"] < last]
    folder = changed(tables, tmp_path / "short", lambda row: {})
    write_table(folder / "results.parquet", pa.Table.from_pylist(short, schema=results.RESULTS))
    found = paying.paid(folder, 20)
    assert [each.cell for each in found] == [each.cell for each in whole]
    for each, before in zip(found, whole, strict=True):
        assert each.seeds == before.seeds - 1
        assert each.document["rows"][-1]["name"] == before.document["rows"][-1]["name"] == f"gen/{last}"


def test_a_reward_model_of_generation_0_is_paid_for(tables: Path, tmp_path: Path) -> None:
    folder = changed(tables, tmp_path / "guided", lambda row: {"reward_model_flops": 1e6})
    for each, before in zip(paying.paid(folder, 20), paying.paid(tables, 20), strict=True):
        more = [one["investment_flops"] - other["investment_flops"]
                for one, other in zip(each.document["rows"], before.document["rows"], strict=True)]  # fmt: skip
        assert more == pytest.approx([0.0, *[1e6] * (len(more) - 1)])


def test_figures_show_however_many_boards_and_levels_there_are(tables: Path, tmp_path: Path) -> None:
    some = hex_fits.fit(tables, draws=10)
    levels = np.repeat(np.arange(-1500.0, 0.0, 100.0), 2)
    pairs = Pairs(levels, np.tile([1e6, 1e8], 15), np.tile([1e5, 1e4], 15))
    many = dataclasses.replace(
        some,
        rated=[dataclasses.replace(some.rated[0], size=size) for size in range(3, 13)],
        frontiers=[],
        tradeoffs={4: (Tradeoff(-0.5, 1e-3, 8.0, pairs, -0.6, np.zeros(30)), None)},
    )
    hex_figures.draw(many, tmp_path)
    drawn = (tmp_path / "frontier.svg").read_text(encoding="utf-8")
    assert all(f">{size}x{size}<" in drawn for size in range(3, 13))
    drawn = (tmp_path / "tradeoff.svg").read_text(encoding="utf-8")
    assert all(f">{sign}{level}<" in drawn for sign in ("-",) for level in range(100, 1600, 100))


def test_a_figure_of_calibration_shows_however_many_cells_are_held_back(tmp_path: Path) -> None:
    names = [f"cell-{number}" for number in range(9)]
    told = SimpleNamespace(
        configurations=[SimpleNamespace(configuration=name) for name in names],
        rows=[
            SimpleNamespace(configuration=name, predicted=Interval(0.5, 0.4, 0.6, 10), measured=0.5) for name in names
        ],
    )
    text_figures._calibration(cast(Calibration, told), tmp_path / "calibration")
    drawn = (tmp_path / "calibration.svg").read_text(encoding="utf-8")
    assert all(f">{name}<" in drawn for name in names)

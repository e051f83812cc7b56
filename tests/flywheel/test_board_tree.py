"""Tree search against an independent slow one, position by position; against the exact solver; and against itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flywheel.errors import ModelError
from flywheel.problems.hex import NOBODY, Games, parse
from flywheel.problems.hex_solver import LOSES, WINS, Solver
from flywheel.search.board_tree import TreeSearch
from flywheel.seeds import uniform
from tests.flywheel.board_worlds import keys, knows_nothing, network, positions

# An independent search, one game at a time, from the papers' formulas.


@dataclass
class Node:
    game: Games
    search: TreeSearch
    logits: npt.NDArray[np.float64] | None = None
    """By cell; -inf where illegal."""
    raw: float = -1.0
    total: float = 0.0
    visits: int = 0
    known: int = 0
    children: dict[int, Node] = field(default_factory=dict)

    @property
    def over(self) -> bool:
        return bool(self.game.winners[0] != NOBODY)

    @property
    def value(self) -> float:
        return float(self.known) if self.known else self.total / self.visits

    def ask(self) -> None:
        size, second = self.game.size, self.game.movers[0] == 1
        stones = self.game.stones()[0].reshape(size, size)
        seen = -stones.T if second else stones
        (logits,), (self.raw,) = network(np.stack([seen > 0, seen < 0])[None].astype(np.float32))
        by_cell = logits.reshape(size, size).T.ravel() if second else logits
        self.logits = np.where(self.game.legal()[0], by_cell.astype(np.float64), -np.inf)

    def q(self) -> dict[int, float]:
        return {move: -child.value for move, child in self.children.items()}

    def counts(self) -> npt.NDArray[np.int64]:
        return np.array(
            [self.children[move].visits if move in self.children else 0 for move in range(len(self.logits))]
        )

    def open(self) -> npt.NDArray[np.bool_]:
        losing = [move for move, child in self.children.items() if child.known == 1]
        return np.isfinite(self.logits) & ~np.isin(np.arange(len(self.logits)), losing)

    def priors(self) -> npt.NDArray[np.float64]:
        weights = np.exp(self.logits - self.logits.max())
        return weights / weights.sum()

    def transformed(self) -> npt.NDArray[np.float64]:
        """sigma(completed q), values rescaled to 0..1 over the legal moves."""
        q, priors, counts = self.q(), self.priors(), self.counts()
        mixed = self.raw
        if q:
            mass = sum(priors[move] for move in q)
            average = sum(priors[move] * value for move, value in q.items()) / mass
            mixed = (self.raw + counts.sum() * average) / (1 + counts.sum())
        completed = np.array([q.get(move, mixed) for move in range(len(priors))])
        legal = completed[np.isfinite(self.logits)]
        span = max(legal.max() - legal.min(), 1e-8)
        weight = (self.search.visit_offset + counts.max()) * self.search.value_scale
        return weight * (completed - legal.min()) / span

    def improved(self) -> npt.NDArray[np.float64]:
        scores = np.where(self.open(), self.logits + self.transformed(), -np.inf)
        weights = np.exp(scores - scores.max())
        return weights / weights.sum()


def halving(considered: int, simulations: int) -> list[int]:
    """Visits of the moves in question before each simulation (Danihelka et al., algorithm 1)."""
    if considered == 1:
        return list(range(simulations))
    plan: list[int] = []
    left, visits = considered, [0] * considered
    rounds = math.ceil(math.log2(considered))
    while len(plan) < simulations:
        for _ in range(max(1, int(simulations / (rounds * left)))):
            plan += visits[:left]
            visits[:left] = [count + 1 for count in visits[:left]]
        left = max(2, left // 2)
    return plan[:simulations]


def slow(games: Games, search: TreeSearch, simulations: int, noise: npt.NDArray[np.float64]) -> dict[str, Any]:
    root = Node(games, search)
    root.ask()
    root.total, root.visits = root.raw, 1
    plan = halving(min(search.considered, int(games.legal().sum())), simulations)
    if search.root == "puct" and search.noise_share:
        root.logits = np.log(np.maximum((1 - search.noise_share) * root.priors() + search.noise_share * noise, 1e-300))
        root.logits[~games.legal()[0]] = -np.inf
    for simulation in range(simulations):
        if root.known:
            break
        path, node = [root], root
        while True:
            if search.root == "puct":
                priors, counts = node.priors(), node.counts()
                values = np.array([node.q().get(move, 0.0) for move in range(len(priors))])
                scores = values + search.exploration * priors * math.sqrt(1 + counts.sum()) / (1 + counts)
            else:
                asked = node.open() & (node.counts() == plan[simulation])
                if node is root and asked.any():
                    scores = np.where(asked, noise + node.logits + node.transformed(), -np.inf)
                else:
                    scores = node.improved() - node.counts() / (1 + node.counts().sum())
            move = int(np.where(node.open(), scores, -np.inf).argmax())
            fresh = move not in node.children
            if fresh:
                after = node.game.select(np.array([0]))
                after.play([move])
                node.children[move] = Node(after, search)
            node = node.children[move]
            path.append(node)
            if node.over or node.known or fresh:
                break
        if node.over:
            node.known = -1 if search.solve else 0
        elif fresh:
            node.ask()
        value = float(node.known) if node.known else node.raw
        for above in reversed(path):
            above.visits += 1
            if search.solve and not above.known and above is not node:
                if any(child.known == -1 for child in above.children.values()):
                    above.known = 1
                elif not above.open().any():
                    above.known = -1
                value = float(above.known) if above.known else value
            above.total += value
            value = -value
    return {"visits": root.counts(), "value": root.value, "known": root.known, "root": root}


@pytest.mark.parametrize("solve", [True, False])
@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize(
    ("size", "plies", "simulations", "considered", "weights"),
    [
        (3, 0, 40, 16, {}), (3, 3, 60, 4, {}), (5, 2, 50, 16, {}), (4, 7, 90, 3, {}), (4, 5, 7, 1, {}),
        # Values that weigh little or much beside priors and noise.
        (4, 5, 80, 6, {"value_scale": 0.03, "visit_offset": 1.0, "exploration": 0.3}),
        (5, 4, 60, 5, {"value_scale": 0.3, "visit_offset": 4.0, "exploration": 4.0}),
        (5, 2, 60, 8, {"value_scale": 1.0, "visit_offset": 0.0}), (5, 3, 8, 4, {"value_scale": 0.02}),
    ],
)  # fmt: skip
def test_every_tree_is_that_of_an_independent_search(
    size: int, plies: int, simulations: int, considered: int, weights: dict[str, float], root: Any, solve: bool
) -> None:
    games = positions(size, max(12, 640 // simulations), plies)
    search = TreeSearch(simulations, root, considered, solve=solve, **weights)
    found = search.search(games, network, keys(len(games)))
    noise = search._noise(games, keys(len(games)))
    for number in range(len(games)):
        expected = slow(games.select(np.array([number])), search, simulations, noise[number])
        node = expected["root"]
        assert found.visits[number].tolist() == expected["visits"].tolist()
        assert found.proven[number] == expected["known"]
        assert found.values[number] == pytest.approx(expected["value"], abs=1e-6)
        if found.proven[number] == 0:
            if root == "gumbel":
                policy = node.improved()
                best = np.where(node.open(), node.counts(), -1)
                scores = np.where(best == best.max(), noise[number] + node.logits + node.transformed(), -np.inf)
                assert found.moves[number] == scores.argmax()
            else:
                policy = np.where(node.open(), node.counts(), 0)
                policy = policy / policy.sum() if policy.any() else np.where(node.open(), node.priors(), 0.0)
                policy = policy / policy.sum()
                assert found.moves[number] == np.where(node.open(), node.counts(), -1).argmax()
            assert found.policies[number] == pytest.approx(policy, abs=1e-5)
        elif found.proven[number] == 1:
            assert found.policies[number, found.moves[number]] == 1.0
            assert node.children[int(found.moves[number])].known == -1
    assert found.policies.sum(axis=1) == pytest.approx(np.ones(len(games)), abs=1e-5)


@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize(("size", "plies"), [(3, 2), (4, 8)])
def test_what_is_proven_is_what_the_solver_says(size: int, plies: int, root: Any) -> None:
    games = positions(size, 30, plies)
    found = TreeSearch(2000, root).search(games, knows_nothing, keys(len(games)))
    assert found.proven.tolist() == Solver(size).solve(games).values.tolist(), "so small a tree is searched to its end"
    assert set(found.proven.tolist()) == {WINS, LOSES}
    values = Solver(size).moves(games)
    for number in np.flatnonzero(found.proven == 1):
        assert values[number, found.moves[number]] == WINS
        assert found.policies[number].argmax() == found.moves[number]


def test_values_are_spread_from_0_to_1_with_that_of_the_moves_not_tried() -> None:
    """Four moves of nearly one value, of which the last is the best and the first the likeliest. The moves not tried
    have, by way of the root's own value, another or the same: beside that the differences are little or much."""

    def network_for(root: float) -> Any:
        def network(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
            logits = np.tile(-0.5 * np.arange(25, dtype=np.float32), (len(views), 1))
            values = np.full(len(views), root, np.float32)
            for number, view in enumerate(views):
                if view.sum() == 1.0:
                    # The second player's, who sees the board mirrored.
                    values[number] = -0.001 * view[1].T.ravel().argmax()
            return logits, values

        return network

    for root, expected in ((0.9, [2, 1, 1, 1]), (0.0, [1, 1, 1, 2])):
        search = TreeSearch(5, considered=4, gumbel_scale=0.0)
        assert search.search(Games(5, 1), network_for(root), keys(1)).visits[0, :4].tolist() == expected


def test_games_do_not_see_one_another() -> None:
    """Different positions and budgets together, alone, and in another order."""
    games = positions(5, 20, 4)
    names = keys(len(games))
    budgets = np.array([1 + 7 * number % 40 for number in range(len(games))], np.int64)
    together = TreeSearch(64).search(games, network, names, budgets)
    order = np.random.default_rng(0).permutation(len(games))
    shuffled = TreeSearch(64).search(games.select(order), network, names[order], budgets[order])
    for number in range(len(games)):
        one = TreeSearch(int(budgets[number])).search(games.select(np.array([number])), network, names[[number]])
        place = int(np.flatnonzero(order == number)[0])
        for other, row in ((together, number), (shuffled, place)):
            assert one.visits[0].tolist() == other.visits[row].tolist()
            assert one.policies[0].tolist() == other.policies[row].tolist()
            assert one.moves[0] == other.moves[row]
        assert one.visits.sum() == budgets[number] or one.proven[0] != 0
    assert (together.visits[games.boards != 0] == 0).all()


def test_more_simulations_play_better_than_fewer() -> None:
    """With a network that knows nothing; a blunder is a move that loses where one wins, as the solver knows."""
    games = positions(4, 400, 6)
    values = Solver(4).moves(games)
    decided = (values == WINS).any(axis=1) & ((values == LOSES) & games.legal()).any(axis=1)
    games, values = games.select(decided), values[decided]
    blunders = []
    for simulations, solve in ((2, True), (64, True), (400, True), (400, False)):
        found = TreeSearch(simulations, solve=solve).search(games, knows_nothing, keys(len(games)))
        blunders.append(float((values[np.arange(len(games)), found.moves] == LOSES).mean()))
    assert len(games) > 200
    assert blunders[2] < 0.7 * blunders[0]
    assert blunders[2] < blunders[1] < blunders[0]
    assert blunders[2] < blunders[3]


def test_bad_input() -> None:
    for settings in (
        {"simulations": 0}, {"simulations": 1, "considered": 0}, {"simulations": 1, "noise_share": 1.5},
        {"simulations": 1, "noise_alpha": 0.0}, {"simulations": 1, "root": "gumble"},
        {"simulations": 1, "exploration": -1.0},
    ):  # fmt: skip
        with pytest.raises(ValueError, match="expected"):
            TreeSearch(**settings)  # type: ignore[arg-type]
    games = Games(3, 2)
    for names, budgets in ((keys(1), None), (keys(2), np.array([1])), (keys(2), np.array([1, 0]))):
        with pytest.raises(ValueError, match="a key and a budget of 1 or more for each of 2 games"):
            TreeSearch(2).search(games, network, names, budgets)
    for move in (0, 1, 3, 2, 6):
        games.play([move, move])
    assert games.winners.tolist() == [0, 0]
    with pytest.raises(ValueError, match="a game that is over"):
        TreeSearch(2).search(games, network, keys(2))
    none = TreeSearch(2).search(Games(3, 0), network, keys(0))
    assert none.moves.shape == (0,)


@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize("low", [-np.inf, -1e9, -1e38])
def test_a_move_that_the_network_masks_is_still_a_move(root: Any, low: float) -> None:
    """X wins by c1 alone (cell 6), which the network says is not there."""

    def masking(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        logits, values = knows_nothing(views)
        logits[views.sum(axis=(1, 2, 3)) == 4, 6] = low
        return logits, values

    games = parse(["X.O/XO./..."])
    assert Solver(3).moves(games)[0].tolist() == [LOSES] * 6 + [WINS] + [LOSES] * 2
    found = TreeSearch(500, root).search(games, masking, keys(1))
    assert (found.proven[0], found.moves[0]) == (WINS, 6)
    few = TreeSearch(3, root).search(games, masking, keys(1))
    assert few.proven[0] != LOSES


def test_a_favourite_that_turns_out_to_lose_is_not_played() -> None:
    def misled(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        logits, values = knows_nothing(views)
        logits[views.sum(axis=(1, 2, 3)) == 4, 1] = 40.0
        return logits, values

    games = parse(["X.O/XO./..."])
    for simulations in (4, 8, 60):
        found = TreeSearch(simulations, "puct", noise_share=0.0).search(games, misled, keys(1))
        if found.policies[0, 1] == 0.0:
            assert found.moves[0] != 1
    assert (found.proven[0], found.moves[0], found.policies[0, 1]) == (WINS, 6, 0.0)


def test_with_the_swap_nobody_loses_the_second_move() -> None:
    """Whoever answers takes a winning stone over, and leaves a losing one."""
    games = Games(3, 9, swap=True)
    games.play(np.arange(9))
    takes_over = Solver(3).solve(games).values == LOSES

    def network(views: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        assert views.shape[1:] == (3, 3, 3)
        assert set(views[:, 2].mean(axis=(1, 2)).tolist()) <= {0.0, 1.0}
        return np.zeros((len(views), 10), np.float32), np.zeros(len(views), np.float32)

    for root in ("gumbel", "puct"):
        found = TreeSearch(3000, root).search(games, network, keys(9))  # type: ignore[arg-type]
        assert (found.proven != LOSES).all()
        proven = found.proven == WINS
        assert proven.sum() >= 5
        assert ((found.moves == 9) == takes_over)[proven].all()


@pytest.mark.parametrize(
    ("logits", "values", "reason"),
    [
        (np.full((1, 9), np.nan), np.zeros(1), "no numbers"), (np.full((1, 9), np.inf), np.zeros(1), "no numbers"),
        (np.zeros((1, 9)), np.full(1, np.nan), "no numbers"), (np.zeros((1, 8)), np.zeros(1), r"shape \(1, 8\)"),
        (np.zeros((1, 9)), np.zeros((1, 1)), r"values of shape \(1, 1\)"),
    ],
)  # fmt: skip
def test_a_network_that_is_broken(logits: Any, values: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        TreeSearch(2).search(Games(3, 1), lambda _: (logits, values), keys(1))


def test_noise_is_a_games_own() -> None:
    drawn = TreeSearch(1)._noise(Games(5, 2000), keys(2000))
    # Gumbel(0, 1): mean 0.5772, variance pi^2 / 6; 50,000 draws.
    assert drawn.mean() == pytest.approx(0.5772, abs=0.025)
    assert drawn.var() == pytest.approx(math.pi**2 / 6, abs=0.06)
    assert (uniform(keys(3)[:, None], np.arange(25)[None, :]) > 0).all()
    share = TreeSearch(1, "puct")._noise(positions(5, 100, 6), keys(len(positions(5, 100, 6))))
    assert share.sum(axis=1) == pytest.approx(1.0)

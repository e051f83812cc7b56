"""Several leaves of a game at once: against an independent search with virtual loss, the exact solver, and itself; and
games in batches, by threads, and beyond memory."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flywheel.errors import InputError, ModelError
from flywheel.problems.hex import NOBODY, Games, parse
from flywheel.problems.hex_solver import LOSES, WINS, Solver
from flywheel.search import board_steps, board_tree
from flywheel.search.board_tree import Found, TreeSearch
from tests.flywheel.board_worlds import Answer, keys, knows_nothing, network, positions


@pytest.fixture
def trees(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The trees that searches have come to, as they are when the searches conclude."""
    found: list[Any] = []

    def concluding(tree: Any, *rest: Any) -> None:
        found.append(tree)
        conclude(tree, *rest)

    conclude = board_steps.conclude
    monkeypatch.setattr(board_tree.board_steps, "conclude", concluding)
    return found


def same(one: Found, other: Found) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("moves", "policies", "priors", "values", "visits", "proven")
    )


# An independent search with virtual loss, PUCT without proofs: W and N as in AlphaZero, of the player who moves there.


@dataclass
class Edge:
    prior: float
    game: Games
    n: int = 0
    w: float = 0.0
    waiting: int = 0
    edges: dict[int, Edge] = field(default_factory=dict)
    raw: float = 0.0

    def score(self, reach: float) -> float:
        n, w = self.n + self.waiting, self.w - self.waiting
        return (w / n if n else 0.0) + reach * self.prior / (1 + n)


def open_edge(edge: Edge) -> None:
    game, size = edge.game, edge.game.size
    stones = game.stones()[0].reshape(size, size)
    seen = -stones.T if game.movers[0] == 1 else stones
    (logits,), (edge.raw,) = network(np.stack([seen > 0, seen < 0])[None].astype(np.float32))
    by_cell = (logits.reshape(size, size).T if game.movers[0] == 1 else logits.reshape(size, size)).ravel()
    weights = np.where(game.legal()[0], np.exp(by_cell.astype(np.float64)), 0.0)
    for move in np.flatnonzero(weights):
        edge.edges[int(move)] = Edge(float(weights[move] / weights.sum()), game)


def slow(game: Games, simulations: int, parallel: int) -> npt.NDArray[np.int64]:
    """Visits of the root's moves."""
    root, done = Edge(1.0, game), 0
    open_edge(root)
    root.n = 1
    while done < simulations:
        gathered: list[list[Edge]] = []
        while len(gathered) < parallel and done + len(gathered) < simulations:
            path = [root]
            while path[-1].edges:
                node = path[-1]
                total = node.n + node.waiting
                move = max(node.edges, key=lambda m: (node.edges[m].score(1.25 * math.sqrt(total)), -m))
                child = node.edges[move]
                if not child.n and not child.waiting:
                    child.game = node.game.select(np.array([0]))
                    child.game.play([move])
                path.append(child)
            leaf = path[-1]
            won = leaf.game.winners[0] != NOBODY
            if won:
                back(path, -1.0)
                done += 1
            elif leaf.waiting:
                break
            else:
                for edge in path:
                    edge.waiting += 1
                gathered.append(path)
        for path in gathered:
            for edge in path:
                edge.waiting -= 1
        for path in gathered:
            open_edge(path[-1])
            back(path, path[-1].raw)
            done += 1
    return np.array([root.edges[m].n if m in root.edges else 0 for m in range(game.size**2)])


def back(path: list[Edge], value: float) -> None:
    for edge in reversed(path):
        edge.n += 1
        edge.w -= value
        value = -value


@pytest.mark.parametrize("parallel", [1, 2, 5, 16])
@pytest.mark.parametrize(("size", "plies", "simulations"), [(5, 2, 60), (3, 4, 50), (4, 6, 71)])
def test_the_tree_is_that_of_an_independent_search(size: int, plies: int, simulations: int, parallel: int) -> None:
    games = positions(size, 8, plies)
    search = TreeSearch(simulations, "puct", noise_share=0.0, solve=False, parallel=parallel)
    found = search.search(games, network, keys(len(games)))
    for number in range(len(games)):
        expected = slow(games.select(np.array([number])), simulations, parallel)
        assert found.visits[number].tolist() == expected.tolist()


@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize("solve", [True, False])
@pytest.mark.parametrize(("parallel", "simulations"), [(1, 40), (3, 40), (8, 64), (30, 64), (8, 5)])
def test_what_was_lost_virtually_is_taken_back(
    root: Any, solve: bool, parallel: int, simulations: int, trees: list[Any]
) -> None:
    """Afterwards every value is the mean of what was found below, and nothing is on its way."""
    games = positions(5, 6, 6)
    found = TreeSearch(simulations, root, solve=solve, parallel=parallel).search(games, network, keys(len(games)))
    (tree,) = trees
    for number in range(len(games)):
        nodes = tree.nodes[number, : tree.counts[number]]
        assert (nodes["pending"] == 0).all()
        assert (tree.leaves[number] == -1).all()
        if found.proven[number] == 0:
            assert found.visits[number].sum() == simulations
        for node in nodes:
            visits, total, child = 1, float(node["raw"]), node["first"]
            while child >= 0:
                visits += nodes[child]["visits"]
                total -= nodes[child]["visits"] * nodes[child]["value"]
                child = nodes[child]["sibling"]
            if not node["over"] and not solve:
                assert node["visits"] == visits
                assert node["value"] == pytest.approx(total / visits, abs=1e-6)


@pytest.mark.parametrize("root", ["gumbel", "puct"])
def test_the_network_is_called_less_and_never_shown_a_position_of_a_game_twice(root: Any) -> None:
    calls: list[int] = []

    def watched(views: npt.NDArray[np.float32]) -> Answer:
        calls.append(len(views))
        assert len({view.tobytes() for view in views}) == len(views)
        return network(views)

    for parallel, most in ((1, 65), (4, 20), (16, 8)):
        calls.clear()
        found = TreeSearch(64, root, parallel=parallel).search(Games(5, 1), watched, keys(1))
        assert len(calls) <= most
        assert sum(calls) == found.evaluations <= 65
        assert max(calls[1:]) == parallel


@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize("parallel", [2, 8, 64])
def test_a_won_position_is_found(root: Any, parallel: int) -> None:
    games = parse(["X.O/XO./..."])
    found = TreeSearch(300, root, parallel=parallel).search(games, knows_nothing, keys(1))
    assert (found.proven[0], found.moves[0]) == (WINS, 6)


@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize(("size", "plies", "parallel"), [(3, 2, 6), (4, 8, 16), (4, 8, 1)])
def test_whatever_is_proven_is_so(size: int, plies: int, parallel: int, root: Any, trees: list[Any]) -> None:
    """At every node, by the exact solver; also where a proof comes while others are on their way."""
    games, solver = positions(size, 12, plies), Solver(size)
    TreeSearch(600, root, parallel=parallel).search(games, network, keys(len(games)))
    proven = 0
    for number, count in enumerate(trees[0].counts):
        nodes = trees[0].nodes[number, :count]
        open_nodes = np.flatnonzero((nodes["proven"] != 0) & ~nodes["over"])
        stones = np.sign(trees[0].boards[number, open_nodes])
        held = Games.of_stones(stones, nodes["mover"][open_nodes], nodes["plies"][open_nodes], size)
        assert nodes["proven"][open_nodes].tolist() == solver.solve(held).values.tolist()
        proven += len(open_nodes)
    assert proven > 200


@pytest.mark.parametrize("root", ["gumbel", "puct"])
def test_several_at_once_play_about_as_well(root: Any) -> None:
    """A blunder is a move that loses where another wins, as the solver knows; three of four moves are, of those that
    there are. Eight at once of 200 simulations: at most five in a hundred blunders more."""
    games = positions(3, 600, 3)
    values = Solver(3).moves(games)
    decided = (values == WINS).any(axis=1) & ((values == LOSES) & games.legal()).any(axis=1)
    games, values = games.select(decided), values[decided]
    assert len(games) > 300
    assert (values == LOSES)[games.legal()].mean() > 0.7
    blunders = {}
    for parallel in (1, 8):
        found = TreeSearch(200, root, parallel=parallel).search(games, knows_nothing, keys(len(games)))
        blunders[parallel] = float((values[np.arange(len(games)), found.moves] == LOSES).mean())
    assert blunders[8] <= min(blunders[1] + 0.05, 0.15)


@pytest.mark.parametrize("root", ["gumbel", "puct"])
@pytest.mark.parametrize("batch", [1, 7, 20, 100])
def test_batches_change_nothing(root: Any, batch: int) -> None:
    games, names = positions(4, 20, 4), keys(20)
    budgets = np.array([1 + 7 * number % 40 for number in range(len(games))], np.int64)
    most: list[int] = []

    def watched(views: npt.NDArray[np.float32]) -> Answer:
        most.append(len(views))
        return network(views)

    whole = TreeSearch(64, root).search(games, network, names[: len(games)], budgets)
    parts = TreeSearch(64, root, batch=batch).search(games, watched, names[: len(games)], budgets)
    assert same(whole, parts)
    assert whole.evaluations == parts.evaluations
    assert max(most) == min(batch, len(games))


@pytest.mark.parametrize("batch", [None, 3])
def test_threads_change_nothing(batch: int | None) -> None:
    games = positions(4, 20, 4)
    at_once: set[int] = set()

    def watched(views: npt.NDArray[np.float32]) -> Answer:
        at_once.add(threading.get_ident())
        time.sleep(0.001)
        return network(views)

    one = TreeSearch(40).search(games, network, keys(len(games)))
    two = TreeSearch(40, threads=2, batch=batch).search(games, watched, keys(len(games)))
    assert same(one, two)
    assert len(at_once) == 2


def test_an_error_in_a_thread_is_told() -> None:
    def broken(views: npt.NDArray[np.float32]) -> Answer:
        return np.full((len(views), 9), np.nan, np.float32), np.zeros(len(views), np.float32)

    with pytest.raises(ModelError, match="no numbers"):
        TreeSearch(4, threads=2).search(Games(3, 5), broken, keys(5))


def test_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for games, most, cells, actions, parallel in ((7, 65, 25, 25, 1), (3, 9, 49, 50, 4), (0, 2, 9, 9, 1)):
        tree = board_steps.lay_out(games, most, cells, actions, parallel)
        held = sum(array.nbytes for array in tree)
        assert held <= board_steps.bytes_needed(games, most, cells, actions, parallel) <= held + 64
    with pytest.raises(InputError, match=r"1000000 games of 10000000 simulations .* take [\d,.]+ GiB"):
        TreeSearch(10_000_000).search(Games(5, 1_000_000), network, np.zeros(1_000_000, np.uint64))
    needed = board_steps.bytes_needed(10, 21, 25, 25)
    monkeypatch.setattr(board_tree, "_free_bytes", lambda: needed)
    TreeSearch(20).search(Games(5, 10), knows_nothing, keys(10))
    monkeypatch.setattr(board_tree, "_free_bytes", lambda: needed - 1)
    with pytest.raises(InputError, match="search fewer games at once, or by fewer simulations"):
        TreeSearch(20).search(Games(5, 10), knows_nothing, keys(10))
    TreeSearch(20, batch=9).search(Games(5, 10), knows_nothing, keys(10))
    TreeSearch(19).search(Games(5, 10), knows_nothing, keys(10))
    monkeypatch.setattr(board_tree, "_free_bytes", lambda: None)
    TreeSearch(20).search(Games(5, 10), knows_nothing, keys(10))


def test_bad_settings() -> None:
    for settings in ({"parallel": 0}, {"batch": 0}, {"threads": 0}, {"batch": -1}):
        with pytest.raises(ValueError, match=f"got {next(iter(settings))}=.*expected 1 or more"):
            TreeSearch(4, **settings)  # type: ignore[arg-type]

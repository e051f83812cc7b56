"""The sides of `boards.py`, and the network and positions that they share; each runs in a process of its own, the
peers' by an interpreter that has neither flywheel nor what that stands on. What a side needs is imported where it
is made."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Repetition = Callable[[int], int]
"""From the number of a repetition to the simulations made."""
Setting = dict[str, Any]
Report = dict[str, Any]


def weights(size: int, width: int) -> list[Any]:
    """Of the two hidden layers and of both heads as one: the last column is the value."""
    drawn = np.random.default_rng(0)
    shapes = [(2 * size * size, width), (width, width), (width, size * size + 1)]
    return [(drawn.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32) for shape in shapes]


def openings(size: int, games: int) -> list[list[int]]:
    """Moves from the empty board, 0 to a third of the cells, so that hardly any game is near its end."""
    drawn = np.random.default_rng(size)
    return [drawn.permutation(size * size)[: drawn.integers(0, size * size // 3 + 1)].tolist() for _ in range(games)]


# Ours.


def our_games(size: int, games: int) -> Any:
    from flywheel.problems.hex import NOBODY, Games

    found = Games(size, games)
    for number, moves in enumerate(openings(size, games)):
        game = found.select(np.array([number]))
        for move in moves:
            before = game.select(np.array([0]))
            game.play([move])
            if game.winners[0] != NOBODY:
                game = before
                break
        for name in ("boards", "movers", "plies"):
            getattr(found, name)[number] = getattr(game, name)[0]
    return found


class Network:
    """In numpy, in place, with a clock."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers
        self.seconds = 0.0

    def __call__(self, views: Any) -> tuple[Any, Any]:
        start = time.perf_counter()
        first, second, heads = self.layers
        hidden = views.reshape(len(views), -1) @ first
        np.maximum(hidden, 0.0, out=hidden)
        hidden = hidden @ second
        np.maximum(hidden, 0.0, out=hidden)
        out = hidden @ heads
        found = out[:, :-1], np.tanh(out[:, -1])
        self.seconds += time.perf_counter() - start
        return found


def our_search(simulations: int, **settings: Any) -> Any:
    from flywheel.search.board_tree import TreeSearch

    return TreeSearch(simulations, **settings)


def ours(setting: Setting) -> Repetition:

    games = our_games(setting["size"], setting["games"])
    network = Network(weights(setting["size"], setting["width"]))
    search = our_search(setting["simulations"])

    def repeat(number: int) -> int:
        keys = np.arange(len(games), dtype=np.uint64) + np.uint64(number * len(games))
        return int(search.search(games, network, keys).visits.sum())

    return repeat


# The peers.


def pgx(setting: Setting) -> Repetition:
    """pgx's Hex of another size than 11: its first state is made by hand, as that is 11 x 11 whatever the size. The
    swap is never legal."""
    import jax
    import jax.numpy as jnp
    import mctx
    from pgx._src.games.hex import GameState
    from pgx.hex import Hex

    size, games, cells = setting["size"], setting["games"], setting["size"] ** 2
    env = Hex(size=size)
    layers = [jnp.asarray(layer) for layer in weights(size, setting["width"])]
    no_swap = jnp.ones(cells + 1, bool).at[-1].set(False)
    empty = env._init(jax.random.PRNGKey(0)).replace(
        _x=GameState(board=jnp.zeros(cells, jnp.int32)),
        legal_action_mask=no_swap,
        observation=jnp.zeros((size, size, 4), bool),
    )

    def network(layers: Any, state: Any) -> tuple[Any, Any]:
        views = state.observation[..., :2].reshape(len(state.observation), -1).astype(jnp.float32)
        first, second, heads = layers
        out = jax.nn.relu(jax.nn.relu(views @ first) @ second) @ heads
        legal = state.legal_action_mask & no_swap
        logits = jnp.concatenate([out[:, :-1], jnp.zeros((len(out), 1))], axis=1)
        logits = jnp.where(legal, logits - logits.max(axis=1, keepdims=True), jnp.finfo(jnp.float32).min)
        return logits, jnp.tanh(out[:, -1])

    def recurrent(layers: Any, _: Any, action: Any, state: Any) -> tuple[Any, Any]:
        mover = state.current_player
        state = jax.vmap(env.step)(state, action)
        logits, value = network(layers, state)
        return mctx.RecurrentFnOutput(
            reward=state.rewards[jnp.arange(len(mover)), mover],
            discount=jnp.where(state.terminated, 0.0, -1.0),
            prior_logits=logits,
            value=jnp.where(state.terminated, 0.0, value),
        ), state

    @jax.jit
    def search(layers: Any, key: Any, state: Any) -> Any:
        logits, value = network(layers, state)
        found = mctx.gumbel_muzero_policy(
            layers, key, mctx.RootFnOutput(prior_logits=logits, value=value, embedding=state), recurrent,
            setting["simulations"], invalid_actions=~(state.legal_action_mask & no_swap),
            max_num_considered_actions=16,
        )  # fmt: skip
        return found.action, found.action_weights, found.search_tree.summary().visit_counts

    step, starts = jax.jit(env.step), []
    for moves in openings(size, games):
        state = empty
        for move in moves:
            after = step(state, move)
            if after.terminated:
                break
            state = after
        starts.append(state)
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), *starts)

    def repeat(number: int) -> int:
        return int(search(layers, jax.random.PRNGKey(number), batch)[2].sum())

    return repeat


def openspiel(setting: Setting) -> Repetition:
    """A tenth of the games a repetition, one after another, as the bot knows no batch: its pace does not depend on how
    many there are. Its evaluator is as quick as Python allows: one product a layer, and one look at a position."""
    import pyspiel
    from open_spiel.python.algorithms import mcts

    size, cells = setting["size"], setting["size"] ** 2
    game = pyspiel.load_game("hex", {"board_size": size})
    first, second, heads = weights(size, setting["width"])
    planes = np.asarray(game.new_initial_state().observation_tensor()).size // cells
    # The observation has a plane for each thing that a stone may touch: white's, the empty cells, black's.
    spread = np.zeros((2, planes, cells, first.shape[1]), np.float32)
    for mover, (white, black) in enumerate([(first[cells:], first[:cells]), (first[:cells], first[cells:])]):
        spread[mover, : planes // 2], spread[mover, planes // 2 + 1 :] = white, black
    spread = spread.reshape(2, planes * cells, -1)

    class Evaluator(mcts.Evaluator):  # type: ignore[misc]
        known: dict[str, Any]

        def ask(self, state: Any) -> Any:
            name = state.history_str()
            if name not in self.known:
                hidden = np.array(state.observation_tensor(), np.float32) @ spread[state.current_player()]
                out = np.maximum(np.maximum(hidden, 0.0) @ second, 0.0) @ heads
                prior = np.exp(out[:-1] - out.max())
                self.known[name] = prior, np.tanh(out[-1])
            return self.known[name]

        def evaluate(self, state: Any) -> Any:
            value = self.ask(state)[1]
            return (value, -value) if state.current_player() == 0 else (-value, value)

        def prior(self, state: Any) -> Any:
            legal = state.legal_actions()
            chosen = self.ask(state)[0][legal]
            return list(zip(legal, (chosen / chosen.sum()).tolist(), strict=True))

    starts = []
    for moves in openings(size, max(1, setting["games"] // 10)):
        state = game.new_initial_state()
        for move in moves:
            if state.child(move).is_terminal():
                break
            state.apply_action(move)
        starts.append(state)

    def repeat(number: int) -> int:
        evaluator, made = Evaluator(), 0
        bot = mcts.MCTSBot(
            game, 1.25, setting["simulations"], evaluator, solve=True, random_state=np.random.RandomState(number),
            child_selection_fn=mcts.SearchNode.puct_value,
        )  # fmt: skip
        for state in starts:
            evaluator.known = {}
            made += bot.mcts_search(state).explore_count
        return made

    return repeat


SIDES: dict[str, Callable[[Setting], Repetition]] = {"ours": ours, "pgx": pgx, "openspiel": openspiel}
NEEDS = {
    "ours": "flywheel: run `make setup`, and this with .venv/bin/python",
    "pgx": "jax, pgx and mctx: run `python -m venv /tmp/peers && /tmp/peers/bin/pip install jax pgx mctx`, and this "
    "with --peers /tmp/peers/bin/python",
    "openspiel": "open_spiel: run `make setup`, or `pip install open_spiel`",
}


def main(side: str, setting: Setting) -> int:
    """Answers every line on standard input by one repetition: simulations a second."""
    os.sched_setaffinity(0, {setting["core"]})
    try:
        repeat = SIDES[side](setting)
    except ImportError as error:
        print(f"{error}. {side} needs {NEEDS[side]}; or leave it out by --sides", file=sys.stderr)
        return 2
    repeat(0)
    print("ready", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        made = repeat(int(line))
        print(made / (time.perf_counter() - start), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], json.loads(sys.argv[2])))

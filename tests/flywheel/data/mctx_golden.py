"""What mctx finds, for `test_board_tree_mctx.py`; not run by tests, which need no JAX. Rules are pgx's, with 64 bits.

    python -m venv /tmp/peers && /tmp/peers/bin/pip install jax pgx mctx
    /tmp/peers/bin/python tests/flywheel/data/mctx_golden.py

mctx spreads values from 0 to 1 over all actions, and gives those that are not legal the value of moves not tried; ours
spreads over legal moves alone. That can only differ where every legal move was tried and the network's value lies
beyond all of theirs: in none of these trees it does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import mctx
import numpy as np
from pgx._src.games.hex import Game, GameState

jax.config.update("jax_enable_x64", True)

SETTINGS: list[tuple[int, int, int, int]] = [
    # size, plies at most, simulations, considered
    (5, 6, 64, 16),
    (5, 8, 48, 4),
    (5, 4, 2, 16),
    (7, 12, 40, 8),
    (3, 3, 32, 16),
    (4, 6, 60, 8),
    (4, 8, 100, 16),
    (3, 2, 20, 1),
]
GAMES = 12


def weights(size: int) -> tuple[Any, Any]:
    """[views, actions], [views]: with so few digits that sums are exact in 32 bits, in whatever order."""
    rows, columns = np.meshgrid(np.arange(2 * size * size), np.arange(size * size + 1), indexing="ij")
    mixed = (rows * 7919 + columns * 104729 + rows * columns * 1299709 + 12345) % 65521
    table = (mixed - 32760) / 32768
    return table[:, :-1], table[:, -1] / 4


def network(size: int, boards: Any, colors: Any) -> tuple[Any, Any]:
    """Logits and values of boards as pgx has them: the mover's stones above 0. What the network sees and says of the
    second player's is mirrored."""
    logit_weights, value_weights = map(jnp.asarray, weights(size))
    cells = jnp.sign(boards).reshape(-1, size, size)
    first = (colors == 0)[:, None, None]
    cells = jnp.where(first, cells, cells.transpose(0, 2, 1))
    views = jnp.stack([cells > 0, cells < 0], axis=1).reshape(len(boards), -1).astype(jnp.float64)
    logits = (views @ logit_weights).reshape(-1, size, size)
    logits = jnp.where(first, logits, logits.transpose(0, 2, 1)).reshape(len(boards), -1)
    return logits, jnp.clip(views @ value_weights, -1.0, 1.0)


def start(size: int, plies: int, drawn: Any) -> GameState:
    game = Game(size=size)
    while True:
        state = GameState(board=jnp.zeros(size * size, jnp.int32))
        for move in drawn.permutation(size * size)[: drawn.integers(0, plies + 1)]:
            state = game.step(state, int(move))
            if state.terminated:
                break
        if not state.terminated:
            return state


def text(size: int, state: GameState) -> str:
    stones = np.sign(np.asarray(state.board)).reshape(size, size) * (1 if state.color == 0 else -1)
    return "/".join("".join("O.X"[stone + 1] for stone in row) for row in stones)


def search(size: int, plies: int, simulations: int, considered: int) -> dict[str, Any]:
    drawn = np.random.default_rng([size, plies, simulations])
    game, actions = Game(size=size), size * size
    states = [start(size, plies, drawn) for _ in range(GAMES)]
    batch = jax.tree.map(lambda *rows: jnp.stack(rows), *states)
    noise = drawn.gumbel(size=(GAMES, actions)).round(5)

    def masked(state: Any) -> tuple[Any, Any]:
        logits, values = network(size, state.board, state.step_count % 2)
        return jnp.where(state.board == 0, logits, jnp.finfo(jnp.float64).min), values

    def recurrent(_: Any, __: Any, action: Any, state: Any) -> tuple[Any, Any]:
        state = jax.vmap(game.step)(state, action)
        logits, values = masked(state)
        return mctx.RecurrentFnOutput(
            reward=jnp.where(state.terminated, 1.0, 0.0),
            discount=jnp.where(state.terminated, 0.0, -1.0),
            prior_logits=logits,
            value=jnp.where(state.terminated, 0.0, values),
        ), state

    logits, values = masked(batch)
    real, jax.random.gumbel = jax.random.gumbel, lambda *_, **__: jnp.asarray(noise)
    found = mctx.gumbel_muzero_policy(
        None, jax.random.PRNGKey(0), mctx.RootFnOutput(prior_logits=logits, value=values, embedding=batch), recurrent,
        simulations, invalid_actions=batch.board != 0, max_num_considered_actions=considered,
    )  # fmt: skip
    jax.random.gumbel = real

    tree = found.search_tree
    return {
        "size": size, "simulations": simulations, "considered": considered,
        "boards": [text(size, state) for state in states], "noise": noise.tolist(),
        "moves": found.action.tolist(), "visits": tree.summary().visit_counts.tolist(),
        "policies": np.asarray(found.action_weights).round(6).tolist(),
        "values": np.asarray(tree.node_values[:, 0]).round(6).tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    golden = [search(*setting) for setting in SETTINGS]
    path = Path(__file__).with_suffix(".json")
    path.write_text("[\n" + ",\n".join(json.dumps(one, separators=(",", ":")) for one in golden) + "\n]\n")

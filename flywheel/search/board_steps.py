"""The compiled steps of `board_tree`: from the roots down, from the leaves up, and what a root's moves have come to."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit, prange

from flywheel.problems.hex import SECOND, make

LOW = -1e9
"""Below every legal move's logit."""


class Nodes(NamedTuple):
    """Arrays [games, nodes, ...]; node 0 is a game's root, the others follow in the order found."""

    boards: npt.NDArray[np.int8]
    """[..., cells], see `flywheel.problems.hex.Board`."""
    movers: npt.NDArray[np.int8]
    plies: npt.NDArray[np.int16]
    over: npt.NDArray[np.bool_]
    """Won by the player who moved there."""
    proven: npt.NDArray[np.int8]
    """1 the mover wins, -1 loses, 0 not known."""
    parents: npt.NDArray[np.int32]
    children: npt.NDArray[np.int32]
    """[..., actions]: the node that a move leads to, -1 where nobody went."""
    logits: npt.NDArray[np.float64]
    """[..., actions]: the largest is 0; LOW where a move is not legal."""
    priors: npt.NDArray[np.float64]
    """[..., actions]: exp(logits), and 0 where a move is not legal."""
    raw: npt.NDArray[np.float64]
    """The network's value; of a game that is over -1."""
    values: npt.NDArray[np.float64]
    """Mean over the visits, the first of which is the network's."""
    visits: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    """[games]: nodes so far."""


class Rule(NamedTuple):
    """Which moves a simulation takes; see `board_tree.TreeSearch`."""

    gumbel: bool
    considered: int
    value_scale: float
    visit_offset: float
    exploration: float
    solve: bool


def nodes(games: int, most: int, cells: int, actions: int) -> Nodes:
    """Room for so many nodes a game, all empty."""
    shape = (games, most)
    return Nodes(
        boards=np.zeros((*shape, cells), np.int8),
        movers=np.zeros(shape, np.int8),
        plies=np.zeros(shape, np.int16),
        over=np.zeros(shape, np.bool_),
        proven=np.zeros(shape, np.int8),
        parents=np.full(shape, -1, np.int32),
        children=np.full((*shape, actions), -1, np.int32),
        logits=np.full((*shape, actions), LOW, np.float64),
        priors=np.zeros((*shape, actions), np.float64),
        raw=np.zeros(shape, np.float64),
        values=np.zeros(shape, np.float64),
        visits=np.zeros(shape, np.int32),
        counts=np.ones(games, np.int64),
    )


@njit(cache=True, nogil=True)
def show(tree, rows, leaves, size, views):
    """Positions as their movers see them, to the views of their games."""
    for number in range(len(rows)):
        row, leaf = rows[number], leaves[number]
        _show(tree.boards[row, leaf], tree.movers[row, leaf], tree.plies[row, leaf], size, views[row])


@njit(cache=True, nogil=True)
def _show(board, mover, plies, size, view):
    for row in range(size):
        for column in range(size):
            stone = -board[column * size + row] if mover == SECOND else board[row * size + column]
            view[0, row, column] = 1.0 if stone > 0 else 0.0
            view[1, row, column] = 1.0 if stone < 0 else 0.0
            if len(view) > 2:
                view[2, row, column] = 1.0 if plies == 1 else 0.0


@njit(cache=True, nogil=True, parallel=True)
def keep(tree, rows, leaves, size, logits, values):
    """What the network says of new nodes, its logits put in the game's own order of moves."""
    for number in prange(len(rows)):
        _keep(tree, rows[number], leaves[number], size, logits[number], values[number])


@njit(cache=True, nogil=True)
def _keep(tree, row, leaf, size, logits, value):
    kept = tree.logits[row, leaf]
    largest = -np.inf
    for action in range(len(kept)):
        swap = action == size * size
        legal = tree.plies[row, leaf] == 1 if swap else tree.boards[row, leaf, action] == 0
        if legal:
            mirrored = tree.movers[row, leaf] == SECOND and not swap
            # A mask of the network's own says that it thinks nothing of a move, not that there is none.
            kept[action] = max(logits[action % size * size + action // size if mirrored else action], LOW / 4)
            largest = max(largest, kept[action])
    for action in range(len(kept)):
        if kept[action] > LOW:
            kept[action] = max(kept[action] - largest, LOW / 2)
            tree.priors[row, leaf, action] = max(np.exp(kept[action]), 1e-300)
    tree.raw[row, leaf] = value


@njit(cache=True, nogil=True)
def mix(tree, noise, share):
    """Noise into the priors of the roots."""
    for row in range(len(noise)):
        logits, priors = tree.logits[row, 0], tree.priors[row, 0]
        total = priors.sum()
        for action in range(len(logits)):
            if logits[action] > LOW:
                mixed = (1.0 - share) * priors[action] / total + share * noise[row, action]
                logits[action], priors[action] = np.log(max(mixed, 1e-300)), mixed


@njit(cache=True, nogil=True)
def _look(children, visits, values, proven, counts, worths, losing):
    """Of each of a node's moves: its visits, what it is worth to the player who makes it, and whether it is proven to
    lose. `visits`, `values` and `proven` are those of all nodes of the game."""
    for action in range(len(children)):
        child = children[action]
        counts[action], worths[action], losing[action] = 0, 0.0, False
        if child >= 0:
            known = proven[child]
            counts[action], losing[action] = visits[child], known > 0
            worths[action] = -float(known) if known != 0 else -values[child]


@njit(cache=True, nogil=True)
def _completed(priors, raw, counts, worths, rule, completed):
    """The values of a node's legal moves times what they weigh (eq. 8), first spread from 0 to 1 as mctx does. A move
    that was not visited has the mean of the network's value and of those visited, these by their priors (eq. 33). Of
    other moves 0."""
    total, most, seen, weighted = 0, 0, 0.0, 0.0
    low, high, some_unseen = np.inf, -np.inf, False
    for action in range(len(priors)):
        if counts[action]:
            total, most = total + counts[action], max(most, counts[action])
            seen, weighted = seen + priors[action], weighted + priors[action] * worths[action]
            low, high = min(low, worths[action]), max(high, worths[action])
        elif priors[action] > 0.0:
            some_unseen = True
    mixed = (raw + total * weighted / seen) / (total + 1) if seen > 0.0 else raw
    if some_unseen:
        low, high = min(low, mixed), max(high, mixed)
    weight = (rule.visit_offset + most) * rule.value_scale / max(high - low, 1e-8)
    for action in range(len(priors)):
        if priors[action] > 0.0:
            completed[action] = ((worths[action] if counts[action] else mixed) - low) * weight
        else:
            completed[action] = 0.0


@njit(cache=True, nogil=True)
def _improved(priors, counts, losing, completed, policy):
    """The improved policy (eq. 11) over the moves that are not proven to lose; all zeros where there is none."""
    largest, unseen, total = -np.inf, -1.0, 0.0
    for action in range(len(priors)):
        if priors[action] > 0.0 and not losing[action]:
            largest = max(largest, completed[action])
    for action in range(len(priors)):
        policy[action] = 0.0
        if priors[action] > 0.0 and not losing[action]:
            if counts[action]:
                policy[action] = priors[action] * np.exp(completed[action] - largest)
            else:
                # One value for all that were not visited.
                if unseen < 0.0:
                    unseen = np.exp(completed[action] - largest)
                policy[action] = priors[action] * unseen
            total += policy[action]
    if total > 0.0:
        for action in range(len(priors)):
            policy[action] /= total


@njit(cache=True, nogil=True)
def _halving(logits, counts, losing, completed, noise, wanted):
    """The best of the root's moves with so many visits; -1 where all of those are proven to lose."""
    best, chosen = -np.inf, -1
    for action in range(len(logits)):
        if logits[action] > LOW and not losing[action] and counts[action] == wanted:
            score = noise[action] + logits[action] + completed[action]
            if score > best:
                best, chosen = score, action
    return chosen


@njit(cache=True, nogil=True)
def _improving(priors, counts, losing, completed, policy):
    """The move that brings the visits nearest to the improved policy (eq. 14)."""
    _improved(priors, counts, losing, completed, policy)
    share = 1.0 / (1.0 + counts.sum())
    best, chosen = -np.inf, -1
    for action in range(len(policy)):
        if priors[action] > 0.0 and not losing[action]:
            score = policy[action] - counts[action] * share
            if score > best:
                best, chosen = score, action
    return chosen


@njit(cache=True, nogil=True)
def _exploring(priors, counts, worths, losing, exploration):
    """The move of the highest Q + U; one that was not visited has Q = 0."""
    # The node's own visits: without its first, all moves of a new node would be alike.
    reach = exploration * np.sqrt(1.0 + counts.sum()) / priors.sum()
    best, chosen = -np.inf, -1
    for action in range(len(priors)):
        if priors[action] > 0.0 and not losing[action]:
            score = worths[action] + reach * priors[action] / (1.0 + counts[action])
            if score > best:
                best, chosen = score, action
    return chosen


@njit(cache=True, nogil=True, parallel=True)
def descend(tree, rows, wanted, noise, rule, size, views, leaves):
    """From each root to a position that is new, proven or over, which is noted in `leaves`; a new one becomes a node
    and is shown in `views`. `wanted` [rows, moves considered + 1] is how many visits the root's moves in question
    have."""
    for number in prange(len(rows)):
        row = rows[number]
        leaves[number] = _descend(tree, row, wanted[number], noise[row], rule, size, views[row])


@njit(cache=True, nogil=True)
def _descend(tree, row, wanted, noise, rule, size, view):
    # Of this game alone: the arrays of all would be handed on with every call.
    boards, movers, plies, over = tree.boards[row], tree.movers[row], tree.plies[row], tree.over[row]
    proven, children, logits, priors = tree.proven[row], tree.children[row], tree.logits[row], tree.priors[row]
    raw, values, visits = tree.raw[row], tree.values[row], tree.visits[row]
    actions = logits.shape[1]
    counts, worths, losing = np.empty(actions, np.int64), np.empty(actions), np.empty(actions, np.bool_)
    completed, policy = np.empty(actions), np.empty(actions)
    node = 0
    while True:
        _look(children[node], visits, values, proven, counts, worths, losing)
        if rule.gumbel:
            _completed(priors[node], raw[node], counts, worths, rule, completed)
            action = -1
            if node == 0:
                legal = 0
                for move in range(actions):
                    legal += logits[0, move] > LOW
                action = _halving(logits[0], counts, losing, completed, noise, wanted[min(legal, rule.considered)])
            # Also where the root's moves in question are proven to lose.
            if action < 0:
                action = _improving(priors[node], counts, losing, completed, policy)
        else:
            action = _exploring(priors[node], counts, worths, losing, rule.exploration)
        child = children[node, action]
        if child < 0:
            child = tree.counts[row]
            tree.counts[row] += 1
            children[node, action], tree.parents[row, child] = child, node
            boards[child] = boards[node]
            movers[child], plies[child] = 1 - movers[node], plies[node] + 1
            if make(boards[child], size, action, movers[node], np.empty(size * size, np.int16)):
                over[child], raw[child] = True, -1.0
                proven[child] = -1 if rule.solve else 0
            else:
                _show(boards[child], movers[child], plies[child], size, view)
        node = child
        if visits[node] == 0 or over[node] or proven[node] != 0:
            return node


@njit(cache=True, nogil=True, parallel=True)
def ascend(tree, rows, leaves, rule):
    """A visit more for each leaf and for all above it, and what is proven by it."""
    for number in prange(len(rows)):
        _ascend(tree, rows[number], leaves[number], rule)


@njit(cache=True, nogil=True)
def _ascend(tree, row, leaf, rule):
    proven, parents, values, visits = tree.proven[row], tree.parents[row], tree.values[row], tree.visits[row]
    node, value = leaf, float(tree.proven[row, leaf]) if tree.proven[row, leaf] != 0 else tree.raw[row, leaf]
    news = proven[leaf]
    while node >= 0:
        if news != 0 and node != leaf and proven[node] == 0:
            # A move that wins proves the node; one that loses may be its last.
            news = 1 if news < 0 else _all_lose(tree.logits[row, node], tree.children[row, node], proven)
            proven[node] = news
            value = float(news) if news != 0 else value
        visits[node] += 1
        values[node] += (value - values[node]) / visits[node]
        node, value = parents[node], -value


@njit(cache=True, nogil=True)
def _all_lose(logits, children, proven):
    """-1 where every move is proven to lose, else 0."""
    for action in range(len(logits)):
        if logits[action] > LOW and (children[action] < 0 or proven[children[action]] <= 0):
            return 0
    return -1


@njit(cache=True, nogil=True, parallel=True)
def conclude(tree, noise, rule, moves, policies, visits):
    """The move to play, the policy to learn and the visits, a game."""
    for row in prange(len(moves)):
        moves[row] = _conclude(tree, row, noise[row], rule, policies[row], visits[row])


@njit(cache=True, nogil=True)
def _conclude(tree, row, noise, rule, policy, visits):
    children, logits, priors = tree.children[row, 0], tree.logits[row, 0], tree.priors[row, 0]
    actions = len(children)
    counts, worths, losing = np.empty(actions, np.int64), np.empty(actions), np.empty(actions, np.bool_)
    completed, improved = np.empty(actions), np.empty(actions)
    _look(children, tree.visits[row], tree.values[row], tree.proven[row], counts, worths, losing)
    most, winning, chosen = 0, -1, -1
    for action in range(actions):
        visits[action] = counts[action]
        if not losing[action]:
            most = max(most, counts[action])
        if children[action] >= 0 and tree.proven[row, children[action]] < 0 and winning < 0:
            winning = action
    if rule.gumbel:
        _completed(priors, tree.raw[row, 0], counts, worths, rule, completed)
        _improved(priors, counts, losing, completed, improved)
        policy[:] = improved
        chosen = _halving(logits, counts, losing, completed, noise, most)
    else:
        # Where every visit went to moves that turned out to lose, the priors of the others decide.
        best, total = -np.inf, 0.0
        for action in range(actions):
            weight = 0.0
            if priors[action] > 0.0 and not losing[action]:
                weight = float(counts[action]) if most else priors[action]
                if weight > best:
                    best, chosen = weight, action
            improved[action] = weight
            total += weight
        if total > 0.0:
            policy[:] = improved / total
    if winning >= 0:
        policy[:] = 0.0
        policy[winning], chosen = 1.0, winning
    elif chosen < 0:
        # Every move loses: what the priors like best, and nothing else to learn.
        chosen = int(np.argmax(logits))
        policy[:] = priors / priors.sum()
    return chosen

"""The compiled steps of `board_tree`: from the roots down, from the leaves up, and what a root's moves have come to.

A game's nodes are records in the order found, and a node's children are a chain of them, so that a step costs what was
tried there and not what could be; of the moves not tried a node knows the best and how likely all are together. Logits
become priors at a node's second visit, as many a node has but one. At a root, where most moves are tried, all are
looked at side by side.

All in one file: numba looks up what it has compiled before by the file of the function that is called, and would not
see that another has changed.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numba import njit

from flywheel.problems.hex import SECOND, make

LOW = -1e9
"""Below every legal move's logit."""
_NONE, _STALE = -1, -2
"""In place of a node or a move: there is none; it has to be looked for again."""

NODE = np.dtype(
    [
        ("value", np.float64),  # mean over the visits, the first of which is the network's; the mover's; proven: 1, -1
        ("rest", np.float64),  # priors of the moves not tried, together
        ("weight", np.float64),  # for the step that looks at it
        ("raw", np.float32),  # the network's value; of a game that is over -1
        ("prior", np.float32),  # of the move that led here
        ("visits", np.int32),
        ("pending", np.int32),  # simulations on their way through here
        ("first", np.int32),  # the newest child
        ("sibling", np.int32),  # the parent's child before this one
        ("move", np.int16),  # that led here
        ("best", np.int16),  # the move not tried with the largest prior
        ("plies", np.int16),
        ("mover", np.int8),
        ("proven", np.int8),  # 1 the mover wins, -1 loses, 0 not known
        ("over", np.bool_),  # won by the player who moved here
    ],
    align=True,
)
"""A position."""


class Tree(NamedTuple):
    """Of each game; node 0 is the root."""

    nodes: npt.NDArray[np.void]
    """[games, nodes]: `NODE`."""
    boards: npt.NDArray[np.int8]
    """[games, nodes, cells], see `flywheel.problems.hex.Board`."""
    priors: npt.NDArray[np.float32]
    """[games, nodes, actions]: of moves not tried, else 0; until the second visit the network's logits."""
    counts: npt.NDArray[np.int64]
    """[games]: nodes so far."""
    done: npt.NDArray[np.int64]
    """[games]: simulations."""
    leaves: npt.NDArray[np.int32]
    """[games, in parallel]: nodes that wait for the network, and _NONE."""
    places: npt.NDArray[np.int32]
    """[games, in parallel]: of the leaves in the network's batch."""
    paths: npt.NDArray[np.int32]
    """[games, in parallel, nodes]: how a leaf was come to, root and leaf included."""
    depths: npt.NDArray[np.int32]
    """[games, in parallel]: of the leaves."""
    shares: npt.NDArray[np.float64]
    """[games, actions]: the root's priors, tried or not."""
    bases: npt.NDArray[np.float64]
    """[games, actions]: the root's logits, the largest 0, and its noise; LOW where a move is not legal, or loses."""
    tries: npt.NDArray[np.float64]
    """[games, actions]: visits of the root's moves."""
    worths: npt.NDArray[np.float64]
    """[games, actions]: values of the root's moves to the mover; 0 where not tried."""
    heads: npt.NDArray[np.int32]
    """[games, actions]: the nodes that the root's moves lead to, and _NONE."""
    scores: npt.NDArray[np.float64]
    """[games, actions]: for the step that needs them."""
    scratch: npt.NDArray[np.int16]
    """[games, cells]: for `make`."""


class Rule(NamedTuple):
    """Which moves a simulation takes; see `board_tree.TreeSearch`."""

    gumbel: bool
    value_scale: float
    visit_offset: float
    exploration: float
    solve: bool
    parallel: bool


def lay_out(games: int, most: int, cells: int, actions: int, parallel: int = 1) -> Tree:
    """Room for so many nodes a game, and as many leaves at once. What it takes: `bytes_needed`."""
    return Tree(
        nodes=_aligned(games, most),
        boards=np.empty((games, most, cells), np.int8),
        priors=np.empty((games, most, actions), np.float32),
        counts=np.ones(games, np.int64),
        done=np.zeros(games, np.int64),
        leaves=np.full((games, parallel), _NONE, np.int32),
        places=np.zeros((games, parallel), np.int32),
        paths=np.zeros((games, parallel, actions + 2), np.int32),
        depths=np.zeros((games, parallel), np.int32),
        shares=np.zeros((games, actions)),
        bases=np.full((games, actions), LOW),
        tries=np.zeros((games, actions)),
        worths=np.zeros((games, actions)),
        heads=np.full((games, actions), _NONE, np.int32),
        scores=np.zeros((games, actions)),
        scratch=np.empty((games, cells), np.int16),
    )


def bytes_needed(games: int, most: int, cells: int, actions: int, parallel: int = 1) -> int:
    """What `lay_out` takes; a search needs little more, and the network's own."""
    node = NODE.itemsize + cells + 4 * actions
    game = 2 * 8 + parallel * 4 * (actions + 5) + 44 * actions + 2 * cells
    return games * (most * node + game) + NODE.itemsize


def _aligned(games: int, most: int) -> npt.NDArray[np.void]:
    """Records that begin where a line of the processor's cache does, and are one each."""
    size = NODE.itemsize
    room = np.empty((games * most + 1) * size, np.uint8)
    start = -room.ctypes.data % size
    return room[start : start + games * most * size].view(NODE).reshape(games, most)


def mirror(size: int, actions: int) -> npt.NDArray[np.int16]:
    """[actions]: the move of a view of the second player's, mirrored on the long diagonal, and the other way round."""
    moves = np.arange(actions, dtype=np.int16)
    moves[: size * size] = moves[: size * size].reshape(size, size).T.ravel()
    return moves


# Below nothing is allocated. Arrays that are only looked at need no counting of who holds them (_nrt), which would take
# half of the time; put into one function (forceinline), they are not handed on either.
_ENTRY: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy", "_nrt": False}
_PART = _ENTRY | {"forceinline": True}
_LOOSE = _PART | {"fastmath": {"nnan", "nsz", "reassoc", "contract"}}
"""May add up in any order, several at once."""


@njit(**_ENTRY)
def plant(tree, boards, movers, plies):
    """The roots, which wait for the network."""
    for row in range(len(boards)):
        for cell in range(boards.shape[1]):
            tree.boards[row, 0, cell] = boards[row, cell]
        _new(tree, row, 0, _NONE, movers[row], plies[row])
        tree.leaves[row, 0] = 0


@njit(**_PART)
def _new(tree, row, node, move, mover, plies):
    fresh = tree.nodes[row, node]
    fresh.value, fresh.rest, fresh.weight, fresh.raw, fresh.prior = 0.0, 0.0, 0.0, 0.0, 0.0
    fresh.visits, fresh.pending, fresh.first, fresh.sibling = 0, 0, _NONE, _NONE
    fresh.move, fresh.best, fresh.plies, fresh.mover, fresh.proven, fresh.over = move, _STALE, plies, mover, 0, False


# The network's side.


@njit(**_ENTRY)
def show(tree, mirrored, views):
    """The leaves that wait, as their movers see them, to the network's batch in the order of the games; how many they
    are. `views` [places, planes, cells]."""
    waiting = 0
    for row in range(len(tree.leaves)):
        for slot in range(tree.leaves.shape[1]):
            if tree.leaves[row, slot] >= 0:
                tree.places[row, slot] = waiting
                _show(tree, row, tree.leaves[row, slot], mirrored, views, waiting)
                waiting += 1
    return waiting


@njit(**_PART)
def _show(tree, row, leaf, mirrored, views, place):
    cells = tree.boards.shape[2]
    if tree.nodes[row, leaf].mover == SECOND:
        for cell in range(cells):
            stone = tree.boards[row, leaf, mirrored[cell]]
            views[place, 0, cell] = _UNIT if stone < 0 else _NOUGHT
            views[place, 1, cell] = _UNIT if stone > 0 else _NOUGHT
    else:
        for cell in range(cells):
            stone = tree.boards[row, leaf, cell]
            views[place, 0, cell] = _UNIT if stone > 0 else _NOUGHT
            views[place, 1, cell] = _UNIT if stone < 0 else _NOUGHT
    if views.shape[1] > 2:
        for cell in range(cells):
            views[place, 2, cell] = _UNIT if tree.nodes[row, leaf].plies == 1 else _NOUGHT


@njit(**_ENTRY)
def sound(logits, values):
    """Whether they are numbers; a logit may be -inf."""
    bad = 0
    for place in range(len(values)):
        bad += not np.isfinite(values[place])
        for action in range(logits.shape[1]):
            bad += not logits[place, action] < np.inf
    return bad == 0


@njit(**_PART)
def _keep(tree, row, leaf, mirrored, logits, values, place):
    """What the network says of a leaf, its logits put in the game's own order of moves."""
    if tree.nodes[row, leaf].mover == SECOND:
        for action in range(logits.shape[1]):
            tree.priors[row, leaf, action] = logits[place, mirrored[action]]
    else:
        for action in range(logits.shape[1]):
            tree.priors[row, leaf, action] = logits[place, action]
    tree.nodes[row, leaf].raw = values[place]


_TINY = np.float32(1e-37)
"""About the least prior of a legal move: one that the network thinks nothing of is still a move."""
# Of 32 bits, as a number that is written out has 64 and would make all of them slower.
_FLOOR, _MASKED, _LEAST = np.float32(LOW), np.float32(LOW / 4), np.float32(-80.0)
_NOUGHT, _HALF, _UNIT, _BIAS, _FRACTION = np.float32(0.0), np.float32(0.5), np.float32(1.0), np.int32(127), np.int32(23)
_TO_BINARY, _LN2, _LN2_REST = np.float32(1.44269504), np.float32(0.693359375), np.float32(-2.12194440e-4)
_C7, _C6, _C5 = np.float32(1.9875691500e-4), np.float32(1.3981999507e-3), np.float32(8.3334519073e-3)
_C4, _C3, _C2 = np.float32(4.1665795894e-2), np.float32(1.6666665459e-1), np.float32(5.0000001201e-1)
_SIGN, _MAGNITUDE = np.int32(31), np.int32(0x7FFFFFFF)
_LONG_SIGN, _LONG_MAGNITUDE = np.int64(63), np.int64(0x7FFFFFFFFFFFFFFF)


@njit(**_PART)
def _exp(x):
    """exp of -80 to 0, to 1e-7 of itself: several at once, which the C library's is not (after Cephes, expf)."""
    doublings = np.floor(x * _TO_BINARY + _HALF)
    x = x - doublings * _LN2 - doublings * _LN2_REST
    power = ((((_C7 * x + _C6) * x + _C5) * x + _C4) * x + _C3) * x + _C2
    return (power * x * x + x + _UNIT) * np.int32((np.int32(doublings) + _BIAS) << _FRACTION).view(np.float32)


@njit(**_PART)
def _rank(x):
    """A whole number that grows with x: the largest of those is found several at once, of others one by one."""
    bits = np.float64(x).view(np.int64)
    return bits ^ ((bits >> _LONG_SIGN) & _LONG_MAGNITUDE)


@njit(**_PART)
def _of_rank(rank):
    return np.int64(rank ^ ((rank >> _LONG_SIGN) & _LONG_MAGNITUDE)).view(np.float64)


@njit(**_PART)
def _short_rank(x):
    bits = np.float32(x).view(np.int32)
    return np.int32(bits ^ ((bits >> _SIGN) & _MAGNITUDE))


@njit(**_PART)
def _of_short_rank(rank):
    return np.int32(rank ^ ((rank >> _SIGN) & _MAGNITUDE)).view(np.float32)


@njit(**_LOOSE)
def _open(tree, row, node):
    """Logits into priors, of the legal moves."""
    priors, boards, cells, actions = tree.priors, tree.boards, tree.boards.shape[2], tree.priors.shape[2]
    for action in range(cells):
        # A mask of the network's own says that it thinks nothing of a move, not that there is none.
        logit = max(priors[row, node, action], _MASKED)
        priors[row, node, action] = logit if boards[row, node, action] == 0 else _FLOOR
    if actions > cells:
        logit = max(priors[row, node, cells], _MASKED)
        priors[row, node, cells] = logit if tree.nodes[row, node].plies == 1 else _FLOOR
    greatest = _short_rank(_FLOOR)
    for action in range(actions):
        greatest = max(greatest, _short_rank(priors[row, node, action]))
    largest, total = _of_short_rank(greatest), _NOUGHT
    for action in range(actions):
        prior = _exp(max(priors[row, node, action] - largest, _LEAST))
        prior = prior if priors[row, node, action] > _FLOOR else _NOUGHT
        priors[row, node, action] = prior
        total += prior
    share = _UNIT / total
    for action in range(actions):
        priors[row, node, action] *= share


@njit(**_LOOSE)
def _tally(tree, row, node):
    """The best of the moves not tried, and how likely they are together."""
    greatest, rest, actions = np.int32(0), 0.0, tree.priors.shape[2]
    for action in range(actions):
        prior = tree.priors[row, node, action]
        rest += prior
        greatest = max(greatest, _short_rank(prior))
    best = np.int32(actions)
    for action in range(actions):
        this = _short_rank(tree.priors[row, node, action]) == greatest
        best = min(best, np.int32(action) if this else np.int32(actions))
    tree.nodes[row, node].best = best if greatest > 0 else _NONE
    tree.nodes[row, node].rest = rest


@njit(**_PART)
def _refresh(tree, row, node):
    if tree.nodes[row, node].best == _STALE:
        if tree.nodes[row, node].first < 0:
            _open(tree, row, node)
        _tally(tree, row, node)


@njit(**_ENTRY)
def root(tree, mirrored, logits, values):
    """Keep what the network says of the roots, the first visit of each."""
    bases, actions = tree.bases, tree.priors.shape[2]
    for row in range(len(tree.nodes)):
        _keep(tree, row, 0, mirrored, logits, values, row)
        for action in range(actions):
            bases[row, action] = max(tree.priors[row, 0, action], LOW / 4)
        _refresh(tree, row, 0)
        largest = -np.inf
        for action in range(actions):
            if tree.priors[row, 0, action] > 0.0:
                largest = max(largest, bases[row, action])
        for action in range(actions):
            legal = tree.priors[row, 0, action] > 0.0
            bases[row, action] = max(bases[row, action] - largest, LOW / 2) if legal else LOW
            tree.shares[row, action] = tree.priors[row, 0, action]
        tree.nodes[row, 0].visits, tree.nodes[row, 0].value = 1, tree.nodes[row, 0].raw
        tree.leaves[row, 0] = _NONE


@njit(**_ENTRY)
def shake(tree, noise):
    """Gumbel noise to the logits of the roots."""
    for row in range(len(noise)):
        for action in range(noise.shape[1]):
            if tree.bases[row, action] > LOW:
                tree.bases[row, action] += noise[row, action]


@njit(**_ENTRY)
def mix(tree, noise, share):
    """Noise into the priors of the roots."""
    for row in range(len(noise)):
        for action in range(noise.shape[1]):
            if tree.bases[row, action] > LOW:
                mixed = (1.0 - share) * tree.shares[row, action] + share * noise[row, action]
                tree.shares[row, action] = max(mixed, 1e-300)
                tree.priors[row, 0, action] = max(np.float32(mixed), _TINY)
        _tally(tree, row, 0)


# Which way to go.


@njit(**_PART)
def _look(child, rule):
    """A child's visits, and what it is worth to the player who moves there. A simulation that is still on its way
    counts as one that was lost."""
    visits, worth = child.visits, -child.value
    if rule.parallel and child.pending > 0:
        if child.proven == 0:
            worth = (worth * visits - child.pending) / (visits + child.pending)
        visits += child.pending
    return visits, worth


@njit(**_PART)
def _weight(low, high, most, rule):
    """What a difference in value weighs (eq. 8), values spread from 0 to 1 as mctx does."""
    return (rule.visit_offset + most) * rule.value_scale / max(high - low, 1e-8)


@njit(**_PART)
def _mixed(raw, total, seen, weighted):
    """The value of moves not tried: the mean of the network's and of those tried, these by their priors (eq. 33)."""
    return (raw + total * weighted / seen) / (total + 1) if total > 0 else np.float64(raw)


@njit(**_LOOSE)
def _halving(tree, row, wanted, rule):
    """The best of the root's moves with so many visits that are not proven to lose; _NONE where there is none."""
    bases, tries, worths, scores = tree.bases, tree.tries, tree.worths, tree.scores
    weight, actions = 0.0, tree.bases.shape[1]
    if wanted > 0:
        low, high, most, untried = _rank(1e9), _rank(-1e9), _rank(0.0), 0
        total, seen, weighted = 0.0, 0.0, 0.0
        for action in range(actions):
            tried, share, worth = tries[row, action], tree.shares[row, action], worths[row, action]
            known, legal = tried > 0.0, bases[row, action] > LOW
            low = min(low, _rank(worth) if known else _rank(1e9))
            high = max(high, _rank(worth) if known else _rank(-1e9))
            most, total = max(most, _rank(tried)), total + tried
            seen, weighted = seen + (share if known else 0.0), weighted + share * worth
            untried |= legal & ~known
        lowest, highest = _of_rank(low), _of_rank(high)
        if untried:
            mixed = _mixed(tree.nodes[row, 0].raw, total, seen, weighted)
            lowest, highest = min(lowest, mixed), max(highest, mixed)
        weight = _weight(lowest, highest, _of_rank(most), rule)
    best = _rank(2.0 * LOW)
    for action in range(actions):
        base = bases[row, action]
        score = base + worths[row, action] * weight
        asked = (tries[row, action] == wanted) & (base > LOW)
        score = score if asked else 2.0 * LOW
        scores[row, action] = score
        best = max(best, _rank(score))
    highest = _of_rank(best)
    if highest <= LOW:
        return _NONE
    chosen = actions
    for action in range(actions):
        chosen = min(chosen, action if scores[row, action] == highest else actions)
    return chosen


@njit(**_PART)
def _improving(tree, row, node, decay, rule):
    """The move that brings the visits nearest to the improved policy (eqs. 11, 14), over the moves that are not proven
    to lose: (its child or _NONE, the move)."""
    nodes, above = tree.nodes, tree.nodes[row, node]
    first, untried = above.first, above.best
    if first < 0:
        return _NONE, untried
    here = nodes[row, first]
    if untried >= 0 and here.sibling < 0:
        # One child, which is as common as all other cases: it or the rest has the highest value, and how much less the
        # other weighs is known beforehand.
        if here.proven > 0:
            return _NONE, untried
        visits, worth = _look(here, rule)
        gap = worth - above.raw
        if abs(gap) >= 1e-8 * (visits + 1):
            mine, theirs = (1.0, decay[visits]) if gap > 0.0 else (decay[visits], 1.0)
            mine *= here.prior
            mine, theirs = (
                mine * (visits + 1) - visits * (mine + above.rest * theirs),
                tree.priors[row, node, untried] * theirs * (visits + 1),
            )
            if mine > theirs:
                return first, here.move
            return _NONE, untried
    total, most, seen, weighted, low, high = 0, 0, 0.0, 0.0, np.inf, -np.inf
    child = first
    while child >= 0:
        here = nodes[row, child]
        visits, worth = _look(here, rule)
        prior = np.float64(here.prior)
        total, most, seen, weighted = total + visits, max(most, visits), seen + prior, weighted + prior * worth
        low, high = min(low, worth), max(high, worth)
        child = here.sibling
    mixed = _mixed(above.raw, total, seen, weighted)
    if untried >= 0:
        low, high = min(low, mixed), max(high, mixed)
    weight = _weight(low, high, most, rule)
    unseen = np.exp((mixed - high) * weight) if untried >= 0 else 0.0
    mass = above.rest * unseen
    child = first
    while child >= 0:
        here = nodes[row, child]
        if here.proven <= 0:
            _, worth = _look(here, rule)
            here.weight = here.prior * np.exp((worth - high) * weight)
            mass += here.weight
        child = here.sibling
    best, chosen, move = -np.inf, _NONE, untried
    if untried >= 0:
        best = tree.priors[row, node, untried] * unseen / mass
    child = first
    while child >= 0:
        here = nodes[row, child]
        if here.proven <= 0:
            visits, _ = _look(here, rule)
            score = here.weight / mass - visits / (1.0 + total)
            if score > best or (score == best and here.move < move):
                best, chosen, move = score, child, here.move
        child = here.sibling
    return chosen, move


@njit(**_PART)
def _exploring(tree, row, node, rule):
    """The move of the highest Q + U; one that was not tried has Q = 0: (its child or _NONE, the move)."""
    # The node's own visits: without its first, all moves of a new node would be alike.
    above = tree.nodes[row, node]
    reach = rule.exploration * np.sqrt(np.float64(above.visits + above.pending))
    best, chosen, move = -np.inf, _NONE, above.best
    if move >= 0:
        best = reach * tree.priors[row, node, move]
    child = above.first
    while child >= 0:
        here = tree.nodes[row, child]
        if here.proven <= 0:
            visits, worth = _look(here, rule)
            score = worth + reach * here.prior / (1.0 + visits)
            if score > best or (score == best and here.move < move):
                best, chosen, move = score, child, here.move
        child = here.sibling
    return chosen, move


# Down and up.


@njit(**_PART)
def _descend(tree, row, slot, wanted, decay, rule, size):
    """From the root to a position that is new, waits, is proven or over, by a path that is written down; a new one
    becomes a node."""
    nodes = tree.nodes
    node, depth, tree.paths[row, slot, 0] = 0, 0, 0
    while True:
        child, move = _NONE, _NONE
        if node == 0 and rule.gumbel:
            move = _halving(tree, row, wanted, rule)
            if move >= 0:
                child = tree.heads[row, move]
        # At the root only where the moves in question are proven to lose.
        if move < 0:
            _refresh(tree, row, node)
            if rule.gumbel:
                child, move = _improving(tree, row, node, decay, rule)
            else:
                child, move = _exploring(tree, row, node, rule)
        if child < 0:
            child = _grow(tree, row, node, move, rule, size)
        node, depth = child, depth + 1
        tree.paths[row, slot, depth] = node
        if nodes[row, node].visits == 0 or nodes[row, node].over or nodes[row, node].proven != 0:
            tree.depths[row, slot] = depth
            return node


@njit(**_PART)
def _grow(tree, row, node, move, rule, size):
    """The node that a move not tried yet leads to."""
    above, child = tree.nodes[row, node], tree.counts[row]
    tree.counts[row] += 1
    _new(tree, row, child, move, 1 - above.mover, above.plies + 1)
    fresh = tree.nodes[row, child]
    fresh.prior, tree.priors[row, node, move] = tree.priors[row, node, move], 0.0
    fresh.sibling, above.first, above.best = above.first, child, _STALE
    if node == 0:
        tree.heads[row, move] = child
    for cell in range(tree.boards.shape[2]):
        tree.boards[row, child, cell] = tree.boards[row, node, cell]
    if make(tree.boards[row, child], size, move, above.mover, tree.scratch[row]):
        fresh.over, fresh.raw, fresh.proven = True, -1.0, -1 if rule.solve else 0
    return child


@njit(**_PART)
def _ascend(tree, row, slot, rule):
    """A visit more for a leaf and for all above it, and what is proven by it."""
    depth = tree.depths[row, slot]
    leaf = tree.nodes[row, tree.paths[row, slot, depth]]
    news, value = leaf.proven, np.float64(leaf.raw)
    for level in range(depth, -1, -1):
        here = tree.nodes[row, tree.paths[row, slot, level]]
        if level < depth and news != 0:
            # A move that wins proves the node; one that loses may be its last.
            news = 1 if news < 0 else _all_lose(tree, row, tree.paths[row, slot, level])
            here.proven = news
        here.visits += 1
        if here.proven != 0:
            value = np.float64(here.proven)
            here.value = value
        else:
            here.value += (value - here.value) / here.visits
        value = -value
    _note(tree, row, tree.paths[row, slot, 1], rule)


@njit(**_PART)
def _all_lose(tree, row, node):
    """-1 where every move is proven to lose, else 0."""
    _refresh(tree, row, node)
    if tree.nodes[row, node].best >= 0:
        return 0
    child = tree.nodes[row, node].first
    while child >= 0:
        if tree.nodes[row, child].proven <= 0:
            return 0
        child = tree.nodes[row, child].sibling
    return -1


@njit(**_PART)
def _note(tree, row, child, rule):
    """What a root's move has come to, where the root looks for it."""
    here = tree.nodes[row, child]
    visits, worth = _look(here, rule)
    tree.tries[row, here.move], tree.worths[row, here.move] = visits, worth
    if here.proven > 0:
        tree.bases[row, here.move] = LOW


@njit(**_PART)
def _send(tree, row, slot, simulations, rule):
    """So many simulations more, or less, on their way by this path."""
    for level in range(tree.depths[row, slot] + 1):
        tree.nodes[row, tree.paths[row, slot, level]].pending += simulations
    _note(tree, row, tree.paths[row, slot, 1], rule)


@njit(**_PART)
def _advance(tree, row, budgets, schedules, which, decay, rule, mirrored, size, logits, values):
    """Up from the leaves that waited, then down until as many wait again as may, or the budget is used up. What needs
    no network goes up at once."""
    parallel = tree.leaves.shape[1]
    for slot in range(parallel):
        leaf = tree.leaves[row, slot]
        if leaf >= 0:
            _keep(tree, row, leaf, mirrored, logits, values, tree.places[row, slot])
            if rule.parallel:
                _send(tree, row, slot, -1, rule)
            _ascend(tree, row, slot, rule)
            tree.leaves[row, slot] = _NONE
            tree.done[row] += 1
    slot = 0
    while slot < parallel and tree.done[row] + slot < budgets[row] and tree.nodes[row, 0].proven == 0:
        wanted = schedules[which[row, 0], which[row, 1], tree.done[row] + slot]
        nodes_before = tree.counts[row]
        leaf = _descend(tree, row, slot, wanted, decay, rule, size)
        if tree.nodes[row, leaf].proven != 0 or tree.nodes[row, leaf].over:
            _ascend(tree, row, slot, rule)
            tree.done[row] += 1
        elif leaf < nodes_before:
            # It waits already: there is no other way to go until the network has answered.
            break
        else:
            if rule.parallel:
                _send(tree, row, slot, 1, rule)
            tree.leaves[row, slot] = leaf
            slot += 1


@njit(**_ENTRY)
def advance(tree, budgets, schedules, which, decay, rule, mirrored, size, logits, values, views):
    """`_advance` every game by a call of the network, and `show` it what waits then. `schedules` [kinds, moves
    considered + 1, simulations]: how many visits the root's moves in question have; `which` [games, 2]: a game's kind,
    and how many moves it considers; `decay` [visits]: how much less a move weighs whose value is the lowest than one of
    the highest, by the most visits of any."""
    for row in range(len(budgets)):
        _advance(tree, row, budgets, schedules, which, decay, rule, mirrored, size, logits, values)
    return show(tree, mirrored, views)


@njit(**_ENTRY)
def conclude(tree, rule, moves, policies, visits):
    """The move to play, the policy to learn and the visits, a game."""
    for row in range(len(moves)):
        _tally(tree, row, 0)
        moves[row] = _conclude(tree, row, rule, policies, visits)


@njit(**_PART)
def _conclude(tree, row, rule, policies, visits):
    above, shares, weights, actions = tree.nodes[row, 0], tree.shares, tree.scores, tree.shares.shape[1]
    total, most, leading, seen, weighted, low, high, winning = 0, 0, 0, 0.0, 0.0, np.inf, -np.inf, _NONE
    for action in range(actions):
        if tree.heads[row, action] >= 0:
            here = tree.nodes[row, tree.heads[row, action]]
            visits[row, action] = here.visits
            total, most = total + here.visits, max(most, here.visits)
            seen, weighted = seen + shares[row, action], weighted - shares[row, action] * here.value
            low, high = min(low, -here.value), max(high, -here.value)
            if here.proven <= 0:
                leading = max(leading, here.visits)
            if here.proven < 0 and winning < 0:
                winning = action
    mixed = _mixed(above.raw, total, seen, weighted)
    if above.best >= 0:
        low, high = min(low, mixed), max(high, mixed)
    weight = _weight(low, high, most, rule)
    chosen, best, mass = _NONE, -np.inf, 0.0
    for action in range(actions):
        weights[row, action] = 0.0
        tried = tree.heads[row, action] >= 0
        losing = tried and tree.nodes[row, tree.heads[row, action]].proven > 0
        if shares[row, action] > 0.0 and not losing:
            if rule.gumbel:
                gain = ((tree.worths[row, action] if tried else mixed) - high) * weight
                weights[row, action], score = shares[row, action] * np.exp(gain), tree.bases[row, action] + gain
                candidate = visits[row, action] == leading
            else:
                # Where every visit went to moves that turned out to lose, the priors of the others decide.
                score = np.float64(visits[row, action]) if leading else shares[row, action]
                weights[row, action], candidate = score, True
            mass += weights[row, action]
            if candidate and score > best:
                best, chosen = score, action
    if winning >= 0 or chosen < 0:
        # Where every move loses, what the priors like best is played, and they are what there is to learn.
        mass = 0.0
        for action in range(actions):
            if winning < 0 and shares[row, action] > 0.0 and (chosen < 0 or shares[row, action] > shares[row, chosen]):
                chosen = action
            weights[row, action] = shares[row, action] if winning < 0 else np.float64(action == winning)
            mass += weights[row, action]
        chosen = winning if winning >= 0 else chosen
    for action in range(actions):
        policies[row, action] = weights[row, action] / mass
    return chosen


@njit(**_ENTRY)
def follow(tree, moves, lines):
    """The line of each game: its move, and from there on the move that was visited most."""
    for row in range(len(moves)):
        _follow(tree.nodes[row], moves[row], lines[row])


@njit(**_PART)
def _follow(nodes, move, line):
    line[0], node = move, 0
    for ply in range(1, len(line)):
        child = nodes[node].first
        while child >= 0 and nodes[child].move != move:
            child = nodes[child].sibling
        if child < 0:
            return
        node, most = child, 0
        child, move = nodes[node].first, _NONE
        while child >= 0:
            if nodes[child].visits > most:
                most, move = nodes[child].visits, nodes[child].move
            child = nodes[child].sibling
        if move < 0:
            return
        line[ply] = move

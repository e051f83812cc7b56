"""Who can be named on the command line to play Hex: a registry's snapshots, perfect play, chance, an outside engine."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flywheel import params as parameters
from flywheel.errors import InputError
from flywheel.params import Params
from flywheel.problems.hex_positions import load
from flywheel.records import Problem
from flywheel.seeds import stream
from storage import addresses

if TYPE_CHECKING:
    from flywheel.search.players import Player
    from storage.registry import Registry

KINDS = "gen/7 (the network alone), gen/7@64 (with 64 simulations a move), perfect, random, gtp:COMMAND"


def recipe_of(opened: Registry) -> Params:
    """The params of a registry of Hex. Raises InputError for any other."""
    params = parameters.load(opened.layout.params)
    if params.problems.domain != "hex":
        raise InputError(
            f"{opened.root} is a registry of {params.problems.domain}, which is no game; name one of Hex with "
            "--registry, such as `flywheel run --preset hex-5` makes"
        )
    return params


def openings_of(params: Params, count: int, seed: int) -> list[Problem]:
    """So many openings, drawn by the seed; all there are where there are fewer."""
    section = params.problems
    known = load(section.size, section.swap, section.shares, (section.train, 0, 0))
    return sorted(known, key=lambda problem: stream(seed, "opening", problem.problem_id))[:count]


@contextmanager
def players(opened: Registry, names: list[str]) -> Iterator[list[Player]]:
    """The players of these names. Raises InputError for a name that is none, or given twice."""
    params = recipe_of(opened)
    if len(set(names)) < len(names):
        raise InputError(f"got players {', '.join(names)}, expected each once")
    with ExitStack() as held:
        scratch = Path(tempfile.mkdtemp(prefix="flywheel-players-"))
        held.callback(shutil.rmtree, scratch, ignore_errors=True)
        found = []
        for name in names:
            found.append(_player(opened, params, name, scratch))
            held.callback(found[-1].close)
        yield found


def network(opened: Registry, params: Params, generation: int, scratch: Path) -> Any:
    """A generation's student, ready to be asked."""
    from flows.controls import copy_model
    from tasks.boards import networks

    return networks.load(params, copy_model(opened, generation, "student", scratch))


def _player(opened: Registry, params: Params, name: str, scratch: Path) -> Player:
    from flywheel.models import board_net
    from flywheel.search.players import NetworkPlayer, PerfectPlayer, RandomPlayer, SearchPlayer
    from tasks.boards import matches, networks

    if name == "random":
        return RandomPlayer()
    if name == "perfect":
        if not matches.plays_perfectly(params):
            raise InputError(
                f"got player perfect on {params.problems.size}x{params.problems.size}"
                f"{' with' if params.problems.swap else ' without'} the swap rule; perfect play is known up to "
                f"{matches.LARGEST_PERFECT}x{matches.LARGEST_PERFECT} without it"
            )
        return PerfectPlayer(params.problems.size)
    if name.startswith("gtp:"):
        if params.problems.swap:
            raise InputError(f"got player {name!r} with the swap rule, which GTP has no word for; name another")
        from flywheel.search.gtp import Engine

        engine = Engine(name.removeprefix("gtp:"), params.problems.size, name)
        if shutil.which(engine.command[0]) is None:
            raise InputError(f"got player {name!r}, but there is no program {engine.command[0]!r}; give its whole path")
        return engine
    if not re.fullmatch(r"gen/\d+(@[1-9]\d*)?", name):
        raise InputError(f"got player {name!r}, expected one of: {KINDS}")
    address, _, budget = name.partition("@")
    generation = addresses.resolve(opened, address).generation
    assert generation is not None, address
    net = network(opened, params, generation, scratch)
    evaluate = board_net.evaluator(net)
    if not budget:
        return NetworkPlayer(name, evaluate, net.shape.flops)
    return SearchPlayer(name, evaluate, networks.playing(params, int(budget)), net.shape.flops)

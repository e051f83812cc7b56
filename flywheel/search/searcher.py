"""Searchers by name, and which rewards each can be used with."""

from __future__ import annotations

from flywheel import sections
from flywheel.errors import ConfigError
from flywheel.rewards.reward import Facts, facts
from flywheel.search.protocols import Sampling, Searcher


def sampling(section: sections.Generate) -> Sampling:
    return Sampling(section.temperature, section.top_p, section.top_k)


def load(section: sections.Generate, reward: sections.Reward) -> Searcher:
    """The searcher that a `generate` section describes. How the scores of steps make one is the reward's setting."""
    from flywheel.search.adaptive import Adaptive
    from flywheel.search.beam import Beam
    from flywheel.search.best_of_n import BestOfN
    from flywheel.search.dvts import Dvts
    from flywheel.search.tree import Tree

    samples, how, tokens, most = section.samples, sampling(section), section.max_new_tokens, section.max_flops
    by_steps = (section.max_steps, reward.aggregate, how, tokens, most)
    if section.searcher == "best_of_n":
        return BestOfN(samples, how, tokens, most)
    if section.searcher == "adaptive":
        return Adaptive(samples, section.rounds, how, tokens, most)
    if section.searcher == "beam":
        return Beam(samples, section.width, section.lookahead, *by_steps)
    if section.searcher == "dvts":
        return Dvts(samples, section.width, section.lookahead, *by_steps)
    return Tree(samples, section.width, *by_steps)


def misfit(searcher: Searcher, name: str, reward: Facts) -> str | None:
    """Why the reward of this name cannot serve this searcher; None where it can."""
    if searcher.needs_steps and not reward.gives_steps:
        return f"searcher {searcher.name} needs step scores, which reward {name} does not give"
    if searcher.needs_decision and not (reward.verifies or reward.votes):
        return f"searcher {searcher.name} needs a reward that verifies or votes, which reward {name} does not"
    if searcher.judges_alone and reward.votes:
        return f"searcher {searcher.name} asks for the reward of single answers, which reward {name} cannot give"
    return None


def check_pair(searcher: Searcher, reward: sections.Reward) -> None:
    """Raise ConfigError, with both names, where the two do not fit."""
    reason = misfit(searcher, reward.name, facts(reward))
    if reason is not None:
        raise ConfigError(
            [f"generate.searcher and reward.name: {reason}; choose another of the two (docs/search.md lists the pairs)"]
        )

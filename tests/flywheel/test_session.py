"""Sessions against `generate`, against one full forward pass, and against themselves: trees, capacity, cost."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from flywheel.errors import Interrupted
from flywheel.models import attention, suitability
from flywheel.models.language import LanguageModel
from flywheel.models.protocols import Extension, Sampling, Segment
from flywheel.models.sampler import TextSampler
from flywheel.models.session import TextSession
from flywheel.search.protocols import never_stop
from tests.flywheel.small_models import (
    GREEDY,
    PROMPTS,
    RERUN,
    SHARED,
    full_pass,
    generated,
    gpt2,
    llama,
    llama_grouped,
    made,
    model_of,
    opened,
    qwen3,
    recurrent,
    request,
    sliding,
)


@pytest.mark.parametrize("config", [*SHARED, *RERUN])
def test_greedy_is_what_generate_gives(config: Callable[[], Any]) -> None:
    model = model_of(config)
    session = opened(model)
    segments = session.extend([request(number, sampling=GREEDY, limit=20) for number in range(5)], never_stop)
    answers = [list(session.token_ids(segment.node)) for segment in segments]
    assert answers == [generated(model, prompt, 20) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in answers}) > 2, "the answers differ, so the comparison says something"


@pytest.mark.parametrize("config", [*SHARED, *RERUN])
def test_the_way_that_suits_is_taken(config: Callable[[], Any]) -> None:
    """The config says it, and the trial says the same."""
    model = model_of(config)
    assert suitability.plain(model.model) is (config in SHARED)
    assert TextSampler(model).shares_prompts is (config in SHARED)


def test_a_window_wider_than_the_trial_is_seen_in_the_config() -> None:
    config = sliding()
    config.sliding_window = 100
    assert not TextSampler(made(config)).shares_prompts
    config.sliding_window = None
    assert TextSampler(made(config)).shares_prompts


@pytest.mark.parametrize("config", [llama, llama_grouped])
def test_a_model_that_is_not_what_its_class_says_is_run_as_it_is(config: Callable[[], Any]) -> None:
    """Whatever changes the logits on the way, the trial sees it."""
    model = made(config())
    model.model.model.layers[1].self_attn.o_proj.register_forward_hook(lambda _module, _args, output: 3.0 * output)
    if config is llama:
        assert not TextSampler(model).shares_prompts
    session = opened(model)
    segments = session.extend([request(number, sampling=GREEDY, limit=9) for number in range(5)], never_stop)
    answers = [list(session.token_ids(segment.node)) for segment in segments]
    assert answers == [generated(model, prompt, 9) for prompt in PROMPTS]
    assert answers != [generated(model_of(config), prompt, 9) for prompt in PROMPTS]


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sliding_window", "position_bias"])
def test_the_cascade_refuses_what_it_would_leave_out(name: str) -> None:
    with pytest.raises(NotImplementedError, match=f"the cascade has no {name}"):
        attention._attend(None, None, None, None, None, scaling=1.0, cascade=None, **{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("config", [*SHARED, *RERUN])
def test_log_probabilities_are_those_of_a_full_pass(config: Callable[[], Any]) -> None:
    """Through a tree: answers of several lengths, gone on from, in mixed samplings."""
    model = model_of(config)
    session = opened(model)
    first = session.extend([request(n, name=i, limit=2 + i) for n in range(5) for i in range(3)], never_stop)
    second = session.extend(children(session, first, 2, limit=5, sampling=Sampling(0.7)), never_stop)
    third = session.extend(children(session, second, 2, limit=4), never_stop)
    for segment in [*first, *second, *third]:
        node = session._nodes[segment.node]
        expected: list[float] = []
        answer = session.token_ids(segment.node)
        for one in node.path():
            temperature = 0.7 if one in [session._nodes[s.node] for s in second] else 1.0
            expected += full_pass(model, PROMPTS[node.prompt], answer, temperature)[len(expected) : one.depth]
        assert session.log_probabilities(segment.node) == pytest.approx(expected, abs=1e-4)
        assert segment.log_probability == pytest.approx(sum(expected[node.depth - segment.tokens :]), abs=1e-4)


def children(session: TextSession, segments: list[Segment], count: int, **settings: Any) -> list[Extension]:
    return [
        request(session._nodes[segment.node].prompt, segment.node, (segment.node, index), **dict(settings))
        for segment in segments
        if segment.stop_reason != "eos"
        for index in range(count)
    ]


def drawn(session: TextSession, segments: list[Segment]) -> list[tuple[Any, ...]]:
    return [(session.token_ids(one.node), one.stop_reason, one.tokens) for one in segments]


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], LanguageModel]:
    def of(config: Callable[[], Any]) -> LanguageModel:
        model = model_of(config)
        monkeypatch.setattr(model.model.generation_config, "eos_token_id", [1, 20, 21, 22, 23])
        return model

    return of


Ending = Callable[[Callable[[], Any]], LanguageModel]


@pytest.mark.parametrize("config", [llama, llama_grouped, gpt2, sliding, recurrent])
@pytest.mark.parametrize("capacity", [1, 2, 5, 16])
def test_capacity_changes_no_token(config: Callable[[], Any], capacity: int, ending: Ending) -> None:
    """Rows come and go in another order, beside others; in float64 the answers stay."""
    model = ending(config)
    outcomes = []
    for options in ({}, {"capacity": capacity}):
        session = opened(model, **options)
        first = session.extend(
            [request(n, name=i, limit=1 + (n + i) % 7) for n in range(5) for i in range(6)], never_stop
        )
        second = session.extend(children(session, first, 2, limit=9), never_stop)
        third = session.extend(
            [*children(session, second[::3], 1, limit=6), *(request(n, name="again") for n in range(5))], never_stop
        )
        outcomes.append([drawn(session, some) for some in (first, second, third)])
    assert outcomes[0] == outcomes[1]
    assert {line[1] for line in outcomes[0][1]} == {"eos", "length"}


@pytest.mark.parametrize("config", [llama, qwen3])
def test_answers_do_not_depend_on_neighbours_or_order(config: Callable[[], Any], ending: Ending) -> None:
    model = ending(config)
    requests = [request(n, name=i) for n in range(5) for i in range(4)]
    session = opened(model)
    expected = drawn(session, session.extend(requests, never_stop))
    shuffled = np.random.default_rng(0).permutation(len(requests)).tolist()
    session = opened(model)
    found = drawn(session, session.extend([requests[number] for number in shuffled], never_stop))
    assert [found[shuffled.index(number)] for number in range(len(requests))] == expected
    session = opened(model)
    assert [drawn(session, session.extend([one], never_stop))[0] for one in requests] == expected


@pytest.mark.parametrize("config", [llama, llama_grouped, sliding])
def test_a_tree_is_drawn_as_one_answer_would_be(config: Callable[[], Any]) -> None:
    """Cut into segments by limits and by steps, an answer with one key is the answer drawn at one go."""
    model = model_of(config)
    session = opened(model)
    whole = [session.token_ids(s.node) for s in session.extend([request(n, limit=16) for n in range(5)], never_stop)]
    for one_step in (False, True):
        session = opened(model)
        nodes: dict[int, int | None] = dict.fromkeys(range(5))
        for _ in range(40):
            open_ones = [n for n, node in nodes.items() if node is None or not_over(session, node, 16)]
            asked = []
            for number in open_ones:
                parent = nodes[number]
                left = 16 - (0 if parent is None else len(session.token_ids(parent)))
                asked.append(request(number, parent, limit=min(left, 16 if one_step else 3), one_step=one_step))
            for number, segment in zip(open_ones, session.extend(asked, never_stop), strict=True):
                nodes[number] = segment.node
        assert [session.token_ids(node) for node in nodes.values() if node is not None] == whole


def not_over(session: TextSession, node: int, limit: int) -> bool:
    return len(session.token_ids(node)) < limit and not session._nodes[node].ended


def test_the_same_call_gives_the_same_bits() -> None:
    model = made(llama())
    model.model.float()
    outcomes = []
    for _ in range(2):
        session = opened(model, capacity=7)
        first = session.extend([request(n, name=i) for n in range(5) for i in range(6)], never_stop)
        second = session.extend(children(session, first, 2), never_stop)
        outcomes.append(([*first, *second], [session.log_probabilities(s.node) for s in second], session.cost()))
    assert outcomes[0] == outcomes[1]


def by_hand(model: LanguageModel, positions: range, whole: bool = True) -> float:
    """FLOPs of feeding these positions, one by one, or, unless `whole`, at once with logits after the last alone."""
    shape = model.shape
    spared = 0 if whole else 2 * shape.head_parameters * (len(positions) - 1)
    return -spared + sum(
        2.0 * shape.matrix_parameters + 4.0 * shape.layers * shape.attention_width * (position + 1)
        for position in positions
    )


@pytest.mark.parametrize("config", [llama, llama_grouped])
def test_cost_counts_what_is_shared_once(config: Callable[[], Any], ending: Ending) -> None:
    model = ending(config)
    session = opened(model)
    first = session.extend([request(n, name=i, limit=3) for n in range(5) for i in range(2)], never_stop)
    assert session.cost().prefill == pytest.approx(sum(by_hand(model, range(len(prompt)), False) for prompt in PROMPTS))
    for segment in first:
        begun = len(PROMPTS[session._nodes[segment.node].prompt])
        assert segment.flops == pytest.approx(by_hand(model, range(begun, begun + segment.tokens - 1)))
    before = session.cost()
    second = session.extend(children(session, first, 3, limit=4), never_stop)
    for parent, some in families(first, second, 3):
        depth = len(PROMPTS[session._nodes[parent.node].prompt]) + parent.tokens
        # Nothing was kept of an answer cut at its limit: all its tokens are fed anew, once for the three.
        shared = by_hand(model, range(depth - parent.tokens, depth))
        own = sum(by_hand(model, range(depth, depth + one.tokens - 1)) for one in some)
        assert sum(one.flops for one in some) == pytest.approx(shared + own)
    cost = session.cost()
    assert cost.policy == pytest.approx(sum(segment.flops for segment in [*first, *second]))
    assert cost.tokens == sum(segment.tokens for segment in [*first, *second])
    assert cost.prefill == before.prefill, "prompts are run once"
    assert (cost.reward, cost.training) == (0.0, 0.0)
    assert 0.0 < cost.padding < cost.useful


def families(first: list[Segment], second: list[Segment], count: int) -> list[tuple[Segment, list[Segment]]]:
    """Segments that could be gone on from, each with its `count` children."""
    parents = [segment for segment in first if segment.stop_reason != "eos"]
    assert len(second) == count * len(parents) > 0
    return [(parent, second[count * place : count * place + count]) for place, parent in enumerate(parents)]


def test_steps_kept_are_not_run_again() -> None:
    """Of a step, only its last token is fed for its children: it was drawn, not fed."""
    model = model_of(llama)
    session = opened(model)
    first = session.extend([request(n, limit=12, one_step=True) for n in range(5)], never_stop)
    second = session.extend(children(session, first, 2, limit=3), never_stop)
    for parent, pair in families(first, second, 2):
        depth = len(PROMPTS[session._nodes[parent.node].prompt]) + parent.tokens
        own = sum(by_hand(model, range(depth, depth + one.tokens - 1)) for one in pair)
        assert sum(one.flops for one in pair) == pytest.approx(by_hand(model, range(depth - 1, depth)) + own)


def test_where_nothing_is_kept_it_is_run_again_and_counted() -> None:
    model = model_of(sliding)
    session = opened(model)
    first = session.extend([request(n, name=i, limit=3) for n in range(5) for i in range(2)], never_stop)
    assert session.cost().prefill == pytest.approx(sum(by_hand(model, range(len(prompt)), False) for prompt in PROMPTS))
    second = session.extend(children(session, first, 2, limit=3), never_stop)
    for parent, pair in families(first, second, 2):
        depth = len(PROMPTS[session._nodes[parent.node].prompt]) + parent.tokens
        own = sum(by_hand(model, range(depth, depth + one.tokens - 1)) for one in pair)
        assert sum(one.flops for one in pair) == pytest.approx(by_hand(model, range(depth), False) + own)
    assert session.cost().policy == pytest.approx(sum(segment.flops for segment in [*first, *second]))


def test_nothing_is_padded_where_nothing_is_ragged() -> None:
    session = opened(model_of(llama), [[3, 4, 5], [6, 7, 8]])
    session.extend([request(n, name=i, limit=4) for n in range(2) for i in range(3)], never_stop)
    cost = session.cost()
    assert cost.padding == pytest.approx(0.0, abs=1e-6 * cost.useful)


@pytest.mark.parametrize("config", [llama, sliding])
def test_requests_that_cannot_be(config: Callable[[], Any], ending: Ending) -> None:
    session = opened(ending(config))
    segments = session.extend([request(n, name=i, limit=9) for n in range(5) for i in range(4)], never_stop)
    ended = next(segment.node for segment in segments if segment.stop_reason == "eos")
    prompt = session._nodes[ended].prompt
    for wrong, message in [
        (request(5), "got prompt 5; expected 0 to 4"),
        (request(prompt, ended), f"node {ended} ended with an end token"),
        (request(0, 99), "got parent 99; expected a node"),
        (request((prompt + 1) % 5, ended), "belongs to prompt"),
        (request(0, limit=0), "got max_new_tokens=0; expected 1 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            session.extend([wrong], never_stop)
    session.release(1)
    with pytest.raises(ValueError, match="prompt 1 was released"):
        session.extend([request(1)], never_stop)
    with pytest.raises(ValueError, match=r"prompts \[1\] have no tokens"):
        opened(ending(config), [[3], []])
    assert session.extend([], never_stop) == []


def test_released_memory_is_used_anew() -> None:
    session = opened(model_of(llama))
    pool = session._decoder._pool  # type: ignore[attr-defined]
    assert pool.taken == 0
    for number in range(5):
        segments = session.extend([request(number, name=i, one_step=True, limit=9) for i in range(8)], never_stop)
        kept = sum(segment.tokens - 1 for segment in segments if segment.stop_reason != "eos")
        assert pool.taken == kept > 0
        texts = [session.text(segment.node) for segment in segments]
        session.release(number)
        session.release(number)
        assert pool.taken == 0
        assert [session.text(segment.node) for segment in segments] == texts
    assert len(pool._data) == 256, "what was given back served again"


@pytest.mark.parametrize("config", [llama, sliding])
def test_a_stop_loses_the_call_and_nothing_else(config: Callable[[], Any]) -> None:
    model = model_of(config)
    session = opened(model)
    first = session.extend([request(n, limit=4, one_step=True) for n in range(5)], never_stop)
    before, cost = drawn(session, first), session.cost()
    calls = itertools.count()

    def stop() -> None:
        if next(calls) == 4:
            raise Interrupted("stop")

    taken = session._decoder._pool.taken if config is llama else 0  # type: ignore[attr-defined]
    with pytest.raises(Interrupted):
        session.extend(children(session, first, 3, one_step=True), stop)
    assert drawn(session, first) == before
    assert (session.cost().policy, session.cost().tokens) == (cost.policy, cost.tokens)
    assert session.cost().padding > cost.padding, "the work that is lost was done"
    after = session.extend(children(session, first, 1), never_stop)
    fresh = opened(model)
    fresh.extend([request(n, limit=4, one_step=True) for n in range(5)], never_stop)
    assert drawn(session, after) == drawn(fresh, fresh.extend(children(fresh, first, 1), never_stop))
    if config is llama:
        assert session._decoder._pool.taken == taken + 5  # type: ignore[attr-defined]

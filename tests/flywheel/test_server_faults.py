"""Servers that fail in every way, are stopped or asked again, against a small real one that misbehaves on demand."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import Interrupted, ModelError
from flywheel.models import server_client
from flywheel.models.protocols import Extension, Sampling
from flywheel.problems.countdown import Countdown
from flywheel.rewards.exact import Exact
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run
from tests.flywheel.small_server import (
    WARM,
    Dialect,
    SmallServer,
    ask,
    connect,
    drop,
    letters,
    serving,
    texts_of,
)

pytestmark = pytest.mark.usefixtures("impatient")
DOMAIN = Countdown(3, 1, 9, 40, (0.6, 0.2, 0.2))
GREEDY = Sampling(None)


def after(times: int, misbehave: Callable[[Any], None]) -> Callable[[BaseHTTPRequestHandler], bool]:
    """Misbehave the first so many times."""
    left = [times]
    lock = threading.Lock()

    def fault(handler: BaseHTTPRequestHandler) -> bool:
        with lock:
            left[0] -= 1
            if left[0] < 0:
                return False
        misbehave(handler)
        return True

    return fault


def cut_off(handler: Any) -> None:
    handler.send(200, b'{"choices": [{"text": "12', {"Content-Length": "500"})
    drop(handler)


FAULTS: dict[str, Callable[[Any], None]] = {
    "drops": drop,
    "stalls": lambda handler: time.sleep(0.6) or drop(handler),
    "500": lambda handler: handler.send(500, {"error": "broken"}),
    "503": lambda handler: handler.send(503, {"error": "loading"}),
    "429": lambda handler: handler.send(429, {"error": "busy"}, {"Retry-After": "0.4"}),
    "half a body": cut_off,
    "half JSON": lambda handler: handler.send(200, b'{"choices": [{"text": "12'),
    "a list": lambda handler: handler.send(200, []),
    "no choices": lambda handler: handler.send(200, {"choices": [], "error": "overloaded"}),
    "no text": lambda handler: handler.send(200, {"choices": [{"index": 0}]}),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_passing_fault_is_tried_again(small: SmallServer, name: str) -> None:
    sampler = connect(small, seconds=0.4)
    small.fault = after(2, FAULTS[name])
    assert texts_of(sampler, ask(2), "1 -> 3\n") == [letters("1 -> 3\n", seed, 20)[0] for seed in (0, 1)]
    assert len(small.seen) == 3
    if name == "429":
        waits = [later - sooner for sooner, later in zip(small.times, small.times[1:], strict=False)]
        assert min(waits) >= 0.4


@pytest.mark.parametrize("name", FAULTS)
def test_a_lasting_fault_loses_only_its_own_answers(small: SmallServer, name: str) -> None:
    sampler = connect(small, seconds=0.4, retries=1)

    def fault(handler: Any) -> bool:
        mine = small.seen[-1]["prompt"].startswith("bad")
        if mine:
            FAULTS[name](handler)
        return mine

    session = sampler.open([[], []], ["bad\n", "good\n"], "\n")
    good = session.extend(ask(2, 1), lambda: None)
    small.fault = fault
    bad = session.extend(ask(2, 0), lambda: None)
    small.fault = None
    later = session.extend(ask(1, 1), lambda: None)
    assert [(segment.stop_reason, segment.tokens) for segment in bad] == [("failed", 0)] * 2
    assert [session.text(segment.node) for segment in bad] == ["", ""]
    assert [segment.stop_reason != "failed" for segment in good + later] == [True] * 3
    assert len(session.failures) == 2
    assert all(session.failures)


def test_a_server_that_dies_fails_what_is_left_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Dialect()) as running:
        sampler = connect(running, retries=2)
        session = sampler.open([[]] * 40, [f"{number}\n" for number in range(40)], "\n")
        session.extend(ask(1, 0), lambda: None)
    # Forty times all retries, four at once, would be seven seconds of waiting.
    monkeypatch.setattr(server_client, "FIRST_PAUSE_SECONDS", 0.3)
    start = time.monotonic()
    segments = session.extend([one for number in range(40) for one in ask(1, number)], lambda: None)
    assert {segment.stop_reason for segment in segments} == {"failed"}
    assert time.monotonic() - start < 4.0


@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_a_refusal_is_raised_at_once_and_loses_no_answer(small: SmallServer, tmp_path: Path, status: int) -> None:
    sampler = connect(small, cache_folder=tmp_path, requests_at_once=1)

    def fault(handler: Any) -> bool:
        refused = small.seen[-1]["prompt"].startswith("bad")
        if refused:
            handler.send(status, {"error": "context too long"})
        return refused

    small.fault = fault
    session = sampler.open([[], []], ["good\n", "bad\n"], "\n")
    with pytest.raises(ModelError, match=f"HTTP {status}.*context too long"):
        session.extend(ask(2, 0) + ask(2, 1), lambda: None)
    assert len(small.seen) == 2
    texts_of(sampler, ask(2), "good\n")
    assert len(small.seen) == 2


@pytest.mark.parametrize("finish", [None, "content_filter", "abort"])
def test_an_unknown_end_is_a_failure_and_is_not_kept(small: SmallServer, tmp_path: Path, finish: str | None) -> None:
    sampler = connect(small, cache_folder=tmp_path)
    body = {"choices": [{"index": 0, "text": "12", "finish_reason": finish}], "usage": {"completion_tokens": 2}}
    small.fault = after(1, lambda handler: handler.send(200, body))
    session = sampler.open([[]], ["1\n"], "\n")
    segment = session.extend(ask(1), lambda: None)[0]
    assert (segment.stop_reason, segment.tokens, session.text(segment.node)) == ("failed", 0, "")
    assert finish or "null" in session.failures[0]
    assert session.cost().tokens == 2
    assert session.extend(ask(1), lambda: None)[0].stop_reason != "failed"


def test_fewer_choices_than_asked_for_are_filled_up(small: SmallServer) -> None:
    sampler = connect(small)

    def at_most_two(handler: Any) -> bool:
        body = small.seen[-1] | {"n": min(2, small.seen[-1].get("n", 1))}
        handler.send(*handler._answer("/completions", body))
        return True

    small.fault = at_most_two
    found = texts_of(sampler, ask(5), "1 -> 3\n")
    assert found == [letters("1 -> 3\n", seed, 20)[0] for seed in (0, 1, 2, 3, 4)]
    assert [body.get("n", 1) for body in small.seen] == [5, 3, 1]


def test_no_more_requests_at_once_than_allowed(small: SmallServer) -> None:
    sampler = connect(small, requests_at_once=3)
    small.most_inside = 0
    small.fault = lambda _handler: bool(time.sleep(0.03))
    texts_of(sampler, [one for number in range(12) for one in ask(1, number)], *[f"{n}\n" for n in range(12)])
    assert small.most_inside == 3


def test_a_stop_is_quick_and_keeps_what_came(small: SmallServer, tmp_path: Path) -> None:
    sampler = connect(small, cache_folder=tmp_path, seconds=30.0)
    release = threading.Event()

    def fault(_handler: BaseHTTPRequestHandler) -> bool:
        if small.seen[-1]["prompt"].startswith("slow"):
            release.wait(20.0)
        return False

    small.fault = fault
    deadline = time.monotonic() + 0.5

    def should_stop() -> None:
        if time.monotonic() > deadline:
            raise Interrupted("stop")

    session = sampler.open([[], []], ["quick\n", "slow\n"], "\n")
    with pytest.raises(Interrupted):
        session.extend(ask(2, 0) + ask(2, 1), should_stop)
    assert time.monotonic() - deadline < 2.0
    release.set()
    small.fault = None
    small.seen.clear()
    texts_of(sampler, ask(2), "quick\n")
    assert small.seen == []


def test_what_arrived_before_a_stop_is_told(small: SmallServer) -> None:
    client = server_client.Client(small.address, 4, 5.0, 0)
    body = {"model": "small", "prompt": "1", "max_tokens": 3, "temperature": 0.0}
    told: dict[int, server_client.Reply] = {}
    calls = []

    def should_stop() -> None:
        calls.append(time.monotonic())
        if len(calls) == 2:
            time.sleep(0.5)
            raise Interrupted("stop")

    with pytest.raises(Interrupted):
        client.post_all([server_client.Post("/completions", body)] * 3, lambda _body: "", told.__setitem__, should_stop)
    assert sorted(told) == [0, 1, 2]


# Answers kept.


def test_a_resumed_unit_asks_for_nothing_again(small: SmallServer, tmp_path: Path) -> None:
    problems = DOMAIN.problems("train", 3)

    def search(count: int) -> list[Any]:
        sampler = connect(small, cache_folder=tmp_path)
        found, _cost = BestOfN(count, WARM, 20).search(
            problems, DOMAIN, sampler, Exact(DOMAIN), Run(1, 2), should_stop=lambda: None, finished=lambda *_: None
        )
        return [[(one.attempt_id, one.output, one.stop_reason) for one in row] for row in found]

    first = search(4)
    assert len(small.seen) == 3
    assert search(4) == first
    assert small.seen == []
    assert [row[:2] for row in first] == search(2)
    assert small.seen == []
    assert [row[:4] for row in search(6)] == first
    assert [body["n"] for body in small.seen] == [2, 2, 2]


def test_whatever_shapes_an_answer_is_part_of_its_name(tmp_path: Path) -> None:
    def asks(running: SmallServer, variants: list[dict[str, Any]]) -> list[int]:
        """How many requests each variant takes."""
        samplers = {name: connect(running, cache_folder=tmp_path, model=name) for name in ("small", "other")}
        counts = []
        for variant in variants:
            changed = {"key": 5, "sampling": WARM, "max_new_tokens": 9, "one_step": False} | variant
            sampler = samplers[changed.pop("model", "small")]
            prompt, messages = changed.pop("prompt", "1\n"), changed.pop("messages", None)
            text = sampler.encode_chat(messages)[0] if messages else prompt
            running.seen.clear()
            sampler.open([[]], [text], "\n").extend([Extension(0, None, **changed)], lambda: None)
            counts.append(len(running.seen))
        return counts

    def chat(system: str) -> list[dict[str, str]]:
        return [{"role": "system", "content": system}, {"role": "user", "content": "1"}]

    variants: list[dict[str, Any]] = [
        {},
        {"prompt": "2\n"},
        {"model": "other"},
        {"key": 6},
        {"max_new_tokens": 8},
        {"sampling": Sampling(0.9)},
        {"sampling": Sampling(1.0, 0.9)},
        {"sampling": Sampling(1.0, 1.0, 3)},
        {"sampling": GREEDY},
        {"one_step": True},
        {"messages": chat("Be brief.")},
        {"messages": chat("Be long.")},
    ]
    models = [{"id": "small"}, {"id": "other"}]
    with serving(Dialect(models=models)) as running:
        assert min(asks(running, variants)) > 0
        assert asks(running, variants) == [0] * len(variants)
    with serving(Dialect(models=models)) as elsewhere:
        assert asks(elsewhere, [{}]) == [1]


def test_the_same_key_goes_on_otherwise_from_another_node(small: SmallServer, tmp_path: Path) -> None:
    for _ in range(2):
        session = connect(small, cache_folder=tmp_path).open([[]], ["1\n"], "\n")
        starts = session.extend([Extension(0, None, key, WARM, 3) for key in (5, 9)], lambda: None)
        ends = session.extend([Extension(0, start.node, 7, WARM, 6) for start in starts], lambda: None)
        for start, end in zip(starts, ends, strict=True):
            begun = session.text(start.node)
            assert session.text(end.node) == begun + letters("1\n" + begun, 7, 6)[0]
        assert session.text(starts[0].node) != session.text(starts[1].node)
    assert small.seen == []

"""Servers as teachers, against a small real one that speaks any dialect and misbehaves on demand."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import Interrupted, ModelError
from flywheel.models import server, server_client
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.server import ServerSampler
from flywheel.models.server_requests import Features, read_choices
from flywheel.problems.countdown import Countdown
from flywheel.rewards.exact import Exact
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run
from tests.flywheel.small_server import Dialect, SmallServer, drop, free_port, letters, rendered, serving

DOMAIN = Countdown(3, 1, 9, 40, (0.6, 0.2, 0.2))
WARM = Sampling(1.0)
GREEDY = Sampling(None)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_client, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def small() -> Iterator[SmallServer]:
    """A server that can do all, and forgets what it was asked while it was found out."""
    with serving(Dialect()) as running:
        yield running


def connect(running: SmallServer, **options: Any) -> ServerSampler:
    settings: dict[str, Any] = {"requests_at_once": 4, "seconds": 5.0, "retries": 3} | options
    sampler = server.connect(running.address, **settings)
    running.seen.clear()
    running.times.clear()
    return sampler


def ask(count: int, prompt: int = 0, sampling: Sampling = WARM, tokens: int = 20) -> list[Extension]:
    return [Extension(prompt, None, 1000 * prompt + index, sampling, tokens) for index in range(count)]


def texts_of(sampler: ServerSampler, requests: list[Extension], *prompts: str) -> list[str]:
    session = sampler.open([[]] * len(prompts), list(prompts), "\n")
    return [session.text(segment.node) for segment in session.extend(requests, lambda: None)]


# What a server can do.


def features(sampler: ServerSampler, kind: Any = "completions") -> Features:
    endpoint = sampler._endpoint(kind)
    assert endpoint is not None
    return endpoint.features


def test_a_server_that_can_do_all_is_known_as_such(small: SmallServer) -> None:
    sampler = connect(small)
    found = features(sampler)
    neutral = ("top_k", "min_p", "repetition_penalty")
    assert found == Features("completions", True, True, True, True, neutral, True, False, "told", True)
    assert features(sampler, "chat") == Features("chat", True, True, True, True, neutral, True, False, "told", True)
    assert sampler.notes == ["the size of its model is not known: its work counts as 0 FLOPs"]


@pytest.mark.parametrize(
    ("dialect", "lacks", "note"),
    [
        (Dialect(many=False), {"many": False}, "several different answers"),
        (Dialect(same_for_all=True), {"many": False}, "several different answers"),
        (Dialect(log_probabilities=False), {"log_probabilities": False}, "log-probabilities"),
        (Dialect(seed=False), {"seed_honoured": False}, "keep to a seed"),
        (Dialect(top_k=False), {"top_k": False}, "likeliest k"),
        (Dialect(extra_fields=(), strict=True), {"top_k": False, "neutral": ()}, "likeliest k"),
        (Dialect(samples=False), {"top_k": False}, "temperature made no difference"),
        (Dialect(samples=False, native=True), {"native": True, "top_k": True}, "generation_config"),
        (Dialect(stop="kept"), {"stops": "kept"}, ""),
        (Dialect(stop="matched_stop"), {"stops": "told"}, ""),
        (Dialect(stop="bare"), {"stops": "unsaid"}, "cut"),
        (Dialect(usage=False, log_probabilities=False), {"log_probabilities": False}, "does not count tokens"),
        (Dialect(endpoints=("/completions",)), {}, ""),
    ],
)
def test_what_a_server_lacks_is_found_out_and_said_once(dialect: Dialect, lacks: dict[str, Any], note: str) -> None:
    with serving(dialect) as running:
        sampler = connect(running)
    found = features(sampler)
    assert {name: getattr(found, name) for name in lacks} == lacks
    assert sum(note in line for line in sampler.notes) >= 1
    assert len(sampler.notes) == len(set(sampler.notes))


def test_the_model_is_the_only_one_or_named() -> None:
    with serving(Dialect(models=[{"id": "one"}, {"id": "two", "revision": "r7"}])) as running:
        with pytest.raises(ModelError, match=r"2 models: one, two; name one in generate\.teacher_model"):
            connect(running)
        with pytest.raises(ModelError, match="no model three"):
            connect(running, model="three")
        one, two, again = (connect(running, model=name) for name in ("one", "two", "two"))
    assert one.snapshot != two.snapshot == again.snapshot
    assert not one.verified
    assert one.encode_prompt("1 2 -> 3\n") == []
    assert one.decode(()) == ""


def test_another_revision_is_another_snapshot() -> None:
    snapshots = set()
    for revision in ("a", "b"):
        with serving(Dialect(models=[{"id": "small", "revision": revision}])) as running:
            snapshots.add(connect(running).snapshot)
    assert len(snapshots) == 2


def test_a_server_that_is_not_there_is_named_at_once() -> None:
    address = f"http://127.0.0.1:{free_port()}/v1"
    start = time.monotonic()
    with pytest.raises(ModelError, match=f"{address} cannot be reached"):
        server.connect(address, retries=5)
    assert time.monotonic() - start < 5.0


@pytest.mark.parametrize("address", ["localhost:8000", "ftp://host/v1", "http://", "http://host:99999/v1"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(ModelError, match="is no server's address"):
        server.connect(address)


def test_the_key_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(Dialect(key="secret-7")) as running:
        with pytest.raises(ModelError, match=r"refuses the key.*OPENAI_API_KEY"):
            connect(running)
        monkeypatch.setenv("OPENAI_API_KEY", "secret-7")
        sampler = connect(running, cache_folder=tmp_path)
        texts_of(sampler, ask(2), "1 2 -> 3\n")
    assert running.keys[-1] == "Bearer secret-7"
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert kept
    assert b"secret-7" not in kept
    assert "secret-7" not in caplog.text
    with pytest.raises(ModelError, match="OPENAI_API_KEY") as raised:
        server.connect("http://me:secret-8@127.0.0.1:1/v1")
    assert "secret-8" not in str(raised.value)


# Answers.


def test_samples_of_a_prompt_are_one_call_and_what_the_model_says(small: SmallServer) -> None:
    sampler = connect(small)
    prompts = ["1 2 -> 3\n", "4 5 -> 9\n"]
    requests = ask(5, 0) + ask(3, 1)
    session = sampler.open([[], []], prompts, "\n")
    segments = session.extend(requests, lambda: None)
    assert sorted(body["n"] for body in small.seen) == [3, 5]
    for number, (request, segment) in enumerate(zip(requests, segments, strict=True)):
        first = 1000 * request.prompt
        text, finish = letters(prompts[request.prompt], first + request.key - first, 20)
        assert (session.text(segment.node), segment.node) == (text, number)
        assert segment.stop_reason == {"stop": "eos", "length": "length"}[finish]
        assert segment.tokens == len(text) + (finish == "stop")
        assert segment.log_probability == pytest.approx(-0.5 * segment.tokens)
        assert session.log_probabilities(segment.node) == (-0.5,) * segment.tokens
        assert session.token_ids(segment.node) == ()
    cost = session.cost()
    assert (cost.tokens, cost.policy, cost.prefill) == (sum(segment.tokens for segment in segments), 0.0, 0.0)
    assert session.failures == []


def test_flops_count_where_the_server_says_how_large_its_model_is() -> None:
    with serving(Dialect(models=[{"id": "small", "meta": {"n_params": 500}}])) as running:
        sampler = connect(running)
        session = sampler.open([[]], ["1 2 -> 3\n"], "\n")
        segments = session.extend(ask(3), lambda: None)
        cost = session.cost()
        session.extend([Extension(0, segments[0].node, 7, WARM, 5)], lambda: None)
    assert [segment.flops for segment in segments] == [2 * 500 * segment.tokens for segment in segments]
    assert cost.policy == sum(segment.flops for segment in segments) < session.cost().policy
    for prefill in (cost.prefill, session.cost().prefill, session.prompt_flops(0), sampler.prompt_flops(9)):
        assert prefill == 2 * 500 * len("1 2 -> 3\n")


def test_log_probabilities_of_another_distribution_than_drawn_from_are_left_out(small: SmallServer) -> None:
    session = connect(small).open([[]], ["1 2 -> 3\n"], "\n")
    for sampling in (Sampling(0.7), Sampling(1.0, 0.9), Sampling(1.0, 1.0, 5)):
        segment = session.extend(ask(1, sampling=sampling), lambda: None)[0]
        assert segment.log_probability is None
        assert session.log_probabilities(segment.node) == ()


def test_sampling_is_sent_in_full_and_greedy_is_asked_once(small: SmallServer) -> None:
    sampler = connect(small)
    texts_of(sampler, ask(1, sampling=Sampling(0.5, 0.9, 7)), "1 2 -> 3\n")
    sent = small.seen[-1]
    expected = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 20, "min_p": 0.0, "seed": 0}
    assert {name: sent[name] for name in expected} == expected
    small.seen.clear()
    assert texts_of(sampler, ask(3, sampling=GREEDY), "1 2 -> 3\n") == [letters("1 2 -> 3\n", None, 20)[0]] * 3
    assert len(small.seen) == 1
    assert small.seen[0]["temperature"] == 0.0
    assert small.seen[0]["top_k"] == -1


def test_top_k_where_it_has_no_effect_is_refused() -> None:
    with serving(Dialect(top_k=False)) as running:
        session = connect(running).open([[]], ["1\n"], "\n")
        with pytest.raises(ModelError, match=r"top_k 7.*set generate\.top_k to null"):
            session.extend(ask(1, sampling=Sampling(1.0, 1.0, 7)), lambda: None)


@pytest.mark.parametrize("log_probabilities", [True, False])
@pytest.mark.parametrize("stop", ["stop_reason", "matched_stop", "kept", "bare"])
@pytest.mark.parametrize("messages", [False, True])
def test_step_by_step_is_the_whole_answer(stop: str, messages: bool, log_probabilities: bool) -> None:
    with serving(Dialect(stop=stop, log_probabilities=log_probabilities)) as running:
        sampler = connect(running)
        seen = set()
        # A last token that reaches beyond the stop string is two letters here, and without log-probabilities the tokens
        # of a step that was cut off are rounded up: then limits do not compare.
        exact = stop in {"stop_reason", "matched_stop"} or (stop == "bare" and log_probabilities)
        limit = 40 if exact else 300
        for number in range(12):
            if messages:
                chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{number} -> 3"}]
                prompt, asked = rendered(chat, False), sampler.encode_chat(chat)[0]
            else:
                prompt = asked = f"{number} -> 3\n"
            whole, finish = letters(prompt, None, limit)
            session = sampler.open([[]], [asked], "\n")
            node, used, steps, said = None, 0, [], ""
            while not steps or steps[-1].stop_reason == "step":
                request = Extension(0, node, number, GREEDY, limit - used, one_step=True)
                steps += session.extend([request], lambda: None)
                node, used = steps[-1].node, used + steps[-1].tokens
                before, said = said, session.text(node)
                assert whole.startswith(said)
                if steps[-1].stop_reason == "step":
                    assert said.endswith("\n")
                    assert len(said[len(before) :].split()) == 1
            assert session.text(node) == whole
            assert steps[-1].stop_reason == {"stop": "eos", "length": "length"}[finish]
            assert not exact or used == len(whole) + (finish == "stop")
            assert session.cost().tokens >= used
            seen.add(len(steps))
        assert len(seen) > 2


def test_blank_steps_count_against_the_limit(small: SmallServer) -> None:
    sampler = connect(small)
    prompts = [f"{number}\n" for number in range(80)]
    session = sampler.open([[]] * 80, prompts, "\n")
    requests = [Extension(number, None, 1, GREEDY, 3, one_step=True) for number in range(80)]
    for prompt, segment in zip(prompts, session.extend(requests, lambda: None), strict=True):
        assert letters(prompt, None, 3)[0].startswith(session.text(segment.node))
        assert segment.tokens <= 3
    assert len(small.seen) > 80


def test_choices_are_read_by_their_index_and_their_tokens_add_up() -> None:
    choices = [{"index": index, "text": "x" * length, "finish_reason": "stop"} for index, length in ((1, 2), (0, 3))]
    usage = {"prompt_tokens": 4, "completion_tokens": 11}
    read = read_choices({"choices": choices, "usage": usage}, 2)
    assert [choice.text for choice in read] == ["xxx", "xx"]
    assert [choice.tokens for choice in read] == [6, 5]
    for total in range(30):
        read = read_choices({"choices": choices * 3, "usage": {"completion_tokens": total}}, 6)
        assert sum(choice.tokens for choice in read) == total


def test_chat_sends_the_messages_themselves_and_goes_on_from_an_answer(small: SmallServer) -> None:
    sampler = connect(small)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "3 5 8 -> 19"}]
    asked, ids = sampler.encode_chat(messages)
    assert ids == []
    assert json.loads(asked) == messages
    small.seen.clear()
    session = sampler.open([[]], [asked], "\n")
    node = session.extend([Extension(0, None, 4, WARM, 5)], lambda: None)[0].node
    assert small.seen[-1]["messages"] == messages
    assert "continue_final_message" not in small.seen[-1]
    session.extend([Extension(0, node, 5, WARM, 5)], lambda: None)
    assert small.seen[-1]["messages"] == [*messages, {"role": "assistant", "content": session.text(node)}]
    assert small.seen[-1]["continue_final_message"]
    assert not small.seen[-1]["add_generation_prompt"]


def test_chat_that_cannot_be_gone_on_from_refuses_steps() -> None:
    with serving(Dialect(endpoints=("/chat/completions",), continues=False)) as running:
        sampler = connect(running)
        assert any("no completions endpoint" in note for note in sampler.notes)
        session = sampler.open([[]], ["3 -> 3\n"], "\n")
        text = session.text(session.extend(ask(1, sampling=GREEDY), lambda: None)[0].node)
        assert text == letters(rendered([{"role": "user", "content": "3 -> 3\n"}], False), None, 20)[0]
        with pytest.raises(ModelError, match=r"partial chat answer \(continue_final_message\)"):
            session.extend([Extension(0, None, 1, WARM, 20, one_step=True)], lambda: None)
        with pytest.raises(ModelError, match="partial chat answer"):
            session.extend([Extension(0, 0, 1, WARM, 20)], lambda: None)


def test_no_chat_endpoint_is_said_when_messages_come() -> None:
    with serving(Dialect(endpoints=("/completions",))) as running, pytest.raises(ModelError, match="no chat endpoint"):
        connect(running).encode_chat([{"role": "user", "content": "1"}])


# Faults.


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

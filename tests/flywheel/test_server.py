"""What servers can do and answer, against a small real one that speaks any dialect."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import ModelError
from flywheel.models import server
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.server import ServerSampler
from flywheel.models.server_requests import Features, read_choices
from tests.flywheel.small_server import (
    WARM,
    Dialect,
    SmallServer,
    ask,
    connect,
    free_port,
    letters,
    rendered,
    serving,
    texts_of,
)

pytestmark = pytest.mark.usefixtures("impatient")
GREEDY = Sampling(None)


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

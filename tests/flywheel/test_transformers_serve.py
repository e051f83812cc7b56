"""The real `transformers serve` as a teacher, on tiny random models."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flywheel.errors import ModelError
from flywheel.models import language, server
from flywheel.models.protocols import Extension, Sampling
from flywheel.models.server import ServerSampler
from flywheel.models.server_requests import Features
from flywheel.problems.countdown import Countdown
from flywheel.rewards.exact import Exact
from flywheel.search.best_of_n import BestOfN
from flywheel.search.protocols import Run
from tests.flywheel.small_server import free_port

pytestmark = pytest.mark.slow
WARM = Sampling(1.0)
GREEDY = Sampling(None)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    """A hub's cache with a model that knows single letters and has a chat template, and a student of ours."""
    import torch
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("hub")

    def place(name: str) -> Path:
        repository = folder / f"models--tiny--{name}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text("0" * 40)
        return repository / "snapshots" / ("0" * 40)

    signs = ["<pad>", "</s>", "<unk>", "<user>", "<assistant>", *"abcdef0123456789+-*/=> \n"]
    words: Any = Tokenizer(models.WordLevel({sign: number for number, sign in enumerate(signs)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex("(?m)."), "isolated")
    words.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
        padding_side="left",
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<assistant>' if m['role'] == 'assistant' else '<user>' }}{{ m['content'] }}</s>"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(signs),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=32,
        max_position_embeddings=512,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config)
        with torch.no_grad():
            model.lm_head.weight.mul_(4.0)
    language.save(model, tokenizer, place("letters"))
    shutil.copytree(model_folder, place("student"))
    return folder


@pytest.fixture(scope="module")
def address(hub: Path) -> Iterator[str]:
    """`transformers serve` on those models, ended by its process id."""
    port = free_port()
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve"]
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60.0
            while not _listens(port):
                assert process.poll() is None, "transformers serve ended by itself"
                assert time.monotonic() < deadline, "transformers serve did not come up"
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            try:
                process.wait(5.0)
            except subprocess.TimeoutExpired:
                process.kill()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def real(address: str, model: str = "tiny/letters", cache_folder: Path | None = None) -> ServerSampler:
    return server.connect(address, model, cache_folder, requests_at_once=4, seconds=30.0, retries=2)


def features(sampler: ServerSampler, kind: Any = "completions") -> Features:
    endpoint = sampler._endpoint(kind)
    assert endpoint is not None
    return endpoint.features


def loaded(hub: Path, name: str) -> language.LanguageModel:
    return language.load(hub / f"models--tiny--{name}" / "snapshots" / ("0" * 40), "cpu")


def test_what_it_can_do_is_found_out(address: str) -> None:
    with pytest.raises(ModelError, match="2 models: tiny/letters, tiny/student; name one"):
        server.connect(address)
    found = features(real(address))
    assert (found.kind, found.many, found.log_probabilities, found.neutral) == ("completions", False, False, ())
    assert (found.native, found.top_k, found.stops, found.continues) == (True, True, "kept", True)
    chat = features(real(address), "chat")
    assert (chat.native, chat.continues) == (True, False)


@pytest.mark.parametrize("name", ["letters", "student"])
def test_it_answers_as_the_model_itself(address: str, hub: Path, name: str) -> None:
    import torch

    own = loaded(hub, name)
    prompt = "3 5 8 -> 19\n"
    session = real(address, f"tiny/{name}").open([[]], [prompt], "\n")
    segment = session.extend([Extension(0, None, 0, GREEDY, 24)], lambda: None)[0]
    ids = torch.tensor([own.encode(prompt)])
    made = own.model.generate(ids, max_new_tokens=24, do_sample=False)[0, ids.shape[1] :].tolist()
    ended = made[-1] == own.tokenizer.eos_token_id
    assert session.text(segment.node) == own.tokenizer.decode(made, skip_special_tokens=True)
    assert (segment.stop_reason, segment.tokens) == ("eos" if ended else "length", len(made))


def test_it_draws_from_the_model_s_distribution(address: str, hub: Path) -> None:
    import torch

    own, prompt, count = loaded(hub, "letters"), "1+2=", 300
    with torch.inference_mode():
        expected = torch.softmax(own.model(torch.tensor([own.encode(prompt)])).logits[0, -1].float(), 0)
    requests = [Extension(0, None, key, WARM, 1) for key in range(count)]
    session = real(address).open([[]], [prompt], "\n")
    drawn = [session.text(segment.node) for segment in session.extend(requests, lambda: None)]
    signs = own.tokenizer.convert_ids_to_tokens(range(len(expected)))
    # Signs that are shown and not rare; all else is one cell.
    shown = [place for place, sign in enumerate(signs) if len(sign) == 1 and float(expected[place]) * count > 4.0]
    observed, chances = [drawn.count(signs[place]) for place in shown], [float(expected[place]) for place in shown]
    assert len(shown) > 10
    cells = [*zip(observed, chances, strict=True), (count - sum(observed), 1.0 - sum(chances))]
    statistic = sum((seen - count * chance) ** 2 / (count * chance) for seen, chance in cells)
    # At most 24 degrees of freedom: Pearson's statistic is above 73 once in a million times.
    assert statistic < 73.0


@pytest.mark.parametrize("name", ["letters", "student"])
def test_it_step_by_step(address: str, name: str) -> None:
    sampler = real(address, f"tiny/{name}")
    session = sampler.open([[]], ["1 + 2 =" if name == "letters" else "3 5 8 -> 19\n"], "\n")
    requests = [Extension(0, None, key, WARM, 60, one_step=True) for key in range(24)]
    segments = session.extend(requests, lambda: None)
    for segment in segments:
        text = session.text(segment.node)
        assert (segment.stop_reason == "step") == (text.endswith("\n") and bool(text.strip()))
        assert "\n" not in text.strip()
    further = session.extend([Extension(0, segment.node, 99, WARM, 10) for segment in segments], lambda: None)
    for segment, later in zip(segments, further, strict=True):
        assert session.text(later.node).startswith(session.text(segment.node))
    # The student's newline is one word of 60, and may not come up.
    assert name == "student" or "step" in {segment.stop_reason for segment in segments}


def test_it_chats(address: str, hub: Path, tmp_path: Path) -> None:
    import torch

    own, sampler = loaded(hub, "letters"), real(address, cache_folder=tmp_path)
    messages = [{"role": "system", "content": "abc"}, {"role": "user", "content": "1+2"}]
    session = sampler.open([[]], [sampler.encode_chat(messages)[0]], "\n")
    segment = session.extend([Extension(0, None, 0, GREEDY, 20)], lambda: None)[0]
    ids = own.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    made = own.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :].tolist()
    assert session.text(segment.node) == own.tokenizer.decode(made, skip_special_tokens=True)
    with pytest.raises(ModelError, match="partial chat answer"):
        session.extend([Extension(0, segment.node, 1, WARM, 5)], lambda: None)


def test_best_of_n_and_again_from_what_was_kept(address: str, tmp_path: Path, countdown: Countdown) -> None:
    def search() -> list[Any]:
        found, cost = BestOfN(4, WARM, 16).search(
            countdown.problems("train", 3),
            countdown,
            real(address, "tiny/student", tmp_path),
            Exact(countdown),
            Run(1, 2),
            should_stop=lambda: None,
            finished=lambda *_: None,
        )
        assert cost.tokens > 0
        return found

    first = search()
    assert len({attempt.output for row in first for attempt in row}) > 6
    assert all(attempt.token_ids == attempt.prompt_ids == () for row in first for attempt in row)
    assert search() == first

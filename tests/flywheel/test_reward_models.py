"""Reward models made, loaded and run: against plain transformers a text at a time, and against sums done by hand."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from flywheel import sections
from flywheel.errors import ConfigError, ModelError
from flywheel.models import language, reward_model, reward_scores
from flywheel.models.language import LanguageModel
from flywheel.models.reward_model import encode_steps
from flywheel.problems.countdown import Countdown
from flywheel.problems.countdown_solver import as_steps, solve
from flywheel.records import Problem
from flywheel.rewards.outcome import Outcome
from flywheel.rewards.process import Process
from flywheel.rewards.reward import Answer

SMALL = sections.Supervise(base=None, hidden_size=16, layers=2, heads=2, intermediate_size=32)
TOKEN = sections.Reward(name="process")
WORDS = sections.Reward(name="process", step_tag="=", style="words")
SEQUENCE = sections.Reward(name="outcome", model="any")


@pytest.fixture(scope="session")
def token_folder(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> Path:
    folder = tmp_path_factory.mktemp("judges") / "token"
    reward_model.create(SMALL, model_folder, 5, folder)
    return folder


def sequence_folder(folder: Path, student: Path, labels: int, **settings: Any) -> Path:
    """A classifier of texts with random weights, large enough to tell texts apart."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(student)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=32, num_labels=labels, initializer_range=0.3, bos_token_id=None,
        **{"pad_token_id": tokenizer.pad_token_id, **settings},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        language.save(LlamaForSequenceClassification(config), tokenizer, folder)
    return folder


def tasks(countdown: Countdown) -> list[tuple[Problem, list[str]]]:
    """Problems with the steps of answers of one to three lines."""
    found = []
    for problem in countdown.problems("train", 12):
        hand = tuple(problem.payload["numbers"])
        steps = as_steps(solve(hand, 80)[problem.payload["target"]][0])
        found.append((problem, [*steps, "1 + 1 = 2"][: 1 + len(found) % 3]))
    return found


def test_what_a_model_is_given(token_folder: Path, tiny: LanguageModel) -> None:
    """The very ids that the student samples, a newline where its end token stood."""
    tokenizer = reward_model.load(token_folder, "cpu", TOKEN).tokenizer
    newline = tiny.encode("\n")[0]
    ids, positions = encode_steps(tokenizer, "3 5 8 -> 19\n", ["8 * 3 = 24", "24 - 5 = 19"], "\n")
    sampled = tiny.encode_prompt("3 5 8 -> 19\n") + tiny.encode_answer("8 * 3 = 24\n24 - 5 = 19")
    assert ids == [*sampled[:-1], newline]
    assert positions == [place for place, token in enumerate(ids) if token == newline][1:]
    assert tokenizer.decode(ids) == "3 5 8 -> 19\n8 * 3 = 24\n24 - 5 = 19\n"
    # Nothing after a step changes how it is read; blank steps are none; a tag that is there is not doubled.
    for count in range(3):
        part = encode_steps(tokenizer, "3 5 8 -> 19\n", ["8 * 3 = 24", "24 - 5 = 19"][:count], "\n")
        assert part == (ids[: positions[count - 1] + 1] if count else ids[:6], positions[:count])
    assert encode_steps(tokenizer, "3 5 8 -> 19\n", ["8 * 3 = 24\n", "", " ", "24 - 5 = 19"], "\n") == (ids, positions)


def test_a_tag_that_is_a_word_ends_its_line(token_folder: Path) -> None:
    tokenizer = reward_model.load(token_folder, "cpu", TOKEN).tokenizer
    ids, positions = encode_steps(tokenizer, "3 5 -> 8\n", ["3 + 5", "8 * 1"], "=")
    assert tokenizer.decode(ids) == "3 5 -> 8\n3 + 5 =\n8 * 1 ="
    assert [tokenizer.decode([ids[place]]) for place in positions] == ["=", "="]


def test_a_begin_token_stands_once(token_folder: Path) -> None:
    tokenizer = reward_model.load(token_folder, "cpu", TOKEN).tokenizer
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    plain = encode_steps(tokenizer, "3 5 -> 8\n", [], "\n")[0]
    templated = encode_steps(tokenizer, "<s>3 5 -> 8\n", [], "\n")[0]
    assert plain[0] == templated[0] == tokenizer.bos_token_id
    assert plain.count(plain[0]) == templated.count(plain[0]) == 1


@pytest.mark.parametrize("style", ["token", "words"])
def test_step_scores_are_those_of_plain_transformers(
    token_folder: Path, model_folder: Path, countdown: Countdown, style: str
) -> None:
    """A text at a time without padding, and a softmax written out."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForTokenClassification

    folder, section = (token_folder, TOKEN) if style == "token" else (model_folder, WORDS)
    loaded = reward_model.load(folder, "cpu", section)
    assert loaded.style == style
    kind = AutoModelForTokenClassification if style == "token" else AutoModelForCausalLM
    plain = kind.from_pretrained(folder).eval()
    wrong, right = (0, 1) if style == "token" else loaded.tokenizer.convert_tokens_to_ids(["▁-", "▁+"])
    rows = [
        encode_steps(loaded.tokenizer, countdown.prompt(p), steps, section.step_tag) for p, steps in tasks(countdown)
    ]
    scores = reward_scores.score_positions(loaded, rows, 5)
    assert [len(row) for row in scores] == [len(steps) for _, steps in tasks(countdown)]
    for (ids, positions), found in zip(rows, scores, strict=True):
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0]
        for position, score in zip(positions, found, strict=True):
            good, bad = float(logits[position, right]), float(logits[position, wrong])
            assert score == pytest.approx(math.exp(good) / (math.exp(good) + math.exp(bad)), abs=1e-5)
    assert len({score for row in scores for score in row}) > 10


@pytest.mark.parametrize("style", ["token", "words", "sequence"])
def test_a_score_does_not_depend_on_its_neighbours(
    tmp_path: Path, token_folder: Path, model_folder: Path, countdown: Countdown, style: str
) -> None:
    """Alone, in a batch of other lengths, and in another order."""
    if style == "sequence":
        loaded = reward_model.load(sequence_folder(tmp_path, model_folder, 1), "cpu", SEQUENCE)
    else:
        folder, section = (token_folder, TOKEN) if style == "token" else (model_folder, WORDS)
        loaded = reward_model.load(folder, "cpu", section)
    rows = [encode_steps(loaded.tokenizer, countdown.prompt(p), steps, "\n") for p, steps in tasks(countdown)]

    def scores(part: list[tuple[list[int], list[int]]], batch: int) -> list[tuple[float, ...]]:
        if style == "sequence":
            return [(score,) for score in reward_scores.score_texts(loaded, [ids for ids, _ in part], batch)]
        return reward_scores.score_positions(loaded, part, batch)

    alone = [scores([row], 1)[0] for row in rows]
    assert len(set(alone)) == len(rows)
    for batch, order in itertools.product((3, 64), (1, -1)):
        together = scores(rows[::order], batch)[::order]
        for one, other in zip(alone, together, strict=True):
            assert one == pytest.approx(other, abs=1e-5)


@pytest.mark.parametrize("labels", [1, 2])
def test_text_scores_are_those_of_plain_transformers(
    tmp_path: Path, model_folder: Path, countdown: Countdown, labels: int
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    folder = sequence_folder(tmp_path, model_folder, labels)
    loaded = reward_model.load(folder, "cpu", SEQUENCE)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    answers = [(problem, "\n".join(steps)) for problem, steps in tasks(countdown)]
    reward = Outcome(loaded, countdown, "\n", 5)
    judged = reward.judge([(problem, [Answer(text, "eos", ())]) for problem, text in answers])
    for (problem, text), (judgement,) in zip(answers, judged, strict=True):
        ids = loaded.tokenizer.encode(countdown.prompt(problem) + text)
        with torch.no_grad():
            logits = plain(torch.tensor([ids])).logits[0].tolist()
        expected = 1 / (1 + math.exp(-logits[0])) if labels == 1 else math.exp(logits[1]) / sum(map(math.exp, logits))
        assert judgement.reward == pytest.approx(expected, abs=1e-5)
        assert judgement.flops == loaded.shape.forward_sequence(len(ids))


@pytest.mark.parametrize("style", ["token", "words"])
def test_an_outcome_read_from_steps_is_the_last_steps_score(
    style: str, token_folder: Path, model_folder: Path, countdown: Countdown
) -> None:
    folder, section = (token_folder, TOKEN) if style == "token" else (model_folder, WORDS)
    process = Process(reward_model.load(folder, "cpu", section), countdown, "\n", "last", 5)
    read_as = section.model_copy(update={"name": "outcome"})
    outcome = Outcome(reward_model.load(folder, "cpu", read_as), countdown, "\n", 5)
    groups = [(p, [Answer("\n".join(steps), "eos", tuple(steps))] * 2) for p, steps in tasks(countdown)]
    first, second = process.judge(groups), outcome.judge(groups)
    assert [[one.reward for one in row] for row in first] == [[one.reward for one in row] for row in second]
    flops = [[[one.flops for one in row] for row in judged] for judged in (first, second)]
    # A causal LM makes logits where they are read: after each step, or after the last one.
    assert flops[0] == flops[1] or style == "words"
    assert all(one >= other for rows in zip(*flops, strict=True) for one, other in zip(*rows, strict=True))
    assert process.take_padding() > 0.0 < outcome.take_padding()
    assert process.take_padding() == 0.0, "it was taken"
    assert not any(one.step_rewards for row in second for one in row)
    right = "\n".join(tasks(countdown)[0][1])
    unread = outcome.judge([(tasks(countdown)[0][0], [Answer(right, "eos", ()), Answer(right, "eos", (right,) * 400)])])
    assert [(one.reward, one.status) for one in unread[0]] == [(None, "failed")] * 2
    assert unread[0][0].reason == "no steps to score"
    assert unread[0][1].reason.endswith("tokens are too many for the model")


def test_a_padding_id_inside_a_text_moves_nothing(tmp_path: Path, model_folder: Path, countdown: Countdown) -> None:
    """A decoder without a padding id reads a text at its last token, whatever that is, in a batch too."""
    loaded = reward_model.load(sequence_folder(tmp_path, model_folder, 1, pad_token_id=None), "cpu", SEQUENCE)
    assert not loaded.names_padding
    rows = [[*loaded.tokenizer.encode(countdown.prompt(p)), last] for p, _ in tasks(countdown)[:4] for last in (0, 1)]
    rows = [row + rows[0] * (number % 2) for number, row in enumerate(rows)]
    alone = [reward_scores.score_texts(loaded, [row], 1)[0] for row in rows]
    assert alone == pytest.approx(reward_scores.score_texts(loaded, rows, 8), abs=1e-5)
    assert len(set(alone)) == len(rows)


def test_work_is_counted_by_formula(token_folder: Path, tmp_path: Path, model_folder: Path) -> None:
    """Llama layers of width 16 and an inner width of 32; the embedding is looked up, the head is a matrix."""
    layers = 2 * (4 * 16 * 16 + 3 * 16 * 32)
    shape = reward_model.load(token_folder, "cpu", TOKEN).shape
    assert (shape.matrix_parameters, shape.layers, shape.attention_width) == (layers + 2 * 16, 2, 16)
    shape = reward_model.load(sequence_folder(tmp_path, model_folder, 1), "cpu", SEQUENCE).shape
    assert shape.matrix_parameters == layers + 16


def test_learned_positions_are_looked_up() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=50, n_positions=20, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    shape = language.decoder_shape(GPT2LMHeadModel(config))
    assert shape.matrix_parameters == 50 * 16 + 2 * (3 * 16 * 16 + 16 * 16 + 2 * 16 * 64)


def process(token_folder: Path, countdown: Countdown, how: sections.Aggregate = "last", **settings: Any) -> Process:
    return Process(reward_model.load(token_folder, "cpu", TOKEN), countdown, "\n", how, 4, **settings)


def test_an_answers_score_is_that_of_its_steps_aggregated(token_folder: Path, countdown: Countdown) -> None:
    (problem, _), *_ = tasks(countdown)
    steps = ("1 + 1 = 2", "2 * 3 = 6", "6 + 3 = 9")
    answer = Answer("\n".join(steps), "eos", steps)
    found = {}
    hows: tuple[sections.Aggregate, ...] = ("last", "min", "prod")
    for how in hows:
        (((judgement,),),) = [process(token_folder, countdown, how).judge([(problem, [answer])])]
        found[how] = judgement.reward
        scores = judgement.step_rewards
    (partial,) = process(token_folder, countdown).score_steps([(problem, steps)])
    assert partial.scores == scores
    assert found == {"last": scores[2], "min": min(scores), "prod": pytest.approx(scores[0] * scores[1] * scores[2])}
    assert len(set(found.values())) == 3


def test_partial_answers(token_folder: Path, countdown: Countdown) -> None:
    """A prefix has the scores that it has inside the whole; an empty one has none, and costs nothing."""
    problem, steps = tasks(countdown)[2]
    assert len(steps) == 3
    reward = process(token_folder, countdown)
    scored = reward.score_steps(
        [(problem, steps[:count]) for count in (3, 0, 1, 2)] + [(problem, ["", *steps[:1], " "])]
    )
    assert [len(one.scores) for one in scored] == [3, 0, 1, 2, 1]
    for one in scored:
        assert one.scores == pytest.approx(scored[0].scores[: len(one.scores)], abs=1e-5)
    assert scored[1].flops == 0.0
    assert 0.0 < scored[2].flops < scored[3].flops < scored[0].flops


def test_an_answer_that_is_too_long_has_no_verdict(tmp_path: Path, token_folder: Path, countdown: Countdown) -> None:
    folder = Path(shutil.copytree(token_folder, tmp_path / "short"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 17}))
    (problem, _), *_ = tasks(countdown)
    steps = ("1 + 1 = 2", "2 * 3 = 6")
    reward = process(folder, countdown)
    whole, short = (Answer("\n".join(part), "eos", part) for part in (steps, steps[:1]))
    ((long, fits),) = reward.judge([(problem, [whole, short])])
    assert (long.reward, long.status, long.reason) == (None, "failed", "too long for the reward model")
    assert fits.status == "judged"
    assert reward.score_steps([(problem, steps)])[0].scores == (0.0, 0.0)


def test_a_model_is_a_function_of_its_seed(tmp_path: Path, model_folder: Path, token_folder: Path) -> None:
    import torch

    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    same = reward_model.create(SMALL, model_folder, 5, tmp_path / "same")
    other = reward_model.create(SMALL, model_folder, 6, tmp_path / "other")
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    loaded = reward_model.load(token_folder, "cpu", TOKEN)
    assert same == loaded.snapshot != other
    assert loaded.model.config.id2label == {0: "wrong", 1: "right"}
    assert loaded.model.config.max_position_embeddings == 1024
    assert (tmp_path / "same" / "tokenizer.json").read_bytes() == (model_folder / "tokenizer.json").read_bytes()


def test_a_pretrained_base(tmp_path: Path, model_folder: Path, token_folder: Path) -> None:
    """A causal LM keeps its body and gets a new head; a classifier of tokens is taken as it is."""
    import torch
    from transformers import AutoModelForTokenClassification

    causal = sections.Supervise(base=str(model_folder))
    first = reward_model.create(causal, token_folder, 1, tmp_path / "a")
    assert first == reward_model.create(sections.Supervise(), model_folder, 1, tmp_path / "student"), "the default"
    assert first == reward_model.create(causal, token_folder, 1, tmp_path / "b")
    assert first != reward_model.create(causal, token_folder, 2, tmp_path / "c")
    made = AutoModelForTokenClassification.from_pretrained(tmp_path / "a")
    body = language.load(model_folder, "cpu").model.model.state_dict()
    assert all(torch.equal(tensor, body[name]) for name, tensor in made.model.state_dict().items())
    assert made.config.num_labels == 2
    again = reward_model.create(sections.Supervise(base=str(token_folder)), model_folder, 1, tmp_path / "d")
    assert again == reward_model.load(token_folder, "cpu", TOKEN).snapshot


def test_models_that_do_not_fit(tmp_path: Path, model_folder: Path, token_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        reward_model.load(tmp_path / "nowhere", "cpu", TOKEN)
    texts = sequence_folder(tmp_path / "three", model_folder, 3)
    with pytest.raises(ModelError, match="of the kind sequence, expected token or words"):
        reward_model.load(texts, "cpu", TOKEN)
    with pytest.raises(ModelError, match="has 3 labels, expected 1, or 2"):
        reward_model.load(texts, "cpu", SEQUENCE)
    with pytest.raises(ModelError, match=r"of the kind words, expected sequence or token for reward\.name outcome"):
        reward_model.load(model_folder, "cpu", SEQUENCE)
    # A causal LM read as a classifier would get a head drawn at random.
    with pytest.raises(ModelError, match=r"lacks tensors, such as score\."):
        reward_model.load(model_folder, "cpu", sections.Reward(name="process", style="token"))
    with pytest.raises(ConfigError, match=r"reward\.step_tag: 'ки' is no token"):
        reward_model.load(token_folder, "cpu", sections.Reward(name="process", step_tag="ки"))
    with pytest.raises(ConfigError, match=r"reward\.good: 'good' is no token"):
        reward_model.load(model_folder, "cpu", sections.Reward(name="process", good="good"))

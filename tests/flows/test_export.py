"""`flywheel export` as a user meets it, and what TRL's own trainers make of its data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from storage.export import Wanted, export
from storage.registry import Registry
from tests.flows.command import flywheel, flywheel_json
from tests.storage import sample
from tests.storage.conftest import made  # noqa: F401 (a fixture)

ignored = pytest.mark.filterwarnings("ignore")
"""Warnings of TRL and what it imports are theirs."""


def test_one_document_and_a_folder_named_after_the_tag(made: dict[int, Registry], tmp_path: Path) -> None:  # noqa: F811
    registry = made[4].root
    done = flywheel("export", "gen/3", "-r", registry, "--format", "preference", "--pairs", "2", cwd=tmp_path)
    folder = tmp_path / "gen-0003-preference"
    assert done.stdout == f"Wrote 3 rows of train to {folder}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "data"]
    out = tmp_path / "out"
    document = flywheel_json("export", "gen/3", "-r", registry, "--out", out, "--window", "--split", "train",
                             "--split", "test", "--file-type", "jsonl")  # fmt: skip
    assert document["path"] == str(out)
    assert document["rows"] == {"train": 4 * sample.LABELS + 1 + 2 + 3, "test": 4}
    assert [file["path"] for file in document["files"]] == [
        "README.md", "data/test/part-00000.jsonl", "data/train/part-00000.jsonl",
    ]  # fmt: skip
    command = next(line for line in (out / "README.md").read_text().splitlines() if "`flywheel export" in line)
    arguments = command.partition("`flywheel export ")[2].partition("`")[0].split()
    again = flywheel_json("export", *arguments, "-r", registry, "--out", tmp_path / "again")
    assert (again["digest"], again["files"]) == (document["digest"], document["files"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["gen/9"], "never published"),
        (["gen/1", "--format", "alpaca"], "expected one of prompt-completion"),
        (["gen/1", "--format", "stepwise"], "supervise.enabled=true"),
        (["gen/1", "--pairs", "0"], "--pairs"),
    ],
)
def test_bad_input_exits_2_and_leaves_nothing(
    arguments: list[str], words: str, made: dict[int, Registry], tmp_path: Path  # noqa: F811
) -> None:  # fmt: skip
    refused = flywheel("export", *arguments, "-r", made[4].root, code=2, cwd=tmp_path)
    assert words in refused.stderr
    assert refused.stdout == ""
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> tuple[Registry, Any]:
    """A generation of Countdown answers with the token ids of a word-level tokenizer, and that tokenizer."""
    from flywheel.models.tokenizer import word_level

    tokenizer = word_level([*map(str, range(40)), "+", "-", "=", "->", "\n"])
    plain = sample._rows

    def ids(text: str, end: bool = False) -> list[int]:
        return [*tokenizer.encode(text, add_special_tokens=False), *([tokenizer.eos_token_id] if end else [])]

    def rows(params: Any) -> dict[str, Any]:
        held = plain(params)
        for index, attempt in enumerate(held["attempts"]):
            hand = index % 4
            attempt["prompt"] = f"1 2 {hand} -> {hand + 3}\n"
            attempt["output"] = f"1 + 2 = 3\n3 + {hand} = {hand + 3 + (attempt['reward'] < 1)}"
            attempt["prompt_ids"], attempt["token_ids"] = ids(attempt["prompt"]), ids(attempt["output"], end=True)
        for label, attempt in zip(held["labels"], held["attempts"], strict=False):
            label.update(prompt=attempt["prompt"], completion=attempt["output"])
            label.update(prompt_ids=attempt["prompt_ids"], completion_ids=attempt["token_ids"])
        return held

    with pytest.MonkeyPatch.context() as patch:
        for role in ("AUTHOR", "COMMITTER"):
            patch.setenv(f"GIT_{role}_NAME", "Test")
            patch.setenv(f"GIT_{role}_EMAIL", "test@example.org")
        patch.setattr(sample, "_rows", rows)
        registry = sample.new_registry(tmp_path_factory.mktemp("real") / "registry")
        sample.make_generation(registry)
    return registry, tokenizer


def small_model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=1, bos_token_id=None, **sizes)
    )


def loaded(folder: Path) -> Any:
    import datasets

    datasets.disable_progress_bars()
    return datasets.load_dataset(str(folder), split="train", cache_dir=str(folder.parent / "hf"))


def settings(folder: Path) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "run"), "max_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True,
        "report_to": "none", "bf16": False, "save_strategy": "no", "disable_tqdm": True,
    }  # fmt: skip


def ids_of(registry: Registry, table: str) -> dict[str, dict[str, Any]]:
    from storage.schemas import TABLES, table_folder
    from storage.tables import read_rows

    rows = read_rows(registry.root / table_folder(table, "0000"), TABLES[table])
    return {row[f"{table[:-1]}_id"]: row for row in rows}


@ignored
@pytest.mark.slow
def test_trl_learns_the_sampled_completion_tokens_and_no_others(real: tuple[Registry, Any], tmp_path: Path) -> None:
    from trl import SFTConfig, SFTTrainer

    registry, tokenizer = real
    export(registry, "gen/0", tmp_path / "out", Wanted())
    data = loaded(tmp_path / "out")
    trainer = SFTTrainer(small_model(tokenizer), SFTConfig(**settings(tmp_path)), train_dataset=data,
                         processing_class=tokenizer)  # fmt: skip
    labels = ids_of(registry, "labels")
    assert len(trainer.train_dataset) == len(labels) > 0
    for row in trainer.train_dataset:
        label = labels[row["label_id"]]
        assert row["input_ids"] == [*label["prompt_ids"], *label["completion_ids"]]
        assert [token for token in row["labels"] if token != -100] == label["completion_ids"]
        assert row["labels"][: len(label["prompt_ids"])] == [-100] * len(label["prompt_ids"])
    assert set(next(iter(trainer.get_train_dataloader()))) <= {"input_ids", "labels", "attention_mask"}
    assert trainer.train().training_loss > 0


@ignored
@pytest.mark.slow
def test_trl_learns_the_assistants_tokens_of_messages(real: tuple[Registry, Any], tmp_path: Path) -> None:
    import copy

    from trl import SFTConfig, SFTTrainer

    registry, tokenizer = real
    chat = copy.deepcopy(tokenizer)
    chat.chat_template = (
        "{% for message in messages %}{% if message.role == 'user' %}{{ message.content + '\n' }}{% else %}"
        "{% generation %}{{ message.content + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
    )
    export(registry, "gen/0", tmp_path / "out", Wanted(form="messages", file_type="jsonl"))
    args = SFTConfig(**settings(tmp_path), assistant_only_loss=True)
    trainer = SFTTrainer(small_model(chat), args, train_dataset=loaded(tmp_path / "out"), processing_class=chat)
    labels = ids_of(registry, "labels")
    for row in trainer.train_dataset:
        assert [token for token in row["labels"] if token != -100] == labels[row["label_id"]]["completion_ids"]
    assert trainer.train().training_loss > 0


@ignored
@pytest.mark.slow
def test_trl_prefers_the_sampled_tokens_to_the_rejected(real: tuple[Registry, Any], tmp_path: Path) -> None:
    from trl import DPOConfig, DPOTrainer

    registry, tokenizer = real
    export(registry, "gen/0", tmp_path / "out", Wanted(form="preference", pairs=4))
    small_model(tokenizer).save_pretrained(tmp_path / "model")
    trainer = DPOTrainer(str(tmp_path / "model"), args=DPOConfig(**settings(tmp_path)),
                         train_dataset=loaded(tmp_path / "out"), processing_class=tokenizer)  # fmt: skip
    labels, attempts = ids_of(registry, "labels"), ids_of(registry, "attempts")
    assert len(trainer.train_dataset) > 0
    for row in trainer.train_dataset:
        label, attempt = labels[row["label_id"]], attempts[row["rejected_attempt_id"]]
        assert (row["prompt_ids"], row["chosen_ids"]) == (label["prompt_ids"], label["completion_ids"])
        assert row["rejected_ids"] == attempt["token_ids"]
        assert attempt["reward"] < 1.0 <= label["reward"]
    assert trainer.train().training_loss > 0


@ignored
def test_stepwise_rows_are_what_trl_calls_stepwise(real: tuple[Registry, Any]) -> None:
    """TRL's own tests state the type: a prompt, strings for steps, a bool for each."""
    import datasets

    from storage.export_rows import SCHEMAS

    features = datasets.Features.from_arrow_schema(SCHEMAS["stepwise"])
    assert features["prompt"] == datasets.Value("string")
    assert features["completions"] == datasets.List(datasets.Value("string"))
    assert features["labels"] == datasets.List(datasets.Value("bool"))
    assert json.dumps(sorted(features)) == json.dumps(sorted(SCHEMAS["stepwise"].names))

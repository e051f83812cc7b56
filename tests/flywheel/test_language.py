"""Models made, saved and loaded: the same everywhere, and refused in words where they are none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flywheel import params
from flywheel.errors import ModelError
from flywheel.models import language
from flywheel.models.language import LanguageModel
from flywheel.problems.countdown import Countdown
from tests.flywheel.conftest import TINY

PLAIN = """
import sys, json, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
ids = tokenizer("3 5 8 -> 19\\n", return_tensors="pt", add_special_tokens=False).input_ids
out = model.generate(ids, max_new_tokens=6, do_sample=False)
print(json.dumps([ids[0].tolist(), out[0].tolist(), tokenizer.decode(ids[0]), "flywheel" in sys.modules]))
"""


def test_plain_transformers_loads_it_in_another_process(model_folder: Path, tiny: LanguageModel) -> None:
    import torch

    done = subprocess.run(
        [sys.executable, "-P", "-c", PLAIN, str(model_folder)], capture_output=True, text=True, check=True
    )
    ids, continued, text, ours = json.loads(done.stdout.splitlines()[-1])
    assert not ours
    assert text == "3 5 8 -> 19\n"
    assert ids == tiny.encode_prompt(text)
    expected = tiny.model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    assert continued == expected[0].tolist()


def test_a_model_is_a_function_of_its_seed(tmp_path: Path, countdown: Countdown, model_folder: Path) -> None:
    import torch

    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    same = language.create(TINY, countdown.vocabulary(), (), 7, tmp_path / "same")
    other = language.create(TINY, countdown.vocabulary(), (), 8, tmp_path / "other")
    assert same == language.load(model_folder, "cpu").snapshot
    assert same != other
    assert torch.equal(before, torch.random.get_rng_state()), "the global generator is left alone"
    assert {path.suffix for path in (tmp_path / "same").iterdir()} <= {".json", ".safetensors", ".jinja"}


def test_a_pretrained_base_is_taken_as_it_is(tmp_path: Path, model_folder: Path, countdown: Countdown) -> None:
    snapshot = language.create(params.Model(base=str(model_folder)), countdown.vocabulary(), (), 1, tmp_path / "base")
    assert snapshot == language.load(model_folder, "cpu").snapshot


def test_what_is_loaded(tiny: LanguageModel, countdown: Countdown) -> None:
    import torch

    assert tiny.model.dtype == torch.float32
    assert not tiny.model.training
    words = len(list(countdown.vocabulary())) + 3
    layer = 4 * 16 * 16 + 3 * 16 * 32
    assert tiny.parameters == words * 16 + 2 * (layer + 2 * 16) + 16
    assert tiny.shape.matrix_parameters == words * 16 + 2 * layer
    assert (tiny.shape.layers, tiny.shape.attention_width) == (2, 16)
    assert tiny.end_ids == {tiny.tokenizer.eos_token_id}
    assert tiny.encode_answer("8 * 3 = 24")[-1] == tiny.tokenizer.eos_token_id
    assert tiny.decode(tiny.encode_answer("8 * 3 = 24")) == "8 * 3 = 24"
    assert tiny.fill_id == tiny.tokenizer.pad_token_id


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", r"holds no \*\.safetensors"),
        ("tokenizer.json", "tokenizer"),
    ],
)
def test_a_missing_file_is_a_model_error(tmp_path: Path, model_folder: Path, damage: str, says: str) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / damage).unlink()
    with pytest.raises(ModelError, match=says):
        language.load(folder, "cpu")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("config.json", "{"),
        ("config.json", '{"model_type": "no_such_model"}'),
        ("config.json", "{}"),
        ("tokenizer.json", "{"),
        ("tokenizer.json", "{}"),
        ("model.safetensors", "not tensors"),
    ],
)
def test_a_damaged_file_is_a_model_error(tmp_path: Path, model_folder: Path, name: str, text: str) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    (folder / name).write_text(text)
    with pytest.raises(ModelError, match=str(folder)):
        language.load(folder, "cpu")


def test_weights_of_another_shape_are_a_model_error(tmp_path: Path, model_folder: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 32}))
    with pytest.raises(ModelError, match="cannot be loaded"):
        language.load(folder, "cpu")


def test_weights_that_lack_a_tensor_are_a_model_error(tmp_path: Path, model_folder: Path) -> None:
    """Transformers would draw the missing weights at random and go on."""
    from safetensors.torch import load_file, save_file

    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight"):
        language.load(folder, "cpu")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    for source in (tmp_path / "nowhere", str(tmp_path / "nowhere"), "./nowhere"):
        with pytest.raises(ModelError, match=r"no config\.json"):
            language.load(source, "cpu")


def test_cuda_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    assert language.device_for("cpu") == "cpu"
    if not torch.cuda.is_available():
        assert language.device_for("auto") == "cpu"
        with pytest.raises(ModelError, match=r"execution\.device: got cuda"):
            language.device_for("cuda")


def test_special_tokens_inside_an_answer_are_shown_to_the_judge(tiny: LanguageModel) -> None:
    """Dropped before judging, they would turn a wrong answer into a right one."""
    ids = tiny.encode_answer("8 * 3 = 24")
    assert tiny.decode(ids) == "8 * 3 = 24"
    for special in (tiny.tokenizer.pad_token_id, tiny.tokenizer.unk_token_id, tiny.tokenizer.eos_token_id):
        assert tiny.decode([*ids[:2], special, *ids[2:]]) != "8 * 3 = 24"

"""The name of a model is its weights: not their files, not their metadata; one bit makes another name."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flywheel.errors import ModelError
from flywheel.models.checkpoints import tokenizer_digest, weights_digest
from flywheel.models.language import LanguageModel

TENSORS = {"b.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "a.bias": np.ones(3, dtype=np.float16)}


def written(folder: Path, *parts: dict[str, Any], metadata: dict[str, str] | None = None) -> Path:
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    for number, part in enumerate(parts):
        save_file(part, folder / f"model-{number}.safetensors", metadata=metadata)
    return folder


def test_sharding_order_and_metadata_do_not_matter(tmp_path: Path) -> None:
    whole = weights_digest(written(tmp_path / "whole", TENSORS))
    assert len(whole) == 32
    cut = [{name: tensor} for name, tensor in TENSORS.items()]
    assert weights_digest(written(tmp_path / "cut", *cut)) == whole
    assert weights_digest(written(tmp_path / "turned", *reversed(cut))) == whole
    assert weights_digest(written(tmp_path / "marked", TENSORS, metadata={"format": "pt", "by": "us"})) == whole


def test_sharding_by_transformers_does_not_matter(tiny: LanguageModel, model_folder: Path, tmp_path: Path) -> None:
    tiny.model.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert weights_digest(tmp_path) == weights_digest(model_folder) == tiny.snapshot


@pytest.mark.parametrize(
    "other",
    [
        {**TENSORS, "b.weight": TENSORS["b.weight"].reshape(4, 3)},
        {**TENSORS, "a.bias": TENSORS["a.bias"].view(np.int16)},
        {"b.weights": TENSORS["b.weight"], "a.bias": TENSORS["a.bias"]},
        {**TENSORS, "c": np.zeros(0, dtype=np.float32)},
        {"b.weight": TENSORS["b.weight"]},
    ],
    ids=["shape", "dtype", "name", "more", "fewer"],
)
def test_what_a_tensor_is_matters(tmp_path: Path, other: dict[str, Any]) -> None:
    assert weights_digest(written(tmp_path / "a", TENSORS)) != weights_digest(written(tmp_path / "b", other))


def test_every_flipped_bit_of_the_weights_matters(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", TENSORS)
    (path,) = folder.glob("*.safetensors")
    whole, data = weights_digest(folder), path.read_bytes()
    (header,) = struct.unpack("<Q", data[:8])
    digests = {whole}
    for position in range(8 + header, len(data)):
        path.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
        digests.add(weights_digest(folder))
    assert len(digests) == 1 + len(data) - 8 - header
    path.write_bytes(data)
    assert weights_digest(folder) == whole


def broken(header: object, tail: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tail


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"abc",
        b"\xff" * 64,
        struct.pack("<Q", 10) + b"{" * 10,
        struct.pack("<Q", 2) + b"\xff\xfe",
        broken([1, 2]),
        broken({"a": 3}),
        broken({"a": {"dtype": "F32", "shape": [1]}}),
        broken({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}),
        broken({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, b"123"),
    ],
)
def test_what_is_no_model_is_a_model_error(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"model\.safetensors") as caught:
        weights_digest(tmp_path)
    assert caught.value.exit_code == 2


def test_an_empty_or_missing_folder(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
            weights_digest(folder)
        with pytest.raises(ModelError, match=r"holds no tokenizer\.json"):
            tokenizer_digest(folder)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "model", TENSORS, TENSORS)
    with pytest.raises(ModelError, match=r"twice, in model-0\.safetensors and model-1\.safetensors"):
        weights_digest(folder)


def test_the_tokenizer_is_named_by_its_file(model_folder: Path, tmp_path: Path) -> None:
    shutil.copy(model_folder / "tokenizer.json", tmp_path)
    assert tokenizer_digest(tmp_path) == tokenizer_digest(model_folder)
    with (tmp_path / "tokenizer.json").open("a") as file:
        file.write(" ")
    assert tokenizer_digest(tmp_path) != tokenizer_digest(model_folder)

"""The name of a model: a digest of its weights, read from safetensors without torch and without unpickling anything.

The digest runs over each tensor's name, dtype, shape and bytes in the order of names, so it does not depend on how the
weights are cut into files, nor on a file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

from flywheel.errors import ModelError

_CHUNK = 1 << 24


def weights_digest(folder: Path) -> str:
    """128-bit digest, 32 hex digits, of the safetensors in a model folder. Raises ModelError where there are none."""
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder} holds no *.safetensors; expected a model folder saved by transformers")
    tensors: dict[str, tuple[Path, tuple[str, list[int], int, int]]] = {}
    for path in files:
        for name, entry in _header(path).items():
            if name in tensors:
                raise ModelError(f"{folder} holds tensor {name} twice, in {tensors[name][0].name} and {path.name}")
            tensors[name] = (path, entry)
    total = hashlib.blake2b(digest_size=16)
    for name, (path, (dtype, shape, start, length)) in sorted(tensors.items()):
        total.update(json.dumps([name, dtype, shape, length]).encode())
        with path.open("rb") as file:
            file.seek(start)
            while length > 0:
                chunk = file.read(min(length, _CHUNK))
                if not chunk:
                    raise ModelError(f"{path} is cut short inside tensor {name}")
                total.update(chunk)
                length -= len(chunk)
    return total.hexdigest()


def _header(path: Path) -> dict[str, tuple[str, list[int], int, int]]:
    """Tensor name to (dtype, shape, offset in the file, bytes)."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(size))
        tensors = {}
        for name, entry in header.items():
            if name != "__metadata__":
                first, last = entry["data_offsets"]
                tensors[name] = (entry["dtype"], entry["shape"], 8 + size + first, last - first)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}; expected what save_pretrained writes") from None
    return tensors


def tokenizer_digest(folder: Path) -> str:
    """Names a tokenizer by its `tokenizer.json`; equal digests mean that token ids can be shared."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"{folder} holds no tokenizer.json; expected a fast tokenizer saved by transformers")
    return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()

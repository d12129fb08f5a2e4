"""What a Hugging Face folder holds, but for the values of its weights."""

import json
import struct
from pathlib import Path

TOKENIZER = "tokenizer.json"  # which the tokenizers library writes, each version in its own way


def exported(folder: Path) -> dict:
    """Return the names of a folder's files and the texts of the small ones, and the type and shape of each tensor."""
    texts = {path.name: _text(path) for path in sorted(folder.iterdir())}
    tensors = {
        name: [of["dtype"], of["shape"]]
        for path in sorted(folder.glob("*.safetensors"))
        for name, of in _header(path).items()
        if name != "__metadata__"
    }
    return {"files": texts, "tensors": dict(sorted(tensors.items()))}


def _text(path: Path) -> str | None:
    return path.read_text() if path.suffix in (".json", ".jinja") and path.name != TOKENIZER else None


def _header(path: Path) -> dict:
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(size))

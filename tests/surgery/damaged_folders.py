"""Model folders damaged at random, one file in one place: each is read as it stands, or refused in one line."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import huggingface_goldens as goldens

VALUES = (None, True, "x", [], {}, -1, 0, 1.5, 10**12, 10**400, 1e308, float("nan"), "\ud800", [[1]], {"a": 1})
CONTENTS = (
    b"",
    b"null",
    b"[]",
    b"1",
    b"{}",
    b'{"a":' * 100_000,
    b"[" * 100_000,
    b"\xff\xfe",
    b'{"a": 1e999}',
    b"1" * 5000,
)
HEADER_LENGTHS = (0, 1, 7, 2**31, 2**63, 2**64 - 1)
ENTRIES = {
    "dtype": ("F64", "U8", "F8_E4M3", "?", None, 1),
    "shape": ([], [0], [1], [-1], [10**12], [2**63], None, "x"),
    "data_offsets": ([0, 0], [0, 10**12], [5, 1], None, [0], [-4, 0]),
}
TOKENIZER = {
    "version": "1.0",
    "added_tokens": [{"id": 2, "content": "<eos>", "special": True}],
    "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<eos>": 2}, "unk_token": "a"},
}
BESIDE = {
    "tokenizer.json": TOKENIZER,
    "tokenizer_config.json": {"eos_token": "<eos>", "added_tokens_decoder": {"2": {"content": "<eos>"}}},
    "added_tokens.json": {"<eos>": 2},
    "generation_config.json": {"eos_token_id": [2], "temperature": 0.5},
}


def damaged_folder(seed: int, parent: Path) -> tuple[Path, str]:
    """Return a folder with one damage, and what it is."""
    chance = random.Random(seed)
    folder = goldens.copy(chance.choice(goldens.NAMES), parent)
    for name, content in BESIDE.items():
        (folder / name).write_text(json.dumps(content))
    suffix = chance.choice((".json", ".json", ".safetensors"))
    file = chance.choice([file for file in sorted(folder.iterdir()) if file.suffix == suffix])
    damage: Callable[[random.Random, Path], str] = chance.choice(DAMAGES[suffix])
    return folder, f"{folder.name}/{file.name}: {damage(chance, file)}"


def change_value(chance: random.Random, file: Path) -> str:
    content = json.loads(file.read_text())
    *path, last = chance.choice(list(_places(content, ())))
    node = content
    for key in path:
        node = node[key]
    node[last] = chance.choice(VALUES)
    file.write_text(json.dumps(content))
    return f"{(*path, last)} is {str(node[last])[:20]!r}"


def _places(node, path):
    if isinstance(node, dict | list):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield (*path, key)
            yield from _places(value, (*path, key))


def change_content(chance: random.Random, file: Path) -> str:
    content = chance.choice(CONTENTS)
    file.write_bytes(content)
    return f"is {content[:10]}"


def cut(chance: random.Random, file: Path) -> str:
    length = chance.randrange(file.stat().st_size)
    file.write_bytes(file.read_bytes()[:length])
    return f"cut at {length}"


def flip(chance: random.Random, file: Path) -> str:
    content = bytearray(file.read_bytes())
    places = [chance.randrange(min(len(content), 3000)) for _ in range(3)]  # headers are at the beginning
    for place in places:
        content[place] = chance.randrange(256)
    file.write_bytes(content)
    return f"bytes {places}"


def change_header_length(chance: random.Random, file: Path) -> str:
    length = chance.choice(HEADER_LENGTHS)
    file.write_bytes(length.to_bytes(8, "little") + file.read_bytes()[8:])
    return f"header of {length} bytes"


def change_header(chance: random.Random, file: Path) -> str:
    content = file.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:end])
    name = chance.choice([name for name in header if name != "__metadata__"])
    field = chance.choice(list(ENTRIES))
    header[name][field] = chance.choice(ENTRIES[field])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])
    return f"{name} has {field} {header[name][field]}"


DAMAGES = {
    ".json": (change_value, change_value, change_value, change_content, cut, flip),
    ".safetensors": (change_header, change_header, change_header_length, cut, flip),
}

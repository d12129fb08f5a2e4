"""The files of a Hugging Face folder, beside its weights, that a run keeps for an export: tokenizer and templates."""

import shutil
from pathlib import Path
from typing import Any

from jaxtrain.surgery.huggingface.files import own_file, read_json

IMPORTED = "huggingface"  # in the run folder
TEMPLATES = "additional_chat_templates"  # a folder
TOKENIZER_SIDE = (  # a tokenizer's own files, and those that belong to them
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)
CHAT_TEMPLATE, TOKENIZER_CONFIG = "chat_template.jinja", "tokenizer_config.json"


def copy_tokenizer_files(source: Path, target: Path, *others: str) -> None:
    """Copy a Hugging Face folder's tokenizer files, and the files `others`, as far as it has them."""
    templates = (f"{TEMPLATES}/{file.name}" for file in (source / TEMPLATES).glob("*.jinja"))
    target.mkdir(exist_ok=True)
    for name in (*TOKENIZER_SIDE, *sorted(templates), *others):
        if file := own_file(source, name):
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copy(file, target / name)


def settings(folder: Path, name: str) -> dict[str, Any]:
    """Return the content of a JSON file of a Hugging Face folder, or {} where there is no such file."""
    file = own_file(folder, name)
    return read_json(file) if file else {}

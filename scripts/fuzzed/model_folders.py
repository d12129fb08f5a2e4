"""Folders of Hugging Face models: config.json, the index of shards, and safetensors files but for the weights in them.

Silently wrong: a key of config.json that no valid one has and that is not known to be harmless; a changed value that
changes nothing, of a key that is not; or weights other than before, none of their bytes being touched.
"""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random

import jax
import numpy as np

from fuzzed import json_files, mutations
from fuzzed.case import Case
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.surgery.huggingface import open_folder

GOLDENS = Path(__file__).parents[2] / "tests" / "golden" / "huggingface"
FAMILIES = tuple(sorted(folder.name for folder in GOLDENS.iterdir()))
INDEX = "model.safetensors.index.json"
# Of training, of generation and of what wrote the file: not of the numbers of a forward pass. The last ones say what
# lists say as well, or, of the head, what a warning says.
HARMLESS = {
    "architectures", "attention_dropout", "attn_pdrop", "embd_pdrop", "bos_token_id", "eos_token_id", "pad_token_id",
    "dtype", "torch_dtype", "initializer_range", "pretraining_tp", "transformers_version", "use_cache", "summary_type",
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_use_proj", "n_ctx",
    "reorder_and_upcast_attn", "max_window_layers", "use_sliding_window", "classifier_dropout", "embedding_dropout",
    "is_decoder", "_sliding_window_pattern", "no_rope_layer_interval", "tie_word_embeddings",
}  # fmt: skip


def folders(random: Random, folder: Path) -> Iterator[Case]:
    for family in FAMILIES:
        yield _folder(folder, family, "valid", {}, valid=True)
    while True:
        family = random.choice(FAMILIES)
        match random.choice(("config", "config", "config", "index", "text", "header", "cut")):
            case "config":
                what, document = json_files.damage(random, json.loads((GOLDENS / family / "config.json").read_text()))
                yield _folder(folder, family, f"config.json, {what}", {"config.json": json.dumps(document).encode()})
            case "index":
                what, document = json_files.damage(random, json.loads((GOLDENS / "llama" / INDEX).read_text()))
                yield _folder(folder, "llama", f"{INDEX}, {what}", {INDEX: json.dumps(document).encode()})
            case "text":
                what, content = mutations.data(random, (GOLDENS / family / "config.json").read_bytes())
                yield _folder(folder, family, f"config.json, {what}", {"config.json": content})
            case part:
                file = random.choice(sorted((GOLDENS / family).glob("*.safetensors")))
                what, content = _damaged_header(random, file.read_bytes(), cut=part == "cut")
                yield _folder(folder, family, f"{file.name}, {what}", {file.name: content})


def _damaged_header(random: Random, valid: bytes, *, cut: bool) -> mutations.Damaged[bytes]:
    end = 8 + int.from_bytes(valid[:8], "little")
    if cut:
        at = random.randrange(len(valid))
        return mutations.Damaged(f"cut at {at}", valid[:at])
    what, header = mutations.data(random, valid[:end])
    return mutations.Damaged(f"header, {what}", header + valid[end:])


def _folder(folder: Path, family: str, what: str, files: dict[str, bytes], *, valid: bool = False) -> Case:
    source = folder / family

    def attempt() -> tuple[DecoderConfig, dict[str, np.ndarray]]:
        shutil.rmtree(source, ignore_errors=True)
        shutil.copytree(GOLDENS / family, source)
        for name, content in files.items():
            (source / name).write_bytes(content)
        return _opened(source)

    def fault(made: tuple[DecoderConfig, dict[str, np.ndarray]]) -> str | None:
        config, weights = made
        meant, own = _valid(family)
        settings = json.loads(files.get("config.json", b"{}"))
        if _heads(settings) not in (None, _heads(_settings(family))) or len(config.pattern) != len(meant.pattern):
            return None  # the same bytes are then other heads, or stacked in another way
        if weights.keys() != own.keys() or not all(_same(weights[name], own[name]) for name in own):
            return "other weights than before"
        return _unheard(settings, family, config == meant)

    return Case("model folder", f"{family}, {what}", attempt, fault, (str(folder), "config.json"), valid)


def _settings(family: str) -> dict:
    return json.loads((GOLDENS / family / "config.json").read_text())


def _heads(settings: dict) -> int | None:
    return settings.get("num_attention_heads", settings.get("n_head"))


@functools.cache
def _valid(family: str) -> tuple[DecoderConfig, dict[str, np.ndarray]]:
    return _opened(GOLDENS / family)


def _opened(source: Path) -> tuple[DecoderConfig, dict[str, np.ndarray]]:
    config, leaves = open_folder(source)
    return config, {
        jax.tree_util.keystr(path): leaf.read() for path, leaf in jax.tree_util.tree_leaves_with_path(leaves)
    }


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def _unheard(settings: dict, family: str, same: bool) -> str | None:
    known = _settings(family)
    for key, value in settings.items():
        if key in HARMLESS:
            continue
        if key not in known and value is not None:
            return f"{key}={value!r} is not understood, and not refused"
        if key == "sliding_window" and not settings.get("use_sliding_window", True):
            continue
        if same and not _is_part(value, known.get(key)):
            return f"{key}={value!r} changes nothing"
    return None


def _is_part(value: object, known: object) -> bool:
    """Whether a value says nothing that the valid one does not; what is left out has the default of transformers."""
    if isinstance(value, dict) and isinstance(known, dict):
        return all(item is None or (key in known and _is_part(item, known[key])) for key, item in value.items())
    return value is None or value == known

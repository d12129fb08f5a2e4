"""The recorded models of `transformers` (scripts/peers/make_goldens.py) and what the tests here do with them."""

import shutil
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.trees import apart
from jaxtrain.nn.param import merge
from jaxtrain.shapes import Batch, ParamTree

GOLDENS = Path(__file__).parents[1] / "golden" / "huggingface"
NAMES = (
    *("llama", "qwen3", "gemma2", "mistral", "gpt2", "qwen2", "gemma", "gemma3_text", "phi3", "olmo2"),
    *("smollm3", "starcoder2", "gpt_neox", "granite", "cohere2", "bert", "modernbert"),
    *("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "granitemoe", "gpt_oss", "deepseek_v2", "deepseek_v3", "glm4_moe"),
)
TYPES = "bert.embeddings.token_type_embeddings.weight"  # the first row is added to the positions
POSITIONS = "bert.embeddings.position_embeddings.weight"


class Bits(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    content: bytes


def tensors(folder: Path) -> dict[str, np.ndarray]:
    """Read a folder with the safetensors package, apart from the code under test."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "np") as stream:
            found |= {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    return found


def bits(folder: Path) -> dict[str, Bits]:
    """Return the tensors of a folder as they come back from an import."""
    arrays = with_types_in_positions(tensors(folder))
    return {name: Bits(array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}


def with_types_in_positions(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors of a family as they come back: those of BERT with the token types in the positions."""
    if TYPES not in arrays:
        return arrays
    types, positions = arrays[TYPES], arrays[POSITIONS]
    return arrays | {TYPES: np.zeros_like(types), POSITIONS: positions + types[:1]}


def copy(family: str, target: Path) -> Path:
    return Path(shutil.copytree(GOLDENS / family, target / family))


def save(arrays: dict[str, np.ndarray], folder: Path) -> None:
    """Replace a folder's weights by one file."""
    for file in folder.glob("model*"):
        file.unlink()
    save_file(arrays, folder / "model.safetensors")


def logits(config: DecoderConfig, params: ParamTree, tokens: np.ndarray) -> np.ndarray:
    """Return what a model computes with the arrays of a folder, parameters and buffers."""
    graph, shapes, _ = abstract_model(config)
    state = apart(params, shapes)
    ones = np.ones(tokens.shape, np.int32)
    positions = ones.cumsum(axis=1, dtype=np.int32) - 1
    batch = Batch(tokens, tokens, ones.astype(np.float32), ones, positions)
    return np.asarray(jax.jit(lambda state, batch: merge(graph, state)(batch))(state, batch))


def golden(family: str) -> tuple[np.ndarray, np.ndarray]:
    recorded = np.load(GOLDENS / family / "golden.npz")
    return recorded["tokens"], recorded["logits"]

"""Small models and batches that tests share."""

import dataclasses

import jax
import numpy as np

from jaxtrain.axes import Axes, Kind
from jaxtrain.models import presets
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.teacher import Teacher
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.masks import SlidingWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.shapes import Batch, ModelState, ParamTree
from jaxtrain.train.program import Program, Recipe

PRESETS = {
    "llama3": presets.llama3_tiny(),
    "mistral": presets.mistral_tiny(),
    "qwen3": presets.qwen3_tiny(),
    "gemma2": presets.gemma2_tiny(),
    "gpt2": presets.gpt2_tiny(),
}

DECODER = DecoderConfig(
    vocab_size=64,
    d_model=32,
    repeats=2,
    pattern=(
        BlockConfig(
            mixer=AttentionConfig(heads=4, kv_heads=2, head_dim=8, mask=SlidingWindow(window=9)),
            mlp=GatedMLPConfig(hidden=64),
        ),
    ),
    max_length=32,
)


def matrix(*names: str | None) -> Axes:
    """Return the facts about a weight matrix."""
    return Axes(names, Kind.MATRIX, cast=True)


def vector(*names: str | None) -> Axes:
    """Return the facts about a scale or a bias."""
    return Axes(names, Kind.VECTOR, cast=False)


def variant(**changes) -> DecoderConfig:
    """Return the tiny decoder with some fields changed."""
    return dataclasses.replace(DECODER, **changes)


def random_params(config: DecoderConfig, seed: int = 0) -> ParamTree:
    """Return parameters where no norm scale is 1 and no bias is 0, so that a test sees each; nothing is compiled."""
    return random_model(config, seed).params


def random_model(config: DecoderConfig, seed: int = 0) -> ModelState:
    """Return such parameters, and frozen weights and buffers like them."""
    _, shapes, axes = abstract_model(config)
    random = np.random.default_rng(seed)

    def draw(path, own, leaf):
        if jax.numpy.issubdtype(leaf.dtype, jax.numpy.integer):
            return random.integers(-8, 8, leaf.shape).astype(leaf.dtype)
        noise = random.standard_normal(leaf.shape).astype(np.float32)
        if own.decays:
            return noise * np.float32(config.d_model**-0.5)
        return np.float32(0.1) * noise + np.float32(path[-1].key == "scale")

    return jax.tree_util.tree_map_with_path(draw, axes, shapes)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class RandomTeacher(Teacher):
    """Random weights of a model, without a run."""

    model: DecoderConfig
    seed: int = 7

    def arrays(self, mesh):
        return random_model(self.model, self.seed)


def packed_batch(lengths: list[list[int]], length: int, *, vocab_size: int, seed: int = 0) -> Batch:
    """Return one row for each list of document lengths, the documents side by side and padding behind them.

    Rows are of task 0 and 1 in turn.
    """
    rows, random = len(lengths), np.random.default_rng(seed)
    tokens = random.integers(0, vocab_size, (rows, length)).astype(np.int32)
    segment_ids, positions = np.zeros((2, rows, length), np.int32)
    weights = np.zeros((rows, length), np.float32)
    for row, documents in enumerate(lengths):
        start = 0
        for number, size in enumerate(documents, 1):
            place = slice(start, start + size)
            segment_ids[row, place], positions[row, place] = number, np.arange(size)
            weights[row, start : start + size - 1] = 1.0
            start += size
    tasks = np.repeat(np.arange(rows, dtype=np.int32)[:, None] % 2, length, axis=1)
    return Batch(tokens, np.roll(tokens, -1, axis=1), weights, segment_ids, positions, tasks)


def training_batch(rows: int, length: int, *, vocab_size: int, seed: int = 0) -> Batch:
    """Return rows of two documents each, cut at a random place, with padding of random length behind them."""
    random = np.random.default_rng(seed)
    cuts = np.sort(random.integers(1, length, (rows, 2)), axis=1)
    lengths = [[int(a), int(b - a)] if b > a else [int(a)] for a, b in cuts]
    return packed_batch(lengths, length, vocab_size=vocab_size, seed=seed)


def program_of(recipe: Recipe, mesh: jax.sharding.Mesh) -> Program:
    """Return the program of the first phase."""
    return recipe.program(recipe.spans[0], mesh)


def size_of(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def bytes_of(tree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

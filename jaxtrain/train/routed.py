"""Where the tokens of held-out text go: what each mixture of a model counts, as numbers and as files of a run."""

import functools
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.stacks import Stack
from jaxtrain.nn.moe.observed import ROUTING
from jaxtrain.nn.param import merge
from jaxtrain.shapes import Batch, ModelState

Counted = dict[str, np.ndarray]  # what one mixture counts, by name
COUNTS = ("load", "dropped", "tokens", "entropy", "together", "moved")


@functools.lru_cache(maxsize=2)
def counting_step(graph: nnx.GraphDef, mesh: Mesh) -> Callable[[ModelState, Batch], Mapping[str, Any]]:
    """Return the jitted step `(model, batch) -> counts of all layers`, which every process has as a whole."""

    def count(model: ModelState, batch: Batch) -> Mapping[str, Any]:
        return merge(graph, model).hidden(batch, taps=(ROUTING,)).sums.counts

    return jax.jit(count, out_shardings=NamedSharding(mesh, P()))


def by_layer(batches: Iterable[Mapping[str, Any]], stacks: Mapping[str, Stack]) -> dict[str, Counted]:
    """Return what each mixture counted over all batches, by its name: 0 for that of the first layer, and so on.

    A mixture that is not the feed-forward layer of its block has its place there behind the number.
    """
    found: dict[str, Counted] = {}
    for counts in batches:
        first = 0
        for stack, (blocks, repeats) in stacks.items():
            flat = flatten_dict(jax.device_get(counts.get(stack, {})))
            for block, *place in sorted({path[:-1] for path in flat if path[-1] == "together"}):
                stacked = {name: np.asarray(flat[block, *place, name], np.float64) for name in COUNTS}
                for repeat in range(repeats):
                    own = found.setdefault(_name(first + repeat * len(blocks) + int(block), place), {})
                    for name, numbers in stacked.items():
                        own[name] = own.get(name, 0.0) + numbers[repeat]
            first += len(blocks) * repeats
    return dict(sorted(found.items(), key=lambda layer: _order(layer[0])))


def _name(layer: int, place: list[str]) -> str:
    return ".".join((str(layer), *([] if place == ["mlp"] else place)))


def _order(name: str) -> tuple[int, str]:
    layer, _, place = name.partition(".")
    return int(layer), place


def numbers(layers: Mapping[str, Counted]) -> dict[str, float]:
    """Return the numbers of every layer: the fullest expert over the mean load, the mean entropy of the router in nats,
    the share of choices that were dropped, and that of tokens which a router in bfloat16 would send elsewhere."""
    found = {}
    for layer, own in layers.items():
        choices, tokens = max(own["load"].sum(), 1.0), max(float(own["tokens"]), 1.0)
        computing = own["load"][: len(own["dropped"])]  # without zero experts
        found[f"validation_fullest_expert_{layer}"] = float(
            computing.max() * len(computing) / max(computing.sum(), 1.0)
        )
        found[f"validation_router_entropy_{layer}"] = float(own["entropy"] / tokens)
        found[f"validation_dropped_{layer}"] = float(own["dropped"].sum() / choices)
        found[f"validation_moved_by_bfloat16_{layer}"] = float(own["moved"] / tokens)
    return found


@functools.lru_cache(maxsize=16)
def has_mixtures(model: DecoderConfig) -> bool:
    """Tell whether a layer of the model counts where its tokens go. Nothing is computed."""
    graph, shapes, _ = abstract_model(model)

    def count(state: ModelState) -> Mapping[str, Any]:
        ids = jnp.zeros((1, model.max_length), jnp.int32)
        batch = Batch(ids, ids, ids.astype(jnp.float32), ids, ids, ids)
        return merge(graph, state).hidden(batch, taps=(ROUTING,)).sums.counts

    return any(path[-1] == "together" for path in flatten_dict(jax.eval_shape(count, shapes)))


def written(layers: Mapping[str, Counted]) -> bytes:
    """Return the content of a file of counts."""
    file = io.BytesIO()
    arrays: dict[str, Any] = {f"{layer}/{name}": own[name] for layer, own in layers.items() for name in own}
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def read(path: Path) -> dict[str, Counted]:
    """Return what `written` wrote.

    Raises:
        ValueError: the file is something else, or damaged.
    """
    layers: dict[str, Counted] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                layer, _, name = key.partition("/")
                layers.setdefault(layer, {})[name] = file[key]
    except Exception:  # zipfile, zlib and numpy have errors of their own for what is damaged
        layers = {}
    if not layers or any(set(own) != set(COUNTS) for own in layers.values()):
        raise ValueError(f"{path}: not the counts of a run, or damaged; remove it, and the other steps are drawn")
    return layers

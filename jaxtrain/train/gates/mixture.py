"""Experts that were trained apart as one language model: the sum of their probabilities times the weights of a gate.

The experts run one after another, by the program of one of them. Left out: running only those that a gate's `top_k`
leaves.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float, Key

from jaxtrain.models.generate import Sampling, draw, first_logits, keys_of, next_logits, prepared
from jaxtrain.nn.param import merge
from jaxtrain.objectives.base import Sums, Terms
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.train.gates.base import Gate

Models = Sequence[ModelState]


def make_mixture_step(graph: nnx.GraphDef, gate: Gate) -> Callable[[Models, Batch], tuple[Terms, Sums]]:
    """Return an evaluation step of the mixture of models of one structure, as `evaluate` takes it."""

    @jax.jit
    def mixed(batch: Batch, log_probs: Float[Array, "M B L"]) -> tuple[Terms, Sums]:
        of_target = jax.nn.logsumexp(gate.log_weights(batch, log_probs) + log_probs, axis=0)
        return Terms({}, {"nll": -jnp.sum(of_target * batch.weights)}), {"nll": jnp.sum(batch.weights)}

    return lambda models, batch: mixed(batch, jnp.stack([said(graph, model, batch) for model in models]))


@functools.partial(jax.jit, static_argnums=0)
def said(graph: nnx.GraphDef, model: ModelState, batch: Batch) -> Float[Array, "B L"]:
    """Return the logarithm of the probability that a model gives each target."""
    decoder = merge(graph, model)
    return -decoder.head.cross_entropy(decoder.hidden(batch).y, batch.targets)[0]


_first = jax.jit(first_logits, static_argnums=(0, 4))
_next = jax.jit(next_logits, static_argnums=(0, 6, 7), donate_argnums=3)


def generate_mixed(
    graph: nnx.GraphDef,
    models: Models,
    gate: Gate,
    prompt: Sequence[int],
    *,
    mesh: Mesh,
    tokens: int,
    sampling: Sampling,
    key: Key[Array, ""],
    stop_token: int | None = None,
) -> list[int]:
    """Return the continuation of a prompt by the mixture: up to `tokens` tokens, up to but without `stop_token`.

    The models lie on `mesh`. Each token is drawn on the host.

    Raises:
        ValueError: as `generate` does.
    """
    padded, lengths = prepared(merge(graph, models[0]).config, [prompt], tokens)
    width, count = padded.shape[1], len(prompt)
    slots, keys, weigh = width + tokens, keys_of(key, 1), jax.jit(gate.log_weights)
    context, log_probs = np.zeros((1, slots), np.int32), np.zeros((len(models), 1, slots), np.float32)
    context[:, :width] = padded
    with jax.set_mesh(mesh):
        log_probs[:, :, :width] = [np.asarray(said(graph, model, _document(padded))) for model in models]
        runs = [_first(graph, model, padded, lengths, slots) for model in models]
    written: list[int] = []
    for t in range(tokens):
        place = count - 1 + t
        said_MBW = np.stack([np.asarray(jax.nn.log_softmax(logits)) for logits, _ in runs])
        weights_MB = np.asarray(weigh(_document(context), log_probs))[:, :, place]
        mixed_BW = np.logaddexp.reduce(weights_MB[..., None] + said_MBW, axis=0)
        token = draw(jnp.asarray(mixed_BW), keys, t, sampling)
        if (new := int(token[0])) == stop_token:
            break
        written.append(new)
        if t + 1 < tokens:
            context[0, place + 1], log_probs[:, 0, place] = new, said_MBW[:, 0, new]
            with jax.set_mesh(mesh):
                runs = [
                    _next(graph, model, np.array([new]), states, lengths, t + 1, width, slots)
                    for model, (_, states) in zip(models, runs, strict=True)
                ]
    return written


def _document(tokens: np.ndarray) -> Batch:
    """Return rows of one document. What lies behind a place has no part in what is said at it."""
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    ones = np.ones_like(tokens)
    columns = tokens, np.roll(tokens, -1, axis=1), ones.astype(np.float32), ones, places
    return jax.tree.map(jnp.array, Batch(*columns))  # type: ignore[arg-type]  # of numpy arrays up to here

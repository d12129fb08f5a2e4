"""Log-likelihoods of continuations, for tasks that compare or sum them: many requests in one packed row.

A request is a context and a continuation. Its tokens are a document of a row, so no token attends to another request.
Only the tokens of the continuation are scored. A request that is longer than the model's context loses the beginning
of its own context.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from jaxtrain.data.packing import BestFit, Plan
from jaxtrain.data.source_rows import blank_row
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.nn.heads import Head
from jaxtrain.nn.param import merge
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.sharding import constrain
from jaxtrain.train.feed import Layout

TOKENS = 128  # of every row, whose logits exist at once


class Request(NamedTuple):
    """Ids of tokens, at least one of each."""

    context: Sequence[int]
    continuation: Sequence[int]


class Scored(NamedTuple):
    """The log-likelihood of a continuation after its context, in nats, and whether each token is the likeliest."""

    log_likelihood: float
    greedy: bool


type Step = Callable[[ModelState, Batch], tuple[Array, Array]]


def make_scoring_step(graph: nnx.GraphDef) -> Step:
    """Return the jitted step `(model, batch) -> (log-likelihood, whether it is the likeliest)` of every target."""

    def step(model: ModelState, batch: Batch) -> tuple[Array, Array]:
        decoder = merge(graph, model)
        return _of_targets(decoder.head, decoder.hidden(batch).y, batch.targets)

    return jax.jit(step)


def _of_targets(
    head: Head, x: Float[Array, "B L D"], targets: Int[Array, "B L"]
) -> tuple[Float[Array, "B L"], Bool[Array, "B L"]]:
    """Compute the logits of `TOKENS` tokens of all rows at a time. Every process gets all results."""
    L, size = x.shape[1], min(TOKENS, x.shape[1])

    def in_parts(array: Array) -> Array:
        padded = jnp.pad(array, [(0, 0), (0, -L % size)] + [(0, 0)] * (array.ndim - 2))
        return jnp.moveaxis(padded.reshape(len(array), -1, size, *array.shape[2:]), 1, 0)

    def of_part(part: tuple[Array, Array]) -> tuple[Array, Array]:
        logits = jax.nn.log_softmax(head.logits(part[0]))
        return jnp.take_along_axis(logits, part[1][..., None], -1)[..., 0], jnp.argmax(logits, -1) == part[1]

    results = jax.lax.map(of_part, (in_parts(x), in_parts(targets)))
    log_p, likeliest = (constrain(jnp.moveaxis(r, 0, 1).reshape(len(x), -1)[:, :L], None, None) for r in results)
    return log_p, likeliest


def score(
    step: Step,
    model: ModelState,
    requests: Sequence[Request],
    *,
    config: DecoderConfig,
    batch_size: int,
    sequence_length: int,
    mesh: Mesh,
    track: Callable[[Sequence[int]], Iterable[int]] = iter,
) -> list[Scored]:
    """Return the scores of all requests, in their order, from `step` on batches of packed rows.

    Rows have `sequence_length` tokens, or twice that, and so on, if a request is longer. `track` goes over the first
    rows of the batches, for a progress bar.

    Raises:
        ValueError: a request has no context or no continuation, or a continuation exceeds the model's context; the
            model is not causal, or its rotary embeddings depend on the length of the row.
    """
    documents = [_document(request, config.max_length) for request in requests]
    if not documents:
        return []
    lengths = np.array([len(document) - 1 for document in documents])
    row_length = _row_length(int(lengths.max()), sequence_length, config.max_length)
    _check_mixers(config, int(lengths.min()), row_length)
    plan = BestFit().plan(lengths, row_length=row_length, rng=np.random.default_rng(0))
    layout = Layout(batch_size, row_length, mesh)
    scores: dict[int, Scored] = {}
    with jax.set_mesh(mesh):
        for first in track(range(0, plan.rows, batch_size)):
            rows = [_row(plan, first + row, documents, row_length) for row in layout.rows]
            batch = jax.tree.map(lambda *leaves: np.stack(leaves), *rows)
            log_p, likeliest = map(np.asarray, step(model, layout.globalise(batch)))
            for row in range(min(batch_size, plan.rows - first)):
                scores |= _of_row(plan, first + row, requests, log_p[row], likeliest[row])
    return [scores[number] for number in range(len(requests))]


def truncated(requests: Iterable[Request], config: DecoderConfig) -> int:
    """Return how many requests lose tokens of their context."""
    return sum(len(context) + len(continuation) > config.max_length + 1 for context, continuation in requests)


def _document(request: Request, max_length: int) -> np.ndarray:
    """Return the tokens of a request, the last `max_length + 1` of them."""
    context, continuation = request
    if not len(context) or not len(continuation):
        raise ValueError(f"{request}: a context and a continuation have at least one token each")
    if len(continuation) > max_length:
        raise ValueError(f"a continuation of {len(continuation)} tokens: the model's max_length is {max_length}")
    return np.array([*context, *continuation], np.int32)[-(max_length + 1) :]


def _row_length(longest: int, sequence_length: int, max_length: int) -> int:
    length = sequence_length
    while length < longest:
        length *= 2
    return min(length, max_length)


def _check_mixers(config: DecoderConfig, shortest: int, row_length: int) -> None:
    """Raise ValueError where a request would not be computed as it is in a row of its own."""
    for block in config.named_blocks.values():
        if not block.mixer.causal:
            raise ValueError("a model that sees tokens ahead has no likelihood of a continuation: take a causal one")
        block.mlp.check_alone()
        try:
            block.mixer.check_decoding(shortest, row_length)
        except ValueError as error:
            raise ValueError(f"requests of {shortest} tokens in rows of {row_length}: {error}") from error


def _row(plan: Plan, index: int, documents: Sequence[np.ndarray], row_length: int) -> Batch:
    """Return a row of the plan without a batch axis, one of padding behind the last."""
    row = blank_row(row_length)
    if index >= plan.rows:
        return row
    at = 0
    for number, document in enumerate((documents[i] for i in plan.row(index)[0]), 1):
        place = slice(at, at := at + len(document) - 1)
        row.tokens[place], row.targets[place] = document[:-1], document[1:]
        row.segment_ids[place], row.positions[place] = number, np.arange(len(document) - 1)
        row.weights[place] = 1
    return row


def _of_row(
    plan: Plan, index: int, requests: Sequence[Request], log_p: np.ndarray, likeliest: np.ndarray
) -> dict[int, Scored]:
    """Return the scores of a row's requests. The targets of a continuation are the last of a request's."""
    numbers, _, lengths = plan.row(index)
    scores = {}
    for number, end in zip(numbers.tolist(), np.cumsum(lengths).tolist(), strict=True):
        place = slice(end - len(requests[number].continuation), end)
        scores[number] = Scored(float(log_p[place].sum(dtype=np.float64)), bool(likeliest[place].all()))
    return scores

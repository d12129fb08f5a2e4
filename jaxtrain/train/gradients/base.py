"""Gradient strategies: how the loss and gradient of one global batch are computed.

A strategy is a `value_and_grad`: `(loss, params, batch, keys) -> ((loss, Terms), gradient)`. The loss of a part of the
batch is divided by the denominators of the whole batch, so the contributions of parts add up to the mean, however the
batch is cut. The loss is a function of the parameters. It holds the graph of the model, for a strategy that runs parts
of the model by themselves.
"""

from abc import abstractmethod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.models.decoder import Decoder, DecoderConfig
from jaxtrain.nn.layer import Keys, Out, added
from jaxtrain.nn.layer import Sums as LayerSums
from jaxtrain.nn.param import merge
from jaxtrain.objectives.base import Model, Objective, Sums, Terms, check_terms, means
from jaxtrain.shapes import Batch, ModelState, ParamTree
from jaxtrain.sharding import constrain
from jaxtrain.technique import Technique

Value = tuple[Float[Array, ""], Terms]


class Loss(NamedTuple):
    """The mean of an objective as a function of parameters.

    `weights` are the denominators of the objective's terms, `real_tokens` that of the layers' terms: both are those of
    the whole batch.
    """

    graph: nnx.GraphDef
    objective: Objective
    weights: Sums
    real_tokens: Float[Array, ""]
    frozen: ParamTree
    buffers: ParamTree

    @classmethod
    def of_batch(cls, graph: nnx.GraphDef, objective: Objective, model: ModelState, batch: Batch) -> "Loss":
        """Return the loss of a global batch, with the denominators of the batch."""
        return cls(graph, objective, objective.weights(batch), real_tokens(batch), model.frozen, model.buffers)

    def __call__(self, params: ParamTree, batch: Batch, keys: Keys | None) -> Value:
        """Return what the rows of a batch contribute to the loss, and the sums of the terms."""
        return self.of_model(self.model(params), batch, keys)

    def model(self, params: ParamTree) -> Decoder:
        return merge(self.graph, ModelState(params, self.frozen, self.buffers))

    def of_model(self, model: Model, batch: Batch, keys: Keys | None) -> Value:
        recorded = _RecordingModel(model)
        terms = self.objective(recorded, batch, keys)._replace(layers=added(*recorded.sums))
        check_terms(self.objective, terms, self.weights)
        value = sum(means(terms.minimised, self.weights).values()) + self.of_layers(terms.layers)
        return jnp.asarray(value), terms

    def of_layers(self, sums: LayerSums) -> Float[Array, ""] | int:
        """Return what the terms of layers contribute to the loss."""
        return sum(self.layer_means(sums).values())

    def layer_means(self, sums: LayerSums) -> Sums:
        return {name: term / jnp.maximum(self.real_tokens, 1.0) for name, term in sums.terms.items()}


class _RecordingModel:
    """The model that an objective gets. It records the sums of the layers that run, so that no objective loses them."""

    def __init__(self, model: Model):
        self._model = model
        self.sums: list[LayerSums] = []

    def __call__(self, batch: Batch, keys: Keys | None = None) -> Float[Array, "B L W"]:
        return self.head.logits(self.hidden(batch, keys).y)

    def hidden(self, *arguments, **options) -> Out:
        out = self._model.hidden(*arguments, **options)
        self.sums.append(out.sums)
        return out

    def __getattr__(self, name: str):
        return getattr(self._model, name)


def real_tokens(batch: Batch) -> Float[Array, ""]:
    """Return the number of tokens of a batch that are not padding."""
    return jnp.sum(batch.segment_ids != 0, dtype=jnp.float32)


class Strategy(Technique):
    """How the gradient of a global batch is computed. A subclass has the field `microbatches`."""

    __slots__ = ()
    microbatches: int  # into which the rows of a device are cut

    @abstractmethod
    def __call__(self, loss: Loss, params: ParamTree, batch: Batch, keys: Keys | None) -> tuple[Value, ParamTree]:
        """Return ((loss, sums of its terms), gradient) of a batch, as `jax.value_and_grad` does."""

    def check(self, stages: int, model: DecoderConfig) -> None:
        """Raise ValueError if this many pipeline stages cannot run the model. Without a pipeline there is one stage."""
        if stages > 1:
            raise ValueError(
                f"mesh.stage={stages} needs a pipeline: set gradients to Pipelined(microbatches=...), "
                f"or leave mesh.stage at 1"
            )


def deal_out(tree, microbatches: int):
    """Cut the rows of a batch into microbatches: microbatch a of A takes rows a, a+A, ..., as `[A, B/A, ...]`.

    So each device keeps the rows that it has. The key of the step has no rows and goes to every microbatch.
    """

    def deal(x: Array) -> Array:
        if x.ndim == 0:
            return jnp.broadcast_to(x, microbatches)
        rows = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
        return constrain(rows, None, "batch", *(None,) * (x.ndim - 1)) if rows.ndim >= 3 else rows

    return jax.tree.map(deal, tree)

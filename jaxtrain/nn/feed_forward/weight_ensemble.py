"""The weight-ensembling mixture: Tang et al. (2024), arXiv:2402.00433.

A layer whose weights are mixed for each input: those of a base, and the task vectors of models that were tuned from it.
The child of `surgery/merging/weight_ensemble.py` has such layers. Deviations: the paper's router is an MLP, whose
outputs for all tokens of an input are averaged. Here it is linear and begins with a kernel of zeros, so that the layer
begins as task arithmetic. The mean is over the tokens of a document up to the present one, since a language model must
not read later ones.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.feed_forward.base import FeedForwardConfig
from jaxtrain.nn.layer import Layer, Out, TokenContext
from jaxtrain.nn.linear.base import Linear
from jaxtrain.nn.linear.of_layer import linears_of, outside_of, put
from jaxtrain.nn.param import constant, is_variable, merge, split
from jaxtrain.ranges import check_at_least_one
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightEnsembleConfig(FeedForwardConfig):
    """The layer `base` with the weights W0 + sum_i lambda_i(x) tau_i, where tau_i is the vector of task i.

    lambda is a linear function, the router, of the mean of what a document's tokens read so far. It begins as
    `coefficient`, the same for all inputs.
    """

    base: FeedForwardConfig
    tasks: int
    coefficient: float = 0.3
    paper: ClassVar[str] = "arXiv:2402.00433"
    neutral: ClassVar[tuple[str, ...]] = ("coefficient",)

    def __post_init__(self):
        check_at_least_one(self, "tasks")

    def check_decoding(self) -> None:
        raise ValueError(
            f"mlp={type(self).__name__}(...): a token's weights depend on the mean of all before it, which no cache "
            "keeps, so the model cannot generate; merge with Assembly for a model that does"
        )

    def build(self, d_model: int, *, rngs: nnx.Rngs) -> "WeightEnsemble":
        return WeightEnsemble(self, d_model, rngs=rngs)


class WeightEnsemble(Layer):
    def __init__(self, config: WeightEnsembleConfig, d_model: int, *, rngs: nnx.Rngs):
        self.base = config.base.build(d_model, rngs=rngs)
        if (name := outside_of(linears_of(self.base), self.base)) is not None:
            raise ValueError(
                f"base={config.base!r}: {name} is in none of its linears, whose weights alone are mixed; "
                "take MLPConfig or GatedMLPConfig"
            )
        self.tasks = nnx.List([_zero(config.base.build(d_model, rngs=rngs)) for _ in range(config.tasks)])
        facts = Axes(("embed", None), Kind.MATRIX, cast=False)
        self.router = nnx.Param(jnp.zeros((d_model, config.tasks)), axes=facts)
        self.router_bias = constant(config.coefficient, (config.tasks,), (None,))

    def __call__(self, x: Float[Array, "B L D"], context: TokenContext) -> Out:
        of_token = x.astype(jnp.float32) @ self.router[...] + self.router_bias[...][None, None]
        of_task = jnp.moveaxis(mean_so_far(of_token, context.segment_ids), -1, 0)
        layer = merge(*split(self.base))  # a copy, whose linears are replaced
        tasks = [linears_of(task) for task in self.tasks]
        for path, linear in linears_of(layer).items():
            put(layer, path, _Mixed(linear, [task[path] for task in tasks], of_task))
        return layer(x, context)


class _Mixed(nnx.Module):
    """A linear whose matrix and bias are sums, with weights of the tasks for each token."""

    def __init__(self, base: Linear, tasks: list[Linear], weights: Float[Array, "T B L"]):
        self.base, self.tasks, self.weights = base, nnx.List(tasks), nnx.data(weights)

    def __call__(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        y = self.base(x)
        for task, weight_BL in zip(self.tasks, self.weights, strict=True):
            y = y + task(x) * jnp.expand_dims(weight_BL, range(2, y.ndim)).astype(x.dtype)
        return y


def mean_so_far(x: Float[Array, "B L T"], segment_ids: Int[Array, "B L"]) -> Float[Array, "B L T"]:
    """Return the mean of each document's tokens up to each of them. What is before the document has no part in it."""
    x, segment_ids = constrain(x, "batch", None, None), constrain(segment_ids, "batch", None)
    begins_BL = segment_ids != jnp.pad(segment_ids, ((0, 0), (1, 0)), constant_values=-1)[:, :-1]

    def add(left, right):
        """Add two spans of tokens, of which the right one may begin a document."""
        (before, restarts_before), (here, restarts) = left, right
        return jnp.where(restarts, here, before + here), restarts_before | restarts

    terms = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    sums, _ = jax.lax.associative_scan(add, (terms, begins_BL[..., None]), axis=1)
    return constrain(sums[..., :-1] / sums[..., -1:], "batch", "length", None)


def _zero(layer: Layer) -> Layer:
    """Return the layer with zeros for all its weights."""
    for variable in jax.tree.leaves(nnx.state(layer), is_leaf=is_variable):
        variable[...] = jnp.zeros_like(variable[...])
    return layer

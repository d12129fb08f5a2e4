"""The train step: one jitted, donated function from (state, batch) to (state, metrics)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Key

from jaxtrain.nn.layer import Keys
from jaxtrain.nn.layer import Sums as LayerSums
from jaxtrain.nn.param import merge
from jaxtrain.objectives.base import Objective, Sums, Terms, check_terms, means
from jaxtrain.shapes import Batch, ModelState, ParamTree
from jaxtrain.sharding import on_one_cpu
from jaxtrain.train.gradients import Loss, Strategy, Value
from jaxtrain.train.state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]


_STEP = np.uint32(2**32 - 1)  # no row has this number


def step_keys(key: Key[Array, ""], rows: int) -> Keys:
    """Return a key for each row of the global batch, whatever the mesh and the microbatches, and one for all rows."""
    by_row = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
    return Keys(by_row, jax.random.fold_in(key, _STEP))


def make_train_step(
    graph: nnx.GraphDef,
    objective: Objective,
    gradients: Strategy,
    tx: optax.GradientTransformation,
    used_rate: Callable[[optax.OptState], Array],
) -> TrainStep:
    """Return the step, to be jitted with the state donated.

    `used_rate` reads the learning rate of an update from the state of the optimizer behind it. A step whose loss or
    gradient is not finite leaves the model and the optimizer as they were and is counted. That holds for every gradient
    that the optimizer takes.
    """
    tx = optax.with_extra_args_support(tx)

    def train_step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        keys = step_keys(jax.random.fold_in(key, state.step), batch.tokens.shape[0])
        batch = objective.prepared(merge(graph, state.model), batch)
        mean = Loss.of_batch(graph, objective, state.model, batch)
        (loss, terms), gradient = gradients(mean, state.params, batch, keys)
        norm = optax.tree.norm(gradient)

        old_params, old_state = _after(gradient, (state.params, state.opt_state))
        again = _GradientAgain(lambda params: gradients(mean, params, batch, keys))
        updates, opt_state = tx.update(gradient, old_state, old_params, value=loss, grad_fn=again)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm) & again.finite
        rate = used_rate(opt_state)
        params = optax.apply_updates(old_params, updates)
        buffers = updated_buffers(graph, state.model._replace(params=params), terms.layers.counts)
        params, opt_state, buffers = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old),
            (params, opt_state, buffers),
            (old_params, old_state, state.model.buffers),
        )
        of_step = {
            "loss": loss,
            "gradient_norm": norm,
            "learning_rate": rate,
            "weight": mean.weights[objective.evaluated],
            "skipped_in_a_row": jnp.where(finite, 0, state.skipped_in_a_row + 1),
        }
        of_objective = means(terms.minimised | terms.reported, mean.weights)
        of_layers = merge(graph, state.model).reported(terms.layers.counts)
        metrics = _merged(of_step, of_objective, mean.layer_means(terms.layers), of_layers)
        skipped = state.skipped + jnp.where(finite, 0, 1)
        model = ModelState(params, state.model.frozen, buffers)
        return TrainState(model, opt_state, state.step + 1, skipped, metrics["skipped_in_a_row"]), metrics

    return train_step


class _GradientAgain:
    """What optimizers call `grad_fn`: the gradient at other parameters, on the same batch with the same noise.

    `finite` says whether all it has returned was finite. It is a value of the step's own trace, so JAX refuses calls
    from within a loop or a branch.
    """

    def __init__(self, value_and_grad: Callable[[ParamTree], tuple[Value, ParamTree]]):
        self._value_and_grad = value_and_grad
        self.finite: Bool[Array, ""] | bool = True

    def __call__(self, params: ParamTree, call: int = 0) -> ParamTree:
        """Return the gradient. `call` is optax's number of the call, for those who would change the batch."""
        (loss, _), gradient = self._value_and_grad(params)
        self.finite &= jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
        return gradient


def _merged(*parts: Metrics) -> Metrics:
    """Return all numbers in one dict. Raises ValueError if two have the same name."""
    metrics: Metrics = {}
    for part in parts:
        if shared := metrics.keys() & part.keys():
            raise ValueError(f"two numbers of a step are called {min(shared)!r}: give the term a name of its own")
        metrics |= part
    return metrics


def _after(dependency, value):
    """Return `value`, ordered after `dependency` by an optimization barrier.

    Without it XLA for TPU copies parameters and moments, before the layers run, to the layout in which the optimizer
    reads them, and keeps the copies until then. XLA for CPU has one layout, and copies what a barrier returns.
    """
    return value if on_one_cpu() else jax.lax.optimization_barrier((dependency, value))[1]


def updated_buffers(graph: nnx.GraphDef, model: ModelState, counts: Mapping[str, Any]) -> ParamTree:
    """Return the buffers of the next step, from the counts and the new parameters of this one."""
    return merge(graph, model).updated_buffers(counts) if model.buffers else {}


def make_evaluation_step(
    graph: nnx.GraphDef, objective: Objective
) -> Callable[[ModelState, Batch], tuple[Terms, Sums]]:
    """Return the jitted evaluation step, `(model, batch) -> (terms, weights)`. Both are sums. There is no noise."""

    def evaluate(model, batch):
        terms, weights = objective.evaluation(merge(graph, model), batch), objective.weights(batch)
        check_terms(objective, terms, weights)
        return terms._replace(layers=LayerSums()), weights

    return jax.jit(evaluate)

"""The train step: one jitted, donated function from (state, batch) to (state, metrics)."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Key

from jaxtrain.objectives.base import Objective, Sums, Terms, means
from jaxtrain.shapes import Batch
from jaxtrain.train.gradients import Loss, Strategy
from jaxtrain.train.state import TrainState

Metrics = dict[str, Array]
TrainStep = Callable[[TrainState, Batch, Key[Array, ""]], tuple[TrainState, Metrics]]


def example_keys(key: Key[Array, ""], rows: int) -> Key[Array, " B"]:
    """Return one dropout key a row of the global batch, the same however the rows are spread or cut."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))


def make_train_step(
    graph: nnx.GraphDef,
    objective: Objective,
    gradients: Strategy,
    tx: optax.GradientTransformation,
    learning_rate: optax.Schedule,
    *,
    dropout: bool,
) -> TrainStep:
    """Return the step, to be jitted with the state donated.

    A step whose loss or gradient is not finite leaves parameters and optimizer as they were and is counted.
    """

    def train_step(state: TrainState, batch: Batch, key: Key[Array, ""]) -> tuple[TrainState, Metrics]:
        keys = example_keys(jax.random.fold_in(key, state.step), batch.tokens.shape[0]) if dropout else None
        weights = objective.weights(batch)
        (loss, terms), gradient = gradients(Loss(graph, objective, weights), state.params, batch, keys)
        norm = optax.tree.norm(gradient)

        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        old_params, old_state = _behind(gradient, (state.params, state.opt_state))
        updates, opt_state = tx.update(gradient, old_state, old_params)
        params = optax.apply_updates(old_params, updates)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (old_params, old_state)
        )
        metrics = {
            "loss": loss,
            **means(terms.minimised | terms.reported, weights),
            "gradient_norm": norm,
            "learning_rate": learning_rate(state.updates),
            "weight": weights[objective.evaluated],
            "skipped_in_a_row": jnp.where(finite, 0, state.skipped_in_a_row + 1),
        }
        skipped = state.skipped + jnp.where(finite, 0, 1)
        return TrainState(params, opt_state, state.step + 1, skipped, metrics["skipped_in_a_row"]), metrics

    return train_step


def _behind(first, then):
    """Return `then` so that nothing is done with it before `first` is there.

    Left alone, XLA for TPU brings parameters and moments into the layout in which the optimizer reads them before the
    layers run, and keeps the copies all the while.
    """
    return jax.lax.optimization_barrier((first, then))[1]


def make_evaluation_step(graph: nnx.GraphDef, objective: Objective) -> Callable[[dict, Batch], tuple[Terms, Sums]]:
    """Return the jitted `(params, batch) -> (terms, weights)` of an evaluation, sums both: no dropout."""

    def evaluate(params, batch):
        return objective(nnx.merge(graph, params), batch, None), objective.weights(batch)

    return jax.jit(evaluate)

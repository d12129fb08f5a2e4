"""What an optimizer makes of a stack is what it makes of each of its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import ALL, LARGE_FACTS, ONE_RATE, build, draw_large, every, follow
from tolerances import EXACT, SAME_BATCHED_UPDATE, assert_close

from jaxtrain.axes import Axes
from jaxtrain.optim.adamw_8bit import AdamW8bit
from jaxtrain.optim.gradient_noise import GradientNoise
from jaxtrain.optim.moments.float8 import Float8Moments
from jaxtrain.optim.muon import Muon
from jaxtrain.optim.per_layer import per_layer

VARIANTS = [AdamW8bit(learning_rate=ALL[0].learning_rate, moments=Float8Moments())]
BATCHED = (Muon,)  # products of matrices, which are batched over the stack


def _alone(tree: dict, index: int) -> dict:
    """Return stacks of one layer, that of the index or the last, which has one expert, that of the index."""

    def one(axes: Axes, x: jax.Array) -> jax.Array:
        x = x[min(index, len(x) - 1)][None] if axes.in_stack else x
        return x[:, index : index + 1] if "experts" in axes.names else x

    return jax.tree.map(one, LARGE_FACTS, tree)


APART = [optimizer for optimizer in ALL + VARIANTS if not isinstance(optimizer, (*ONE_RATE, GradientNoise))]


@every(APART)  # without those that join parameters by one rate, and without noise, which each element has of its own
def test_every_optimizer_moves_the_layers_of_a_stack_and_their_experts_as_each_alone(optimizer):
    tx, params, gradients = build(optimizer, axes=LARGE_FACTS), draw_large(0), [draw_large(seed) for seed in (1, 2, 3)]

    def averages(state, params):
        return optimizer.evaluation_params(state, params)

    stacked = follow(tx, params, gradients, averages)
    tolerance = SAME_BATCHED_UPDATE if isinstance(optimizer, BATCHED) else EXACT
    for index in range(3):
        alone = follow(tx, _alone(params, index), [_alone(gradient, index) for gradient in gradients], averages)
        for step in range(3):
            assert_close(_alone(stacked[step], index), alone[step], tolerance, f"layer {index}, step {step}")


def test_a_transformation_that_takes_norms_takes_those_of_a_layer():
    params, gradients = draw_large(0), [draw_large(1)]
    tx = optax.chain(optax.scale_by_trust_ratio(), optax.scale(-1.0))
    [plain] = follow(tx, params, gradients, lambda state, params: params)
    [layered] = follow(per_layer(tx, LARGE_FACTS), params, gradients, lambda state, params: params)
    for index in range(3):
        flat = jax.tree.map(lambda x: x[0] if len(x) == 1 else x, _alone(params, index))
        gradient = jax.tree.map(lambda x: x[0] if len(x) == 1 else x, _alone(gradients[0], index))
        [alone] = follow(tx, flat, [gradient], lambda state, params: params)
        seen = jax.tree.map(lambda x: x[0] if len(x) == 1 else x, _alone(layered, index))
        assert_close(seen, alone, EXACT, f"layer {index}")
    assert not np.allclose(plain["decoder"]["up"], layered["decoder"]["up"])


def test_the_state_has_the_structure_of_the_transformation_with_one_count():
    tx, params = optax.chain(optax.scale_by_adam(), optax.scale_by_schedule(lambda count: 0.1 * count)), draw_large(0)
    plain, layered = tx.init(params), per_layer(tx, LARGE_FACTS).init(params)
    assert_close(layered, plain, EXACT)
    [(counts, moments)] = follow(
        per_layer(tx, LARGE_FACTS),
        params,
        [draw_large(1)],
        lambda state, params: ((state[0].count, state[1].count), state[0].mu),
    )
    assert [(count.shape, int(count)) for count in counts] == 2 * [((), 1)]
    assert jax.tree.map(jnp.shape, moments) == jax.tree.map(jnp.shape, params)


def test_a_transformation_of_all_parameters_together_is_none_of_layers():
    with pytest.raises(ValueError, match="vmap"):
        follow(
            per_layer(optax.clip_by_global_norm(1.0), LARGE_FACTS), draw_large(0), [draw_large(1)], lambda *seen: seen
        )

"""LAMB against optax's on each layer, and its promise: a step is as long as the rate times the norm of the weights."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optimizer_cases import FACTS, RATE, RATES, SHAPES, build, draw_tree, follow
from tiny import random_params, variant
from tolerances import CLOSED_FORM_LAYER, SAME_UPDATE, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.lamb import LAMB
from jaxtrain.sharding import shardings

MATRICES = [name for name, facts in FACTS.items() if facts.decays]
WIDE = variant(d_model=64)


def _update(optimizer: LAMB, scale: float = 1.0) -> dict:
    tx, params = build(optimizer), draw_tree(0)
    gradient = jax.tree.map(lambda g: scale * g, draw_tree(1))
    return tx.update(gradient, tx.init(params), params)[0]


def test_a_layer_moves_as_it_does_by_optax_alone():
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in range(1, 6)]
    seen = follow(build(LAMB(learning_rate=RATES, weight_decay=0.3)), params, gradients, lambda _, params: params)
    alone = optax.lamb(RATE, b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.3)
    for name in MATRICES:
        for layer in range(SHAPES[name][0]):
            own = [{name: gradient[name][layer]} for gradient in gradients]
            desired = follow(alone, {name: params[name][layer]}, own, lambda _, params: params)
            for step, tree in enumerate(seen):
                assert_close(tree[name][layer], desired[step][name], CLOSED_FORM_LAYER, f"{name} {layer}, step {step}")


def test_a_vector_takes_the_step_of_adam():
    vectors = {name: facts for name, facts in FACTS.items() if not facts.decays}
    own, adam = (
        follow(
            tx, draw_tree(0), [draw_tree(1), draw_tree(2)], lambda _, params: {name: params[name] for name in vectors}
        )
        for tx in (build(LAMB(learning_rate=RATES)), optax.adam(RATE, b2=0.999, eps=1e-6))
    )
    assert_close(own, adam, CLOSED_FORM_LAYER)


def _norms(tree: dict, axes: dict) -> dict:
    """Return the norm of every matrix of every layer."""

    def norm(facts, x):
        return jnp.sqrt(jnp.sum(jnp.square(x), axis=tuple(range(facts.in_stack, x.ndim)))) if facts.decays else 0.0

    return jax.tree.map(norm, axes, tree)


@pytest.mark.parametrize(
    "mesh", [MeshConfig(fsdp=1, data=1), MeshConfig(fsdp=2, tensor=2, data=2)], ids=["whole", "sharded"]
)
def test_the_norm_of_an_update_is_the_rate_times_that_of_the_weights(mesh):
    _, (shapes, *_), (axes, *_) = abstract_model(WIDE)
    devices = jax.devices()[:1] if mesh.data == 1 else None
    layout = shardings(axes, shapes, built := mesh.build(devices))
    params, gradient = (jax.device_put(random_params(WIDE, seed), layout) for seed in range(2))
    tx = LAMB(learning_rate=RATES).build(RATES.build(1), axes)
    with jax.set_mesh(built):
        updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    desired = jax.tree.map(lambda norm: np.float32(RATE) * norm, _norms(params, axes))
    assert_close(_norms(updates, axes), desired, SAME_UPDATE)


def test_a_thousand_times_the_gradient_makes_the_same_update():
    optimizer = LAMB(learning_rate=RATES, epsilon=1e-30)
    plain, scaled = _update(optimizer), _update(optimizer, scale=1000.0)
    assert_close(scaled, plain, SAME_UPDATE)


def test_a_matrix_of_zeros_leaves_zero():
    tx, params = build(LAMB(learning_rate=RATES)), jax.tree.map(np.zeros_like, draw_tree(0))
    updates, _ = tx.update(draw_tree(1), tx.init(params), params)
    assert all(np.abs(updates[name]).min() > 0 for name in MATRICES)

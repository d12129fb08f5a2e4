"""Noise on gradients: how large, the same anywhere, and none of variance 0."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from messages import refused
from optimizer_cases import DECAY, RATES, build, draw_tree, follow
from tiny import matrix
from tolerances import EXACT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.gradient_noise import GradientNoise, GradientNoiseState
from jaxtrain.optim.sam import SAM

ADAMW = AdamW(learning_rate=RATES, weight_decay=DECAY)


class _Follower(AdamW):
    """Moves by the gradient itself."""

    def build(self, rate, axes):
        return optax.identity()


@pytest.mark.parametrize(("step", "deviation"), [(0, 0.5477), (100, 0.1540), (10_000, 0.0435)])
def test_its_deviation_is_that_of_the_paper(step, deviation):
    """Of 200,000 numbers, whose own deviation is within 0.5% of it with a chance of 0.998."""
    tx = build(GradientNoise(optimizer=_Follower(learning_rate=RATES)), axes={"w": matrix("embed", "mlp")})
    zeros = {"w": jnp.zeros((400, 500))}
    state = tx.init(zeros)._replace(drawn=jnp.int32(step))
    noise, _ = tx.update(zeros, state, zeros)
    assert float(jnp.std(noise["w"])) == pytest.approx(deviation, rel=5e-3)
    assert abs(float(jnp.mean(noise["w"]))) < 4 * deviation / 200_000**0.5


def test_every_step_parameter_and_seed_has_noise_of_its_own():
    zeros = jax.tree.map(np.zeros_like, draw_tree(0))

    def noises(seed: int) -> list[dict]:
        tx = build(GradientNoise(optimizer=_Follower(learning_rate=RATES), eta=1.0, gamma=0.0, seed=seed))
        first, state = tx.update(zeros, tx.init(zeros), zeros)
        return [first, tx.update(zeros, state, zeros)[0]]

    drawn = [noise[name][:, :2].ravel() for seed in (0, 1) for noise in noises(seed) for name in ("up", "scale")]
    assert len({tuple(map(float, row[:4])) for row in drawn}) == len(drawn)


def test_shards_draw_the_bits_of_the_whole():
    tx, zeros = build(GradientNoise(optimizer=_Follower(learning_rate=RATES))), {"w": jnp.zeros((16, 24))}
    mesh = MeshConfig(fsdp=4, tensor=2).build()
    whole, _ = jax.jit(tx.update)(zeros, tx.init(zeros))
    split = jax.NamedSharding(mesh, jax.P("fsdp", "tensor"))
    sharded, _ = jax.jit(tx.update, out_shardings=({"w": split}, None))(jax.device_put(zeros, split), tx.init(zeros))
    assert sharded["w"].sharding == split
    assert_close(sharded, whole, EXACT)


def test_without_variance_it_is_the_optimizer():
    params, gradients = draw_tree(0), [draw_tree(1), draw_tree(2)]
    seen, own = (
        follow(build(tx), params, gradients, lambda _, w: w) for tx in (GradientNoise(optimizer=ADAMW, eta=0.0), ADAMW)
    )
    assert_close(seen, own, EXACT)


def test_a_restart_goes_on_with_the_noise():
    tx, params = build(GradientNoise(optimizer=ADAMW)), draw_tree(0)
    _, state = tx.update(draw_tree(1), tx.init(params), params)
    again = GradientNoiseState(*jax.tree.map(np.asarray, tuple(state)))
    assert_close(tx.update(draw_tree(2), again, params), tx.update(draw_tree(2), state, params), EXACT)


def test_it_goes_inside_of_what_takes_other_gradients():
    with refused(ValueError, "optimizer=SAM", "SAM(optimizer=GradientNoise(...))"):
        GradientNoise(optimizer=SAM(optimizer=ADAMW))

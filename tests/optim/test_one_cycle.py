"""1cycle is optax's curve, with the momentum as its mirror image, which optimizers follow from step to step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from messages import refused
from optimizer_cases import FACTS, draw_tree
from tolerances import CLOSED_FORM, SCHEDULE, assert_close

from jaxtrain.optim.adafactor import Adafactor
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import transformation, used_rate
from jaxtrain.optim.cautious import Cautious
from jaxtrain.optim.lamb import LAMB
from jaxtrain.optim.lion import Lion
from jaxtrain.optim.muon import Muon
from jaxtrain.optim.schedules import Cosine, OneCycle
from jaxtrain.train.phases import Phase, momentum, spans

TOTAL = 100
CYCLE = OneCycle(peak=0.5, warmup_steps=30, final_steps=15)


def test_the_rate_is_that_of_optax_at_all_steps():
    steps = jnp.arange(TOTAL + 20)
    ours = jax.vmap(CYCLE.build(TOTAL))(steps)
    theirs = jax.vmap(optax.linear_onecycle_schedule(TOTAL, 0.5, final_div_factor=1e4))(steps)
    np.testing.assert_allclose(ours, theirs, rtol=SCHEDULE.relative, atol=1e-7)
    assert float(ours[30]) == 0.5 == float(ours.max())
    assert float(ours[0]) == pytest.approx(0.02, rel=1e-6) == float(ours[85])


def test_the_momentum_is_the_mirror_image_of_the_rate_and_stays_high_in_the_last_part():
    steps = jnp.arange(TOTAL)
    rate, decay = (np.asarray(jax.vmap(of)(steps)) for of in (CYCLE.build(TOTAL), CYCLE.momentum(TOTAL)))
    mirrored = 0.95 - (0.95 - 0.85) * (rate - 0.02) / (0.5 - 0.02)
    np.testing.assert_allclose(decay[:86], mirrored[:86], rtol=1e-6)
    np.testing.assert_allclose(decay[86:], 0.95, rtol=1e-6)
    assert decay[30] == decay.min() == pytest.approx(0.85, rel=1e-6)


def test_adamw_follows_the_momentum_of_every_step():
    optimizer = AdamW(learning_rate=CYCLE, weight_decay=0.0)
    cycle = OneCycle(peak=0.5, warmup_steps=4, final_steps=2)
    rate, decay = cycle.build(10), cycle.momentum(10)
    params = {"up": jnp.asarray(draw_tree(0)["up"])}
    tx = transformation(optimizer, rate, {"up": FACTS["up"]}, clip_norm=None, momentum=decay)
    state, m, v, w = tx.init(params), 0.0, 0.0, np.float64(params["up"])
    for step in range(6):
        gradient = draw_tree(step + 1)["up"]
        updates, state = jax.jit(tx.update)({"up": jnp.asarray(gradient)}, state, params)
        params = optax.apply_updates(params, updates)
        b1 = float(decay(step))
        m, v = b1 * m + (1 - b1) * gradient, 0.95 * v + 0.05 * gradient**2
        w = w - float(rate(step)) * (m / (1 - b1 ** (step + 1))) / (np.sqrt(v / (1 - 0.95 ** (step + 1))) + 1e-8)
        assert float(used_rate(optimizer, rate)(state)) == float(rate(step))
    assert_close(params["up"], np.float32(w), CLOSED_FORM)


@pytest.mark.parametrize(
    "optimizer",
    [LAMB(learning_rate=CYCLE), Lion(learning_rate=CYCLE), Muon(learning_rate=CYCLE)]
    + [Cautious(optimizer=AdamW(learning_rate=CYCLE))],
    ids=lambda optimizer: type(optimizer).__name__,
)
def test_an_optimizer_whose_momentum_is_given_is_the_one_with_that_momentum(optimizer):
    """With a momentum that never changes it is the optimizer that has it as its own, and with another one it is not."""

    def after(decay, optimizer):
        rate = optax.constant_schedule(0.1)
        tx = transformation(optimizer, rate, FACTS, clip_norm=None, momentum=decay)
        params = draw_tree(0)
        state = tx.init(params)
        for seed in (1, 2):
            updates, state = tx.update(draw_tree(seed), state, params)
            params = optax.apply_updates(params, updates)
        return params

    own = after(None, optimizer)
    value = 0.95 if isinstance(optimizer, Muon) else 0.9
    assert_close(after(optax.constant_schedule(value), optimizer), own, CLOSED_FORM)
    assert float(optax.tree.norm(optax.tree.sub(after(optax.constant_schedule(0.5), optimizer), own))) > 1e-3


def test_an_optimizer_without_momentum_is_refused():
    with refused(ValueError, "optimizer=Adafactor", "least_momentum"):
        Adafactor(learning_rate=CYCLE).with_momentum(jnp.zeros(()))


@pytest.mark.parametrize("value", [-0.1, 0.96])
def test_a_momentum_out_of_order_is_refused(value):
    with refused(ValueError, f"least_momentum={value}", "most_momentum=0.95"):
        OneCycle(peak=1.0, warmup_steps=1, final_steps=1, least_momentum=value)


def test_a_cycle_longer_than_the_run_is_refused():
    with refused(ValueError, "warmup_steps=30", "final_steps=15", 44):
        CYCLE.build(44)


def test_a_phase_counts_the_momentum_of_its_own_cycle_from_its_first_step():
    plain = Phase(steps=5, batch_size=1, sequence_length=1)
    own = Phase(steps=100, batch_size=1, sequence_length=1, learning_rate=CYCLE)
    first, second = spans((plain, own))
    assert momentum(first, Cosine(peak=1.0), (plain, own)) is None
    assert float(momentum(second, Cosine(peak=1.0), (plain, own))(35)) == pytest.approx(0.85, rel=1e-6)
    assert momentum(first, OneCycle(peak=1.0, warmup_steps=1, final_steps=1, least_momentum=None), (plain,)) is None

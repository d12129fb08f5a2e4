"""AdEMAMix against its formula, and how its slow average is ramped up."""

import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused
from optimizer_cases import RATE, RATES, build, draw_tree, follow
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.ademamix import AdEMAMix

RAMPED = AdEMAMix(learning_rate=RATES, b3=0.999, ramp_steps=4, weight_decay=0.0)


def _slow(step: int) -> tuple[float, float]:
    """Return alpha and b3 of a step, as in the paper: by b3 = exp(log b1 log b3 / ((1 - u) log b3 + u log b1))."""
    u, first, last = min(step / 4, 1.0), np.log(0.9), np.log(0.999)
    return 5.0 * u, np.exp(first * last / ((1 - u) * last + u * first))


@pytest.mark.parametrize(
    ("optimizer", "slow"),
    [(AdEMAMix(learning_rate=RATES, weight_decay=0.0), lambda step: (5.0, 0.9999)), (RAMPED, _slow)],
    ids=["constant", "ramped"],
)
def test_ademamix_is_its_formula(optimizer, slow):
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in range(1, 7)]
    *_, seen = follow(build(optimizer), params, gradients, lambda _, params: params)
    for name, x in params.items():
        x, m, old, v = np.float64(x), 0.0, 0.0, 0.0
        for t, gradient in enumerate(gradients, 1):
            g, (alpha, b3) = np.float64(gradient[name]), slow(t)
            m, old, v = 0.9 * m + 0.1 * g, b3 * old + (1 - b3) * g, 0.999 * v + 0.001 * g**2
            x = x - RATE * (m / (1 - 0.9**t) + alpha * old) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        assert_close(seen[name], x, CLOSED_FORM_LAYER, name)


def test_the_half_life_grows_by_equal_amounts():
    found = [float(-1 / jnp.log(RAMPED.slow_decay(jnp.int32(count)))) for count in range(5)]
    ends = -1 / np.log(0.9), -1 / np.log(0.999)
    assert found == pytest.approx([ends[0] + (ends[1] - ends[0]) * u for u in (0.25, 0.5, 0.75, 1.0, 1.0)], rel=1e-4)


def test_a_decay_without_a_half_life_is_refused():
    with refused(ValueError, "b1=0.0", "above 0"):
        AdEMAMix(learning_rate=RATES, b1=0.0)

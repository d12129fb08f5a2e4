"""Steps left out: which, and what stays as it was."""

import jax
import numpy as np
import pytest
from messages import refused
from optimizer_cases import FACTS, RATES, build, draw_tree
from tolerances import EXACT, assert_close

from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.base import transformation
from jaxtrain.optim.skip_spikes import SkipSpikes

ADAMW = AdamW(learning_rate=RATES)
UNIT = jax.tree.map(lambda g: g / np.sqrt(sum(np.sum(np.square(x)) for x in draw_tree(1).values())), draw_tree(1))


def _skipped(optimizer: SkipSpikes, losses: list[float], norms: list[float]) -> list[bool]:
    """Return which steps with these losses and norms of the gradient are left out."""
    tx, params = build(optimizer), draw_tree(0)
    step = jax.jit(lambda gradient, state, loss: tx.update(gradient, state, params, value=loss))
    state, found = tx.init(params), []
    for loss, norm in zip(losses, norms, strict=True):
        before = state
        updates, state = step(jax.tree.map(lambda g, n=norm: np.float32(n) * g, UNIT), state, np.float32(loss))
        moved = any(np.any(u) for u in jax.tree.leaves(updates))
        if not moved:
            assert_close(state.inner, before.inner, EXACT)
        assert int(state.left_out) == int(before.left_out) + (not moved)
        found.append(not moved)
    return found


def _by_definition(values: list[list[float]], window: int, deviations: float) -> list[bool]:
    found = []
    for step in range(len(values[0])):
        last = [np.float64(series[max(0, step - window) : step]) for series in values]
        outliers = [
            len(old) >= window // 2 and series[step] > old.mean() + deviations * old.std(ddof=1)
            for series, old in zip(values, last, strict=True)
        ]
        found.append(any(outliers))
    return found


def test_steps_are_those_of_the_definition_by_loss_or_by_norm():
    random = np.random.default_rng(0)
    losses, norms = (list(random.uniform(2.0, 3.0, 40)) for _ in range(2))
    losses[2] = losses[20] = 9.0  # before half a window, and behind it
    norms[30:] = 10 * [7.0]  # a level that lasts
    losses[33] = 1.0  # far below, which is no spike
    found = _skipped(SkipSpikes(optimizer=ADAMW, deviations=2.5, window=8), losses, norms)
    assert found == _by_definition([losses, norms], window=8, deviations=2.5)
    assert found[20] and found[30] and not found[2] and not found[33] and not found[39]


def test_the_norm_is_that_before_clipping():
    """Behind clipping all norms are alike, and none is a spike."""
    tx = transformation(SkipSpikes(optimizer=ADAMW, window=4), RATES.build(10), FACTS, clip_norm=0.1)
    params = draw_tree(0)
    step = jax.jit(lambda gradient, state: tx.update(gradient, state, params, value=np.float32(1.0)))
    state = tx.init(params)
    for norm in (1.0, 1.5, 1.2, 1.3, 90.0):
        _, state = step(jax.tree.map(lambda g, n=norm: np.float32(n) * g, UNIT), state)
    assert int(state[1].left_out) == 1


def test_a_window_that_has_no_deviation_is_refused():
    with refused(ValueError, "window=3", "at least 4"):
        SkipSpikes(optimizer=ADAMW, window=3)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_deviations_are_above_0(value):
    with pytest.raises(ValueError, match=f"deviations={value}: must be above 0"):
        SkipSpikes(optimizer=ADAMW, deviations=value)

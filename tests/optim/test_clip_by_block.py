"""Clipping of each parameter of each layer by itself."""

import jax
import numpy as np
import optax
from optimizer_cases import LARGE_FACTS, RATES, build, draw_large
from tolerances import CLOSED_FORM, EXACT, assert_close

from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.clip_by_block import ClipByBlock
from jaxtrain.optim.sam import SAM


class _Follower(AdamW):
    """Moves by the gradient itself."""

    def build(self, rate, axes):
        return optax.identity()


INNER = _Follower(learning_rate=RATES)


def _clipped(facts, g: np.ndarray) -> np.ndarray:
    rms = np.sqrt(np.mean(np.float64(g) ** 2, axis=tuple(range(facts.leading, g.ndim)), keepdims=True))
    return np.float32(g / np.maximum(1.0, rms / 0.5))


def test_layers_and_experts_are_clipped_apart():
    tx, gradient = build(ClipByBlock(optimizer=INNER, threshold=0.5), axes=LARGE_FACTS), draw_large(1)
    seen, _ = jax.jit(tx.update)(gradient, tx.init(gradient), gradient)
    assert_close(seen, jax.tree.map(_clipped, LARGE_FACTS, gradient), CLOSED_FORM)
    kept = [bool((seen["decoder"]["experts"][0, i] == gradient["decoder"]["experts"][0, i]).all()) for i in range(3)]
    assert kept == [True, True, False]


def test_gradients_that_the_optimizer_takes_are_clipped_too():
    sharp, gradient = SAM(optimizer=INNER, rho=0.1), draw_large(1)
    tx, inner = build(ClipByBlock(optimizer=sharp, threshold=0.5), axes=LARGE_FACTS), build(INNER, axes=LARGE_FACTS)
    seen, _ = tx.update(gradient, tx.init(gradient), gradient, grad_fn=lambda _: gradient)
    assert_close(seen, jax.tree.map(_clipped, LARGE_FACTS, gradient), CLOSED_FORM)
    assert_close(tx.init(gradient), inner.init(gradient), EXACT)

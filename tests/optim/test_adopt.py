"""ADOPT against its formula."""

import jax
import numpy as np
from optimizer_cases import RATE, RATES, build, draw_tree, follow
from tolerances import CLOSED_FORM_LAYER, EXACT, assert_close

from jaxtrain.optim.adopt import ADOPT


def test_adopt_is_its_formula():
    optimizer, params = ADOPT(learning_rate=RATES, b2=0.9, weight_decay=0.0), draw_tree(0)
    sizes = (1.0, 30.0, 1.0, 0.1)  # so that the second gradient is clipped
    gradients = [jax.tree.map(lambda g, size=size: size * g, draw_tree(i)) for i, size in enumerate(sizes, 1)]
    seen = follow(build(optimizer), params, gradients, lambda _, params: params)
    assert_close(seen[0], params, EXACT)
    for name, x in params.items():
        x, m = np.float64(x), 0.0
        first, *others = [np.float64(gradient[name]) for gradient in gradients]
        v = first**2
        for t, g in enumerate(others, 1):
            scaled = g / np.maximum(np.sqrt(v), 1e-6)
            m = 0.9 * m + 0.1 * np.clip(scaled, -(t**0.25), t**0.25)
            x, v = x - RATE * m, 0.9 * v + 0.1 * g**2
            assert_close(seen[t][name], x, CLOSED_FORM_LAYER, f"{name}, step {t}")

"""AdamW against its formula."""

import numpy as np
from optimizer_cases import DECAY, NAMES, RATE, RATES, build, draw_tree, follow
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.matrix import is_matrix


def test_adamw_is_its_formula():
    optimizer, params = AdamW(learning_rate=RATES, weight_decay=DECAY), draw_tree(0)
    gradients = [draw_tree(1), draw_tree(2)]
    *_, now = follow(build(optimizer), params, gradients, lambda state, params: params)
    for name, x in params.items():
        m = v = np.zeros_like(x, np.float64)
        x = x.astype(np.float64)
        for t, gradient in enumerate(gradients, 1):
            m = 0.9 * m + 0.1 * gradient[name]
            v = 0.95 * v + 0.05 * gradient[name].astype(np.float64) ** 2
            direction = (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.95**t)) + 1e-8)
            x = x - RATE * (direction + DECAY * is_matrix(NAMES[name]) * x)
        assert_close(now[name], x, CLOSED_FORM_LAYER, name)

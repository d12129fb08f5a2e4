"""Lion against its formula."""

import jax
import numpy as np
from optimizer_cases import RATE, RATES, build, draw_tree
from tolerances import EXACT, assert_close

from jaxtrain.optim.lion import Lion


def test_lion_steps_by_the_sign_of_the_interpolated_momentum():
    tx, params = build(Lion(learning_rate=RATES, weight_decay=0.0)), draw_tree(0)
    first, second = draw_tree(1), draw_tree(2)
    _, state = tx.update(first, tx.init(params), params)
    updates, _ = tx.update(second, state, params)
    desired = jax.tree.map(lambda a, b: -RATE * np.sign(0.9 * 0.01 * a + 0.1 * b).astype(np.float32), first, second)
    assert_close(updates, desired, EXACT)

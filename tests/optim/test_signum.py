"""Signum against its formula."""

import jax
import numpy as np
from optimizer_cases import RATE, RATES, build, draw_tree, follow
from tolerances import EXACT, assert_close

from jaxtrain.optim.signum import Signum


def test_signum_steps_by_the_sign_of_the_averaged_gradient():
    params, first, second = draw_tree(0), draw_tree(1), draw_tree(2)
    tx = build(Signum(learning_rate=RATES, weight_decay=0.0))
    *_, before, after = [params, *follow(tx, params, [first, second], lambda _, params: params)]
    signs = jax.tree.map(lambda a, b: np.sign(0.9 * 0.1 * a + 0.1 * b).astype(np.float32), first, second)
    assert_close(after, jax.tree.map(lambda w, sign: w - np.float32(RATE) * sign, before, signs), EXACT)

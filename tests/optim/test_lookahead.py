"""Lookahead against its algorithm, step by step."""

import jax
import numpy as np
import pytest
from messages import refused
from optimizer_cases import DECAY, RATES, build, draw_tree, follow
from tolerances import CLOSED_FORM, EXACT, assert_close

from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.lookahead import Lookahead
from jaxtrain.optim.schedule_free import ScheduleFree

ADAMW = AdamW(learning_rate=RATES, weight_decay=DECAY)


def test_slow_weights_go_half_of_the_way_of_every_three_steps():
    optimizer = Lookahead(optimizer=ADAMW, period=3, share=0.5)
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in range(1, 8)]
    tx, inner = build(optimizer), build(ADAMW)
    seen = follow(tx, params, gradients, lambda state, w: (w, optimizer.evaluation_params(state, w)))
    slow = fast = params
    state = inner.init(params)
    for step, gradient in enumerate(gradients, 1):
        updates, state = jax.jit(inner.update)(gradient, state, fast)
        fast = jax.tree.map(np.add, fast, updates)
        if step % 3 == 0:
            slow = fast = jax.tree.map(lambda s, w: s + np.float32(0.5) * (w - s), slow, fast)
        assert_close(seen[step - 1], (fast, slow), CLOSED_FORM, f"step {step}")


@pytest.mark.parametrize(("share", "period"), [(1.0, 2), (0.5, 100)], ids=["the whole way", "never back"])
def test_it_is_the_optimizer_where_it_never_goes_back(share, period):
    params, gradients = draw_tree(0), [draw_tree(seed) for seed in range(1, 5)]
    optimizer = Lookahead(optimizer=ADAMW, share=share, period=period)
    seen, own = (follow(build(tx), params, gradients, lambda _, w: w) for tx in (optimizer, ADAMW))
    assert_close(seen, own, CLOSED_FORM)


def test_with_a_share_of_0_nothing_is_evaluated_but_the_first_weights():
    optimizer, params = Lookahead(optimizer=ADAMW, share=0.0, period=1), draw_tree(0)
    seen = follow(build(optimizer), params, [draw_tree(1)], lambda state, w: optimizer.evaluation_params(state, w))
    assert_close(seen, [params], EXACT)


def test_what_averages_already_is_refused():
    with refused(ValueError, "optimizer=ScheduleFree", "Lookahead"):
        Lookahead(optimizer=ScheduleFree(learning_rate=RATES))

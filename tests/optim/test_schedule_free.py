"""Schedule-free AdamW against the package of its authors, and what it keeps."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from optimizer_cases import RATES, as_float32, build, draw_tree, follow, read_golden, steps_of
from tiny import matrix, size_of, vector
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.optim.schedule_free import ScheduleFree
from jaxtrain.optim.schedules import Constant

FACTS = {"matrix": matrix("embed", "mlp"), "vector": vector("width")}


@pytest.mark.parametrize(
    ("case", "decay"), [("plain", 0.0), ("decay", 0.3), ("warmup", 0.0), ("decay_and_warmup", 0.3)]
)
def test_points_and_averages_are_those_of_the_authors_package(case, decay):
    golden = read_golden(f"schedulefree/{case}.npz")
    rates = jnp.asarray(golden["rate"][""], jnp.float32)
    optimizer = ScheduleFree(learning_rate=RATES, weight_decay=decay)
    tx = optimizer.build(lambda count: rates[count], FACTS)
    gradients = [as_float32(step) for step in steps_of(golden["gradient"])]
    seen = follow(
        tx,
        as_float32(golden["initial"]),
        gradients,
        lambda state, params: {"point": params, "average": optimizer.evaluation_params(state, params)},
    )
    for kind in ("point", "average"):
        for step, desired in enumerate(steps_of(golden[kind])):
            assert_close(seen[step][kind], desired, CLOSED_FORM_LAYER, f"{kind} of step {step}")


def test_the_first_iterate_weighs_nothing_where_its_rate_is_zero():
    optimizer = ScheduleFree(learning_rate=Constant(peak=1.0, warmup_steps=2), weight_decay=0.0)
    tx, ones = optimizer.build(optimizer.learning_rate.build(10), {"w": vector("width")}), {"w": np.ones(1, np.float32)}
    averages = follow(tx, {"w": np.zeros(1, np.float32)}, 3 * [ones], optimizer.evaluation_params)
    assert [float(average["w"][0]) for average in averages] == pytest.approx([0.0, -0.5, -1.3], abs=1e-6)


def test_an_iterate_weighs_by_the_square_of_the_largest_rate_so_far():
    rates = jnp.array([1.0, 0.5, 2.0, 0.1])
    optimizer = ScheduleFree(learning_rate=RATES, weight_decay=0.0)
    tx = optimizer.build(lambda count: rates[count], {"w": vector("width")})
    gradients, largest = [{"w": np.full(1, g, np.float32)} for g in (1, -2, 3, 4)], np.array([1.0, 1.0, 2.0, 2.0])
    seen = follow(
        tx,
        {"w": np.zeros(1, np.float32)},
        gradients,
        lambda state, params: (state.z["w"], optimizer.evaluation_params(state, params)["w"]),
    )
    iterates = np.concatenate([z for z, _ in seen])
    assert seen[-1][1] == pytest.approx(np.average(iterates, weights=largest**2), abs=1e-6)


def test_the_gradient_is_taken_between_average_and_iterate():
    optimizer = ScheduleFree(learning_rate=RATES, weight_decay=0.0)
    tx, params = build(optimizer, axes=FACTS), draw_tree(0, {"matrix": (4, 3), "vector": (5,)})
    gradients = [draw_tree(seed, {"matrix": (4, 3), "vector": (5,)}) for seed in range(1, 6)]
    *_, (state, point) = follow(tx, params, gradients, lambda *seen: seen)
    average = optimizer.evaluation_params(state, point)
    between = jax.tree.map(lambda x, z: 0.9 * x + 0.1 * z, average, state.z)
    assert_close(point, between, CLOSED_FORM_LAYER)


def test_it_keeps_one_moment_and_one_iterate():
    params = draw_tree(0, {"matrix": (4, 3), "vector": (5,)})
    state = build(ScheduleFree(learning_rate=RATES), axes=FACTS).init(params)
    assert size_of(state) < 2 * size_of(params) + 10

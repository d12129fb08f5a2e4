"""Muon: whose momentum it has, which matrices it takes, and what becomes of their singular values."""

import jax
import numpy as np
import pytest
from optimizer_cases import RATE, RATES, as_float32, build, draw_tree, follow, read_golden, steps_of
from tiny import matrix, variant, vector
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.axes import Axes
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.muon import Muon, takes


@pytest.mark.parametrize(("case", "decay"), [("muon", 0.0), ("muon_decay", 0.3)])
def test_muon_takes_the_steps_of_torch(case, decay):
    golden = read_golden(f"torch/{case}.npz")
    tx = build(Muon(learning_rate=RATES, weight_decay=decay), rate=0.05, axes=_block(golden["initial"]))
    params = jax.tree.map(lambda x: x[None], as_float32(golden["initial"]))
    gradients = [jax.tree.map(lambda x: x[None], as_float32(step)) for step in steps_of(golden["gradient"])]
    seen = follow(tx, params, gradients, lambda state, params: jax.tree.map(lambda x: x[0], params))
    for step, (actual, desired) in enumerate(zip(seen, steps_of(golden["point"]), strict=True)):
        assert_close(actual, desired, CLOSED_FORM_LAYER, f"step {step}")


def _block(params: dict) -> dict:
    return dict.fromkeys(params, matrix("repeats", "embed", "mlp"))


def _as_matrices(x: np.ndarray, axes: Axes) -> np.ndarray:
    """Return [R, rows, columns]: the width on one side, everything else on the other."""
    moved = np.moveaxis(np.asarray(x), axes.names.index("embed"), 1)
    return moved.reshape(*moved.shape[:2], -1)


@pytest.mark.parametrize(
    ("axes", "shape"),
    [
        (matrix("repeats", "embed", "heads", "head_dim"), (3, 32, 4, 6)),
        (matrix("repeats", "heads", "head_dim", "embed"), (3, 4, 6, 32)),
        (matrix("repeats", "embed", "mlp"), (3, 32, 48)),
    ],
)
def test_muon_orthogonalises_each_layers_matrix_as_a_whole(axes, shape):
    gradient = {"w": np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
    params = jax.tree.map(np.zeros_like, gradient)
    tx = build(Muon(learning_rate=RATES, weight_decay=0.0), axes={"w": axes})
    updates, _ = jax.jit(tx.update)(gradient, tx.init(params), params)
    matrices = _as_matrices(updates["w"], axes) / (
        -RATE * 0.2 * max(_as_matrices(gradient["w"], axes).shape[1:]) ** 0.5
    )
    singular = np.linalg.svd(matrices, compute_uv=False)
    assert singular.min() > 0.6 and singular.max() < 1.3, singular
    assert np.linalg.cond(_as_matrices(gradient["w"], axes)).min() > 3  # the gradient was far from that


def test_muon_takes_the_matrices_of_blocks_and_leaves_the_rest_to_adam():
    _, _, (axes, *_) = abstract_model(variant())
    taken = jax.tree.map(takes, axes)
    block = taken["stacks"]["blocks"]["blocks"][0]
    assert all(block["mixer"].values()) and all(block["mlp"].values())
    assert not taken["embedding"]["table"] and not taken["output"]["kernel"]
    assert not block["mixer_norm"]["scale"]


def test_the_rest_is_adam_without_decay():
    axes, shapes = {"table": matrix("vocab", "embed"), "scale": vector("width")}, {"table": (9, 6), "scale": (6,)}
    params, gradients = draw_tree(0, shapes), [draw_tree(seed, shapes) for seed in (1, 2, 3)]
    muon = build(Muon(learning_rate=RATES, weight_decay=0.5), axes=axes)
    adam = build(AdamW(learning_rate=RATES, weight_decay=0.0), axes=axes)
    ends = [follow(tx, params, gradients, lambda state, params: params)[-1] for tx in (muon, adam)]
    assert_close(*ends, CLOSED_FORM_LAYER)

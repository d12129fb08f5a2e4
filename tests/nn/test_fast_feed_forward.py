"""A fast feedforward layer is the tree of its paper: soft in training, one path to one leaf afterwards."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import training_batch
from tolerances import CLOSED_FORM, EXACT, SAME_SUMS, assert_close

from jaxtrain.models.decoder import context_of
from jaxtrain.nn.feed_forward.fast import FastFeedForwardConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.feed_forward.sigmoid_gated import SigmoidGatedConfig
from jaxtrain.nn.layer import Keys
from jaxtrain.nn.linear.int8 import Int8

D, F, LEVELS = 8, 3, 3
LEAVES = 2**LEVELS
CONFIG = FastFeedForwardConfig(levels=LEVELS, leaf=MLPConfig(hidden=F, activation="relu"), hardening=0.5)
BATCH = training_batch(2, 10, vocab_size=20)
TRAINED = context_of(BATCH, Keys(jax.random.split(jax.random.key(0), 2), jax.random.key(1)))
EVALUATED = context_of(BATCH, None)
REAL = BATCH.segment_ids > 0
X = np.random.default_rng(0).standard_normal((2, 10, D)).astype(np.float32)
GRAPH = nnx.graphdef(nnx.eval_shape(lambda: CONFIG.build(D, rngs=nnx.Rngs(0))))


def _params(sharpness: float = 1.0, leaf=lambda e: e) -> dict:
    """Return random parameters; the leaves are those numbered `leaf(e)`."""
    random = np.random.default_rng(1)
    up, down = (random.standard_normal((LEAVES, *shape), np.float32) for shape in ((D, F), (F, D)))
    chosen = [leaf(e) for e in range(LEAVES)]
    return {
        "gates": sharpness * random.standard_normal((LEAVES - 1, D), np.float32),
        "gate_bias": sharpness * random.standard_normal(LEAVES - 1, np.float32),
        "leaves": {"up": {"kernel": up[chosen]}, "down": {"kernel": down[chosen]}},
    }


@jax.jit
def _both(params):
    """Return the layer in training, in evaluation, and the leaf that every token reaches."""
    layer = _layer(params)
    return layer(X, TRAINED), layer(X, EVALUATED).y, layer.reached(X)


def _layer(params):
    layer = nnx.merge(GRAPH, nnx.eval_shape(lambda: nnx.state(CONFIG.build(D, rngs=nnx.Rngs(0)))))
    nnx.update(layer, params)
    return layer


def _leaf(params: dict, number: int, x: np.ndarray) -> np.ndarray:
    leaves = params["leaves"]
    return np.maximum(x @ leaves["up"]["kernel"][number], 0) @ leaves["down"]["kernel"][number]


def _soft(params: dict, x: np.ndarray, node: int = 0) -> np.ndarray:
    """FORWARD_T of algorithm 1 for one token."""
    if node >= LEAVES - 1:
        return _leaf(params, node - (LEAVES - 1), x)
    right = 1 / (1 + np.exp(-(x @ params["gates"][node] + params["gate_bias"][node])))
    return right * _soft(params, x, 2 * node + 2) + (1 - right) * _soft(params, x, 2 * node + 1)


def _hard(params: dict, x: np.ndarray, node: int = 0) -> tuple[int, np.ndarray]:
    """FORWARD_I of algorithm 1 for one token, and the leaf it ends at."""
    if node >= LEAVES - 1:
        return node - (LEAVES - 1), _leaf(params, node - (LEAVES - 1), x)
    right = x @ params["gates"][node] + params["gate_bias"][node] >= 0
    return _hard(params, x, 2 * node + 1 + right)


def test_it_is_algorithm_1_of_the_paper():
    params = _params()
    out, hard, reached = _both(params)
    tokens = X.reshape(-1, D).astype(np.float64)
    assert_close(out.y, np.array([_soft(params, x) for x in tokens], np.float32).reshape(X.shape), CLOSED_FORM)
    paths = [_hard(params, x) for x in tokens]
    assert_close(reached.reshape(-1), np.array([leaf for leaf, _ in paths], np.int32), EXACT)
    assert_close(hard, np.array([y for _, y in paths], np.float32).reshape(X.shape), CLOSED_FORM)
    assert len(np.unique(reached)) > LEAVES // 2


def test_leaves_that_are_alike_are_one_leaf_so_the_chances_add_up_to_one():
    params = _params(leaf=lambda e: 0)
    out, hard, _ = _both(params)
    assert_close(out.y, _leaf(params, 0, X), SAME_SUMS)
    assert_close(hard, _leaf(params, 0, X), SAME_SUMS)


def test_gates_that_are_decided_make_the_soft_tree_the_hard_one():
    out, hard, reached = _both(_params(sharpness=1e4))
    assert_close(out.y, hard, SAME_SUMS)
    gates = jax.nn.sigmoid(1e4 * (X @ _params()["gates"].T + _params()["gate_bias"]))
    assert_close(np.argmax(_layer(_params()).chances(gates), axis=-1), np.asarray(reached), EXACT)


def test_the_loss_is_the_entropy_of_the_gates():
    params = _params()
    right = 1 / (1 + np.exp(-(X.astype(np.float64) @ params["gates"].T + params["gate_bias"])))
    entropy = -(right * np.log(right) + (1 - right) * np.log1p(-right))[REAL]
    sums = _both(params)[0].sums
    assert float(sums.terms["hardening"]) == pytest.approx(0.5 * entropy.sum(), rel=1e-5)
    report = _layer(params).report(sums.counts)
    assert float(report["undecided"]) == pytest.approx(entropy.mean() / np.log(2), rel=1e-5)


def test_descent_on_the_loss_decides_the_gates():
    """So that one path gives what training learned."""
    gates = {name: _params()[name] for name in ("gates", "gate_bias")}

    def loss(gates):
        return _both(_params() | gates)[0].sums.terms["hardening"] / REAL.sum()

    @jax.jit
    def descended(gates):
        def step(gates, _):
            return jax.tree.map(lambda w, dw: w - 5.0 * dw, gates, jax.grad(loss)(gates)), None

        return jax.lax.scan(step, gates, length=300)[0]

    before, after = _both(_params()), _both(_params() | descended(gates))
    apart = [np.abs(out.y - hard)[REAL].mean() for out, hard, _ in (before, after)]
    assert apart[1] < 0.02 * apart[0]


def test_the_operations_of_a_path_are_a_gate_a_level():
    def counted(levels: int) -> int:
        config = FastFeedForwardConfig(levels=levels, leaf=CONFIG.leaf, hardening=0.0)
        layer = nnx.eval_shape(lambda: config.build(D, rngs=nnx.Rngs(0)))
        graph, shapes = nnx.split(layer)
        jaxpr = jax.make_jaxpr(lambda state: nnx.merge(graph, state).reached(X))(shapes)
        dots = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "dot_general"]
        return sum(functools.reduce(int.__mul__, dot.invars[0].aval.shape) for dot in dots)

    assert [counted(levels) // X.size for levels in (1, 2, 5)] == [1, 2, 5]


def test_a_path_has_a_gate_a_level_and_one_leaf_of_all_neurons():
    """(d + l) / (2^d - 1 + 2^d l) of them, and half a percent with the paper's 11 levels of leaves of 8."""
    params = _params()
    neurons = params["gates"].shape[0] + params["leaves"]["up"]["kernel"].size // D
    assert (CONFIG.evaluated_neurons, CONFIG.neurons) == (LEVELS + F, neurons) == (6, 31)
    deep = dataclasses.replace(CONFIG, levels=11, leaf=MLPConfig(hidden=8))
    assert deep.evaluated_neurons / deep.neurons == pytest.approx((11 + 8) / (2**11 - 1 + 8 * 2**11))
    assert dataclasses.replace(CONFIG, leaf=SigmoidGatedConfig(layer=CONFIG.leaf)).neurons is None


@pytest.mark.parametrize("training", [True, False])
def test_gates_are_computed_in_float32_on_every_device(training):
    """Both forms alike, or a token would reach another leaf than training weighed most."""
    layer = _layer(jax.tree.map(jax.numpy.asarray, _params()))
    jaxpr = jax.make_jaxpr(lambda x: layer._logits(x) if training else layer.reached(x))(X.astype(jax.numpy.bfloat16))
    dots = [equation for equation in jaxpr.jaxpr.eqns if equation.primitive.name == "dot_general"]
    assert dots and all(dot.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for dot in dots)


def test_a_leaf_that_a_path_cannot_reach_alone_is_refused():
    for leaf in (SigmoidGatedConfig(layer=MLPConfig(hidden=F)), MLPConfig(hidden=F, linear=Int8())):
        with refused(ValueError, f"leaf={leaf!r}", "MLPConfig"):
            _refused_leaf(leaf)
    with refused(ValueError, "levels=0"):
        FastFeedForwardConfig(levels=0, leaf=CONFIG.leaf, hardening=0.0)


def _refused_leaf(leaf) -> None:
    config = FastFeedForwardConfig(levels=1, leaf=leaf, hardening=0.0)
    nnx.eval_shape(lambda: config.build(D, rngs=nnx.Rngs(0)))

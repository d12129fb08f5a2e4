"""Fused cross-entropy against the definition: loss, every gradient, parts of a vocabulary, memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absent import compile_for
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P
from jaxtrain_kernels.cross_entropy import cross_entropy
from tolerances import SAME_SUMS, assert_close

OPTIONS = {"z_loss": 1e-2, "softcap": 3.0}


def _problem(tokens: int = 63, words: int = 257, dtype=np.float32):
    random = np.random.default_rng(0)
    x = random.standard_normal((tokens, 32)).astype(np.float32)
    head = (random.standard_normal((words, 32)) / 4).astype(np.float32)
    targets = random.integers(0, words, tokens)
    targets[:2] = 0, words - 1
    weights = random.random(tokens).astype(np.float32) * (random.random(tokens) < 0.8)
    weights[-3:], targets[-3:] = 0.0, (-100, -1, words)  # of no word
    return jnp.asarray(x, dtype), jnp.asarray(head, dtype), targets.astype(np.int32), weights.astype(np.float32)


def _value_and_gradients(implementation, **options):
    @jax.jit
    def run(x, head, targets, weights):
        def loss(x, head, weights):
            return cross_entropy(x, head, targets, weights, implementation=implementation, **options)

        return jax.value_and_grad(lambda *a: loss(*a)[0], argnums=(0, 1, 2))(x, head, weights), loss(x, head, weights)

    return run


@pytest.mark.parametrize(
    ("words", "tile", "options"),
    [(257, 100, OPTIONS), (256, 64, {}), (63, 2048, {"softcap": 3.0}), (100, 1, {"z_loss": 1e-2})],
    ids=str,
)
def test_loss_and_gradients_are_those_of_the_definition_and_finite_with_any_target_of_no_weight(words, tile, options):
    problem = _problem(words=words)
    actual = _value_and_gradients("xla", tile=tile, **options)(*problem)
    desired = _value_and_gradients("reference", **options)(*problem)
    assert all(np.isfinite(d).all() for d in jax.tree.leaves(desired))
    assert_close(actual, desired, SAME_SUMS)


def test_in_bfloat16_the_error_is_at_most_twice_that_of_the_plain_form():
    problem = _problem(dtype=jnp.bfloat16)
    exact = _value_and_gradients("reference", **OPTIONS)(*(x.astype(jnp.float32) for x in problem[:2]), *problem[2:])
    plain = _value_and_gradients("reference", **OPTIONS)(*problem)
    fused = _value_and_gradients("xla", tile=100, **OPTIONS)(*problem)
    for f, p, e in zip(*map(jax.tree.leaves, (fused, plain, exact)), strict=True):
        error, allowed = (np.abs(np.asarray(one, np.float32) - e).max() for one in (f, p))
        assert error <= 2 * allowed + 1e-6 * np.abs(e).max()


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_a_vocabulary_split_over_devices_gives_the_loss_and_gradients_of_the_whole(implementation):
    problem = _problem(tokens=64, words=256)
    mesh = jax.make_mesh((2, 4), ("rows", "words"), axis_types=(AxisType.Auto,) * 2)

    def part(x, head, targets, weights):
        sums = cross_entropy(
            x, head, targets, weights, tile=24, axis_name="words", implementation=implementation, **OPTIONS
        )
        return jax.lax.psum(sums.loss if implementation == "xla" else sums.loss / 4, ("rows",))

    if implementation == "reference":  # whose gathered head leaves a sum that varies over the parts
        whole_part, part = part, lambda *a: jax.lax.psum(whole_part(*a), "words")
    split = jax.shard_map(part, mesh=mesh, in_specs=(P("rows"), P("words"), P("rows"), P("rows")), out_specs=P())
    gradients = jax.jit(jax.value_and_grad(split, argnums=(0, 1, 3)))(*problem)
    (desired, dwhole), _ = _value_and_gradients("reference", **OPTIONS)(*problem)
    assert_close(gradients, (desired, dwhole), SAME_SUMS)


def test_a_large_vocabulary_takes_a_twentieth_of_the_memory_on_v5e():
    shapes = (
        jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((131072, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((1024,), jnp.int32),
        jax.ShapeDtypeStruct((1024,), jnp.float32),
    )

    def step(implementation, x, head, targets, weights):
        def loss(x, head):
            return cross_entropy(x, head, targets, weights, implementation=implementation).loss

        return jax.value_and_grad(loss, argnums=(0, 1))(x, head)

    fused, plain = (
        compile_for("v5e:2x2", functools.partial(step, form), *shapes).memory_analysis().temp_size_in_bytes
        for form in ("xla", "reference")
    )
    assert plain > 1024 * 131072 * 4
    assert fused <= 0.05 * plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.zeros(3, np.int32)}, r"targets \(3,\).*a target and a weight a token"),
        ({"targets": np.zeros(63, np.float32)}, "targets of dtype float32: give integers"),
        ({"tile": 0}, "tile is at least 1"),
        ({"softcap": -1.0}, "softcap positive"),
        ({"implementation": "tpu"}, "'tpu': cross_entropy has xla"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(changes, message):
    x, head, targets, weights = _problem()
    arguments = {"x": x, "head": head, "targets": targets, "weights": weights} | changes
    with pytest.raises(ValueError, match=message):
        cross_entropy(**arguments)

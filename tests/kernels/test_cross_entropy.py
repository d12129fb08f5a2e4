"""Fused cross-entropy against the definition: loss, every gradient, parts of a vocabulary, memory."""

import functools

import checked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import compile_for
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtrain_kernels.cross_entropy import cross_entropy, project, xla
from tolerances import EXACT, SAME_GRADIENT, SAME_SUMS, assert_close

Z_LOSS = 1e-2


def _problem(tokens: int = 63, words: int = 257, dtype=np.float32):
    random = np.random.default_rng(0)
    x = random.standard_normal((tokens, 32)).astype(np.float32)
    head = (random.standard_normal((words, 32)) / 4).astype(np.float32)
    targets = random.integers(0, words, tokens)
    targets[:2] = 0, words - 1
    weights = random.random(tokens).astype(np.float32) * (random.random(tokens) < 0.8)
    weights[-3:], targets[-3:] = 0.0, (-100, -1, words)  # of no word
    return jnp.asarray(x, dtype), jnp.asarray(head, dtype), targets.astype(np.int32), weights.astype(np.float32)


def _loss(x, head, targets, weights, **options):
    nll, log_z = cross_entropy(x, head, targets, **options)
    return jnp.sum(weights * (nll + Z_LOSS * log_z**2)), (nll, log_z)


def _value_and_gradients(implementation, **options):
    loss = functools.partial(_loss, implementation=implementation, **options)
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 3), has_aux=True))


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (257, {"tile": 100, "softcap": 3.0}),  # tiles that are not full
        (256, {"tile": 64}),
        (63, {"tile": 2048, "softcap": 3.0}),
        (100, {"tile": 1}),
        (256, {"tile": 12, "shards": 4, "softcap": 3.0}),
        (252, {"tile": 12, "shards": 4}),
    ],
    ids=str,
)
def test_loss_and_gradients_are_those_of_the_definition_and_finite_with_any_target_of_no_weight(words, options):
    problem = _problem(words=words)
    actual = _value_and_gradients("xla", **options)(*problem)
    desired = _value_and_gradients("reference", **options)(*problem)
    assert all(np.isfinite(d).all() for d in jax.tree.leaves(desired))
    assert_close(actual, desired, SAME_SUMS)


def test_in_bfloat16_the_error_is_at_most_twice_that_of_the_plain_form():
    problem = _problem(dtype=jnp.bfloat16)
    plain, fused = (
        _value_and_gradients(implementation, tile=100, softcap=3.0) for implementation in ("reference", "xla")
    )
    exact = plain(*(x.astype(jnp.float32) for x in problem[:2]), *problem[2:])
    for f, p, e in zip(*map(jax.tree.leaves, (fused(*problem), plain(*problem), exact)), strict=True):
        error, allowed = (np.abs(np.asarray(one, np.float32) - e).max() for one in (f, p))
        assert error <= 2 * allowed + 1e-6 * np.abs(e).max()


def test_bfloat16_gradients_of_many_tiles_are_summed_in_float32():
    """A tile's gradient of 1 and 255 of 1/256 behind it, over 256: summed in bf16, they would stay at 1."""
    x, targets = jnp.zeros((1, 1), jnp.bfloat16), jnp.zeros(1, jnp.int32)
    head = jnp.concatenate([jnp.ones((1, 1)), jnp.full((255, 1), 2.0**-8)]).astype(jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda x: cross_entropy(x, head, targets, tile=1).log_z.sum()))(x)
    assert_close(gradient[0, 0], jnp.bfloat16((1 + 255 / 256) / 256), EXACT)


def test_huge_logits_are_finite():
    x, head, targets, _ = _problem()
    assert_close(cross_entropy(x * 1e4, head, targets, tile=100).log_z / 1e4, jnp.max(x @ head.T, axis=1), SAME_SUMS)


def test_the_gradient_of_the_product_is_that_of_the_plain_one():
    random = np.random.default_rng(0)
    x, head = (random.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (5, 4)))

    def gradient(function):
        return jax.grad(lambda x, head: jnp.sum(jnp.sin(function(x, head))), argnums=(0, 1))(x, head)

    assert_close(gradient(project), gradient(lambda x, head: x @ head.T), SAME_GRADIENT)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_rows_in_another_form_are_multiplied_by_what_the_caller_gives(implementation):
    x, head, targets, weights = _problem(words=256)
    halves = {"tile": 100, "project": lambda x, rows: project(x, rows / 2)}
    (actual, _), gradients = _value_and_gradients(implementation, **halves)(x, 2 * head, targets, weights)
    (desired, _), (dx, dhead, dweights) = _value_and_gradients("reference")(x, head, targets, weights)
    assert_close((actual, gradients), (desired, (dx, dhead / 2, dweights)), SAME_SUMS)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_a_vocabulary_split_over_devices_gives_the_loss_and_gradients_of_the_whole(implementation):
    problem = _problem(tokens=64, words=256)
    mesh = jax.make_mesh((2, 4), ("rows", "words"), axis_types=(AxisType.Auto,) * 2)
    options = {"tile": 24, "softcap": 3.0, "axis_name": "words", "implementation": implementation}

    def part(x, head, targets, weights):
        loss = _loss(x, head, targets, weights, **options)[0]
        return jax.lax.psum(loss if implementation == "xla" else loss / 4, ("rows",))

    if implementation == "reference":  # whose gathered head leaves a sum that varies over the parts
        whole_part, part = part, lambda *a: jax.lax.psum(whole_part(*a), "words")
    split = jax.shard_map(part, mesh=mesh, in_specs=(P("rows"), P("words"), P("rows"), P("rows")), out_specs=P())
    gradients = jax.jit(jax.value_and_grad(split, argnums=(0, 1, 3)))(*problem)
    (desired, _), dwhole = _value_and_gradients("reference", softcap=3.0)(*problem)
    assert_close(gradients, (desired, dwhole), SAME_SUMS)


def test_a_vocabulary_split_by_the_compiler_is_not_gathered():
    mesh = jax.make_mesh((2, 4), ("rows", "words"), axis_types=(AxisType.Auto,) * 2)
    specs = P("rows"), P("words"), P("rows"), P("rows")
    placed = jax.device_put(_problem(tokens=64, words=256), tuple(NamedSharding(mesh, spec) for spec in specs))
    step = _value_and_gradients("xla", tile=24, shards=4)
    text = step.lower(*placed).compile().as_text()
    assert "all-gather(" not in text and "all-to-all(" not in text and "all-reduce(" in text
    assert_close(step(*placed), _value_and_gradients("reference")(*_problem(tokens=64, words=256)), SAME_SUMS)


@pytest.mark.parametrize(
    ("rows", "most", "count"), [(32000, 8192, 4), (128256, 16384, 8), (151936, 16384, 16), (50257, 8192, 7), (7, 9, 1)]
)
def test_tiles_are_as_few_as_can_be_or_of_equal_size(rows, most, count):
    assert xla.tile_count(rows, most) == count


def test_a_large_vocabulary_takes_a_twentieth_of_the_memory_on_v5e():
    shapes = (
        jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((131072, 256), jnp.bfloat16),
        jax.ShapeDtypeStruct((1024,), jnp.int32),
    )

    def step(implementation, x, head, targets):
        def loss(x, head):
            return jnp.sum(cross_entropy(x, head, targets, implementation=implementation).nll)

        return jax.value_and_grad(loss, argnums=(0, 1))(x, head)

    fused, plain = (
        compile_for("v5e:2x2", functools.partial(step, implementation), *shapes).memory_analysis().temp_size_in_bytes
        for implementation in ("xla", "reference")
    )
    assert plain > 1024 * 131072 * 4
    assert fused <= 0.05 * plain


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"targets": np.zeros(3, np.int32)}, r"targets \(3,\).*and a target a token"),
        ({"targets": np.zeros(63, np.float32)}, "targets of dtype float32: give integers"),
        ({"tile": 0}, "tile is at least 1"),
        ({"softcap": -1.0}, "softcap positive"),
        ({"shards": 2}, "shards=2: must divide the 257 rows of the head"),
        ({"implementation": "tpu"}, "'tpu': cross_entropy has xla"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(changes, message):
    x, head, targets, _ = _problem()
    with checked.off(), pytest.raises(ValueError, match=message):
        cross_entropy(**{"x": x, "head": head, "targets": targets} | changes)

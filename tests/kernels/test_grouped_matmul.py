"""Grouped products: every implementation against the definition, and the definition against JAX's ragged products."""

import functools
from collections.abc import Callable

import checked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import H100, TPUS, compile_for
from compiled_kernels import kernels_in
from interpreted import interpreted
from jaxtrain_kernels.block_quant import DynamicMap, Float8E4M3, Int4, Int8, dequantize, quantize
from jaxtrain_kernels.grouped_matmul import grouped_matmul, tpu, transposed_grouped_matmul
from jaxtrain_kernels.grouped_matmul.groups import bounds
from tolerances import EXACT, SAME_SUMS, assert_close, error_of_norm

SIZES = np.array((0, 37, 130, 0, 96, 0), np.int32)  # empty groups first, last and between
REST, EMPTY = slice(int(SIZES.sum()), None), SIZES == 0
SQUARES = {"block": (32, 32), "axis": (-2, -1)}


def _problem(D: int, F: int, dtype, rows: int = 300) -> tuple[np.ndarray, ...]:
    """Return x, weights and the gradient of the products; rows behind the last group are NaN."""
    random = np.random.default_rng(0)
    shapes = (rows, D), (len(SIZES), D, F), (rows, F)
    x, weights, dy = (random.standard_normal(shape).astype(dtype) for shape in shapes)
    x[REST] = dy[REST] = np.nan
    return x, weights, dy


def _run(implementation: str | None, x, weights, dy) -> dict[str, jax.Array]:
    """Return products and gradients."""
    y, pull = jax.vjp(lambda x, w: grouped_matmul(x, w, jnp.asarray(SIZES), implementation=implementation), x, weights)
    return {"y": y} | dict(zip(("dx", "dw"), pull(dy), strict=True))


def _float64(found: dict) -> dict[str, np.ndarray]:
    return {name: np.asarray(x, np.float64) for name, x in found.items()}


@functools.cache
def _definition(D: int, F: int, dtype) -> tuple[dict, dict]:
    """Return the definition's results in float64 and in the dtype."""
    problem, run = _problem(D, F, dtype), jax.jit(functools.partial(_run, "reference"))
    with jax.enable_x64(True):
        exact = run(*(x.astype(np.float64) for x in problem))
    return _float64(exact), _float64(run(*problem))


def test_two_rows_of_six_groups_are_computed_too():
    """As in decoding, where a token has fewer experts than there are."""
    x, weights, _ = _problem(8, 4, np.float32, rows=300)
    found, desired = (
        grouped_matmul(x[:2], weights, np.array((0, 1, 0, 0, 1, 0), np.int32), implementation=name)
        for name in ("xla", "reference")
    )
    assert_close(found, desired, SAME_SUMS)


@pytest.mark.parametrize(
    ("implementation", "D", "F", "dtype"),
    [
        ("xla", 40, 24, jnp.float32),
        ("xla", 40, 24, jnp.bfloat16),
        ("tpu", 256, 128, jnp.float32),
        ("tpu", 128, 128, jnp.bfloat16),
        ("gpu", 192, 64, jnp.bfloat16),
    ],
    ids=str,
)
def test_products_and_gradients_are_those_of_the_definition_and_zero_where_there_is_no_row(
    implementation, D, F, dtype, monkeypatch
):
    monkeypatch.setattr(tpu, "SIDE", 128)  # so that 256 are two tiles
    exact, plain = _definition(D, F, dtype)
    with interpreted(implementation):
        found = _float64(jax.jit(functools.partial(_run, implementation))(*_problem(D, F, dtype)))
    for name, desired in exact.items():
        allowed = max(2 * error_of_norm(plain[name], desired), float(jnp.finfo(dtype).eps))
        assert error_of_norm(found[name], desired) <= allowed, name
    assert not np.any(found["y"][REST]) and not np.any(found["dx"][REST]) and not np.any(found["dw"][EMPTY])


def test_the_definition_is_the_ragged_product_of_jax():
    x, weights, dy = _problem(12, 20, np.float32, rows=int(SIZES.sum()))
    y, pull = jax.vjp(lambda x, w: jax.lax.ragged_dot(x, w, jnp.asarray(SIZES)), x, weights)
    desired = {"y": y} | dict(zip(("dx", "dw"), pull(dy), strict=True))
    assert_close(jax.jit(functools.partial(_run, "reference"))(x, weights, dy), desired, SAME_SUMS)


def test_each_operation_is_the_derivative_of_the_other():
    x, weights, dy = _problem(12, 20, np.float32)

    def run(implementation):
        @jax.jit
        def gradients(x, dy, dw):
            def of_rows(x, dy):
                return transposed_grouped_matmul(x, dy, SIZES, implementation=implementation)

            found, pull = jax.vjp(of_rows, x, dy)
            return found, pull(dw)

        return gradients(x, dy, weights)

    assert_close(run("xla"), run("reference"), SAME_SUMS)


@pytest.mark.parametrize(
    ("implementation", "format"), [("xla", DynamicMap()), ("reference", Int8()), ("tpu", Float8E4M3())], ids=str
)
def test_weights_in_codes_are_the_matrices_that_the_codes_stand_for(implementation, format):
    x, weights, dy = _problem(256, 128, np.float32)

    def run(implementation, weights):
        y, pull = jax.vjp(lambda x: grouped_matmul(x, weights, jnp.asarray(SIZES), implementation=implementation), x)
        return y, pull(dy)

    codes = jax.jit(functools.partial(quantize, format=format, **SQUARES))(weights)
    with interpreted(implementation):
        found = jax.jit(functools.partial(run, implementation))(codes)
    assert_close(found, jax.jit(lambda codes: run("xla", dequantize(codes)))(codes), SAME_SUMS)


def test_sizes_that_are_not_known_end_at_the_last_row():
    x, weights, _ = _problem(12, 20, np.float32, rows=100)
    run = jax.jit(functools.partial(grouped_matmul, implementation="xla"))
    assert_close(run(x, weights, SIZES), run(x, weights, np.int32([0, 37, 63, 0, 0, 0])), EXACT)


@pytest.mark.parametrize("empty", [False, True])
def test_visits_have_every_row_once_and_every_tile_and_group_at_one_time(empty):
    random, rows, tiles = np.random.default_rng(0), 8, 5
    drawn = [random.multinomial(random.integers(41), random.dirichlet(np.full(6, 0.4))) for _ in range(200)]
    find = jax.jit(jax.vmap(lambda sizes: tpu.visits(bounds(sizes, 40), rows=rows, tiles=tiles, empty=empty)))
    for sizes, *of in zip(drawn, *map(np.asarray, find(np.int32(drawn))), strict=True):
        seen = [(g, tile * rows + n) for g, tile, a, b in zip(*of, strict=True) for n in range(a, b)]
        assert seen == list(zip(np.repeat(np.arange(6), sizes), range(sizes.sum()), strict=True))
        group, tile, *_ = of
        assert np.all(np.diff(group) >= 0) and np.all(np.diff(tile) >= 0) and tile.max() < tiles
        assert not empty or set(group) == set(range(6))


def _compiled(topology: str) -> Callable:
    """Return products and gradients for weights, and for weights in codes."""
    named = {"implementation": "gpu" if topology == H100 else "tpu"}

    def run(x, weights, dy, sizes, *codes):
        def of_all(x, w):
            return grouped_matmul(x, w, sizes, **named), [grouped_matmul(x, one, sizes, **named) for one in codes]

        y, pull = jax.vjp(of_all, x, weights)
        return y, pull((dy, [dy] * len(codes)))

    return run


@pytest.mark.parametrize("topology", [*TPUS, H100])
def test_the_kernels_compile(topology):
    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    formats = {H100: (), TPUS[0]: (Int8(), Float8E4M3())}.get(topology, (Float8E4M3(),))
    codes = [jax.eval_shape(functools.partial(quantize, format=f, **SQUARES), shape(8, 1024, 512)) for f in formats]
    arrays = shape(2048, 1024), shape(8, 1024, 512), shape(2048, 512), shape(8, dtype=jnp.int32)
    found = kernels_in(compile_for(topology, _compiled(topology), *arrays, *codes))
    products = {name: 1 + len(codes) for name in ("grouped_matmul", "grouped_matmul_transposed")}
    assert found == products | {"transposed_grouped_matmul": 1}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((4, 8), np.int32)}, "dtype int32: give rows, .* in floats of 16 bits or more"),
        ({"x": np.zeros((0, 8), np.float32)}, r"x has shape \(0, 8\)"),
        ({"sizes": np.float32([1, 2])}, "sizes have shape .* float32: give one integer a group"),
        ({"sizes": np.int32([3, 2])}, "sizes from 2 with a sum of 5: x has 4 rows"),
        ({"sizes": np.int32([-1, 2])}, "sizes from -1"),
        ({"sizes": np.int32([1, 1, 1])}, r"weights have shape \(2, 8, 16\): .* 3 sizes give \[3, 8, F\]"),
        ({"weights": jnp.zeros((2, 8, 16), jnp.bfloat16)}, "x is float32, weights are bfloat16: give one dtype"),
        (
            {"weights": quantize(np.zeros((2, 8, 16), np.float32), format=Int8(), block=2, axis=0)},
            "lies within one group",
        ),
        ({"implementation": "triton"}, "'triton': grouped_matmul has xla"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(changes, message):
    good = {"x": np.zeros((4, 8), np.float32), "weights": np.zeros((2, 8, 16), np.float32), "sizes": np.int32([1, 2])}
    with checked.off(), pytest.raises(ValueError, match=message):
        grouped_matmul(**good | changes)


@pytest.mark.parametrize(
    ("implementation", "dtype", "weights", "reason"),
    [
        ("tpu", np.float16, np.zeros((1, 128, 128), np.float16), "x is float16, not float32 or bfloat16"),
        ("tpu", np.float32, np.zeros((1, 128, 72), np.float32), "a side of 72 is no multiple of 128"),
        ("tpu", np.float32, {"format": Int4(), "block": (32, 32)}, "codes in .*, not of 8 bits"),
        ("tpu", np.float32, {"format": Int8(), "block": (4, 32)}, "blocks of 4 rows"),
        ("gpu", np.float32, np.zeros((1, 128, 72), np.float32), "not float16 or bfloat16.*, a side of 72"),
        ("gpu", np.float16, {"format": Int8(), "block": (32, 32)}, "it has no weights in codes"),
    ],
    ids=str,
)
def test_a_named_kernel_says_why_it_does_not_take_a_call(implementation, dtype, weights, reason):
    if isinstance(weights, dict):
        weights = quantize(np.zeros((1, 128, 128), np.float32), axis=(-2, -1), **weights)
    with pytest.raises(NotImplementedError, match=f"takes this call. {implementation}: .*{reason}"):
        grouped_matmul(np.zeros((8, 128), dtype), weights, np.int32([8]), implementation=implementation)

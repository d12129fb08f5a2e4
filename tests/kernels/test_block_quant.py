"""Quantization by block: every format and implementation against the definition and the peer's own codes."""

import functools
from pathlib import Path

import checked
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ahead_of_time import H100, TPUS, compile_for
from compiled_kernels import kernels_in
from interpreted import interpreted
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtrain_kernels.block_quant import (
    DynamicMap,
    Float8E4M3,
    Float8E5M2,
    Int4,
    Int8,
    NormalFloat4,
    dequantize,
    quantize,
)
from jaxtrain_kernels.block_quant.dynamic_map import published
from tolerances import SAME_EXPANDED_NUMBERS, SAME_NUMBERS, assert_close

FORMATS = [
    Int8(),
    Int4(),
    DynamicMap(),
    DynamicMap(signed=False),
    NormalFloat4(),
    Float8E4M3(),
    Float8E4M3(expanded=False),
    Float8E5M2(),
]
# Lengths that no block divides, blocks of every kind. Compiling is what costs: the last two with one format alone.
SHAPES = [((3, 257), 256, -1), ((63, 100), (32, 32), (-2, -1)), ((100, 63), 32, -2), ((2, 1, 3, 64), 64, -1)]
GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "bitsandbytes" / "blocks.npz")


def _numbers(shape, seed: int = 0) -> np.ndarray:
    """Return normal numbers over many decades, zeros among them."""
    random = np.random.default_rng(seed)
    x = random.standard_normal(shape) * 10.0 ** random.uniform(-3, 0, shape)
    return np.where(random.random(shape) < 0.05, 0.0, x).astype(np.float32)


def _assert_same(actual, desired, what=""):
    """Compare every leaf, bit for bit."""
    for (path, a), (_, d) in zip(
        jax.tree_util.tree_leaves_with_path(actual), jax.tree_util.tree_leaves_with_path(desired), strict=True
    ):
        np.testing.assert_array_equal(
            np.asarray(a.astype(np.float32)), np.asarray(d.astype(np.float32)), f"{what}{jax.tree_util.keystr(path)}"
        )


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_the_fast_form_is_the_definition_code_for_code(format):
    shapes = SHAPES if format == Int8() else SHAPES[:2]
    keys = [jax.random.key(1), *[None] * (len(shapes) - 1)]

    @functools.partial(jax.jit, static_argnums=1)
    def run(xs, implementation):
        return [
            [
                (q := quantize(x, format=format, block=block, axis=axis, key=key, implementation=implementation)),
                dequantize(q, implementation=implementation),
            ]
            for x, key, (_, block, axis) in zip(xs, keys, shapes, strict=True)
        ]

    xs = [_numbers(shape, seed) for seed, (shape, *_) in enumerate(shapes)]
    _assert_same(run(xs, "xla"), run(xs, "reference"))


KERNEL_CASES = [  # format, shape, block, axis, stochastic; two programs along rows and along columns, none of them full
    (DynamicMap(), (33, 300), 256, -1, False),
    (DynamicMap(signed=False), (2, 8, 3, 64), (8, 32), (-3, -1), True),
    (Float8E4M3(), (300, 100), (32, 32), (-2, -1), False),
    (Int8(), (2, 5000), 32, -1, True),
    (NormalFloat4(), (65, 129), 128, -1, False),
]
# Without 4-bit codes; a program has fewer rows there.
GPU_CASES = [*KERNEL_CASES[:2], (Float8E4M3(), (64, 100), (32, 32), (-2, -1), False), KERNEL_CASES[3]]


@pytest.mark.parametrize(
    ("implementation", "format", "shape", "block", "axis", "stochastic"),
    [("tpu", *case) for case in KERNEL_CASES] + [("gpu", *case) for case in GPU_CASES],
    ids=str,
)
def test_a_kernel_is_the_definition_code_for_code(implementation, format, shape, block, axis, stochastic):

    x, key = _numbers(shape), jax.random.key(0) if stochastic else None
    x[0, ..., :3] = np.nan, np.inf, -np.inf
    x[-1, ..., -2:] = 3e38, 1e37
    blocks = {"format": format, "block": block, "axis": axis, "key": key}
    desired = jax.jit(lambda x: quantize(x, implementation="reference", **blocks))(x)
    with interpreted(implementation):
        actual = quantize(x, implementation=implementation, **blocks)
        numbers = dequantize(desired, implementation=implementation)
    _assert_same(actual, desired)
    tolerance = SAME_EXPANDED_NUMBERS if format.expands else SAME_NUMBERS
    assert_close(numbers, dequantize(desired, implementation="reference"), tolerance)


@pytest.mark.parametrize("topology", [*TPUS, H100])
def test_the_kernels_compile(topology):
    """Every format and kind of block for one chip, a few for the others, all of a chip in one program."""
    implementation = "gpu" if topology == H100 else "tpu"
    cases = KERNEL_CASES + [(Int4(), (8, 256), 256, -1, False)]
    if topology != TPUS[0]:
        cases = [case for case in cases if isinstance(case[0], DynamicMap | Float8E4M3)]
    blocks = [{"format": format, "block": block, "axis": axis} for format, _, block, axis, _ in cases]
    keys = [jax.random.key(0) if stochastic else None for *_, stochastic in cases]
    xs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for _, shape, *_ in cases]
    qs = [jax.eval_shape(functools.partial(quantize, **own), x) for own, x in zip(blocks, xs, strict=True)]

    def there_and_back(xs, qs):
        there = [
            quantize(x, **own, key=key, implementation=implementation)
            for own, key, x in zip(blocks, keys, xs, strict=True)
        ]
        return there, [dequantize(q, implementation=implementation) for q in qs]

    found = kernels_in(compile_for(topology, there_and_back, xs, qs))
    assert found == dict.fromkeys(("block_quantize", "block_dequantize"), len(cases))


@pytest.mark.parametrize(
    ("implementation", "format", "shape", "block", "axis", "reason"),
    [
        ("tpu", Int8(), (64, 64), 32, -2, "not along the last one"),
        ("gpu", Int8(), (4, 256), 20, -1, "20 columns, not of 8, 16, 24 or a multiple of 32"),
        ("gpu", Int4(), (4, 256), 32, -1, "4-bit codes"),
        ("tpu", Int8(), (4, 256), 96, -1, "96 columns: neither a multiple nor a divisor of 128"),
        ("tpu", Int8(), (4, 256), (2, 32), (-2, -1), "2 rows, not of one or a multiple of 8"),
        ("tpu", Int8(), (3, 12, 256), (8, 32), (-2, -1), "8 does not divide axis -2, 12"),
        ("tpu", Int8(), (2**10, 2**20), (128, 256), (-2, -1), "more than 48 MiB on the chip"),
    ],
)
def test_a_named_kernel_says_why_it_does_not_take_a_call(implementation, format, shape, block, axis, reason):
    with (
        checked.off(),
        pytest.raises(NotImplementedError, match=f"no implementation takes this call. {implementation}: .*{reason}"),
    ):
        jax.eval_shape(
            lambda x: quantize(x, format=format, block=block, axis=axis, implementation=implementation),
            jax.ShapeDtypeStruct(shape, jnp.float32),
        )


def test_the_dynamic_map_is_the_published_one():
    np.testing.assert_array_equal(published(True), GOLDEN["signed_map"])
    np.testing.assert_array_equal(published(False), GOLDEN["unsigned_map"])


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_codes_are_those_of_bitsandbytes(implementation):
    """On values, midpoints and their neighbours too. In a block of zeros bitsandbytes divides by 0: ours is zeros."""
    x, zeros = GOLDEN["x"], GOLDEN["scales"] == 0
    assert zeros.sum() == 1
    for format, y, name in (
        (DynamicMap(), x, "signed_codes"),
        (DynamicMap(signed=False), np.abs(x), "unsigned_codes"),
        (NormalFloat4(), x, "nf4_codes"),  # theirs count from 0, ours from -8
    ):
        q = quantize(y, format=format, implementation=implementation)
        codes = np.asarray(q.codes[~zeros]).astype(np.int32) + 8 * (name == "nf4_codes")
        np.testing.assert_array_equal(codes, GOLDEN[name][~zeros], name)
        np.testing.assert_array_equal(q.scales[:, 0], GOLDEN["scales"], name)
        assert not np.any(dequantize(q)[zeros])


@pytest.mark.parametrize(
    ("format", "draw", "bound"),
    [
        (DynamicMap(), "standard_normal", 0.0087),
        (DynamicMap(), "random", 0.0033),
        (DynamicMap(signed=False), "random", 0.0033 / 2),
        (Int8(), "standard_normal", 0.0061),
    ],
    ids=str,
)
def test_mean_absolute_error_is_within_the_published_figure(format, draw, bound):
    x = getattr(np.random.default_rng(0), draw)((1024, 256)).astype(np.float32)
    error = np.abs(dequantize(quantize(x, format=format)) - x).mean()
    assert bound / 2 < error <= bound


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_a_power_of_two_changes_scales_and_no_code(format):
    x = _numbers((4, 300))
    small, large = (quantize(x * np.float32(2.0**n), format=format, block=100) for n in (-20, 15))
    _assert_same(small.codes, large.codes)
    np.testing.assert_array_equal(small.scales * 2.0**35, large.scales)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_nan_becomes_zero_and_infinity_the_greatest_of_its_block(format, implementation):
    rows = [1.5, np.nan, 0.25, 3.0, np.inf], [np.nan, np.inf, -np.inf, 0.0, np.nan], [3e38, np.nan, 0.0, 1e38, np.inf]
    x = np.array(rows, np.float32)
    result = dequantize(quantize(x, format=format, block=5, implementation=implementation))
    assert result[0, 1] == 0 and not np.any(result[1])
    np.testing.assert_allclose(result[0, [3, 4]], 3.0, rtol=1e-6)
    np.testing.assert_allclose(result[2], 2.0**126 * np.array([1, 0, 0, 1, 1]), rtol=1e-6)  # the greatest scale
    if getattr(format, "signed", True):
        below = dequantize(quantize(-x, format=format, block=5, implementation=implementation))
        np.testing.assert_allclose(below[0, 4], -3.0, rtol=0.01)  # the signed map ends at -0.993


def test_stochastic_rounding_has_the_mean_that_rounding_to_the_nearest_misses():
    x = np.linspace(0.2, 1.0, 64, dtype=np.float32)[None]
    for format in (Int4(), DynamicMap(), NormalFloat4(), Float8E4M3(expanded=False)):
        draw = jax.vmap(lambda key, f=format: dequantize(quantize(x, format=f, key=key)))
        draws = jax.jit(draw)(jax.random.split(jax.random.key(0), 2000))
        nearest = np.abs(dequantize(quantize(x, format=format)) - x).mean()
        assert np.abs(draws.mean(0) - x).mean() < nearest / 8, format


def _second_moments(scale: float) -> np.ndarray:
    """Return Adam's second moment after 4,000 steps of normal gradients, b2 = 0.999."""
    random, v = np.random.default_rng(0), np.zeros((8, 128))
    for _ in range(4000):
        v = 0.999 * v + 0.001 * (scale * random.standard_normal(v.shape)) ** 2
    return v.astype(np.float32)


def test_expanded_fp8_keeps_the_update_where_plain_e4m3_underflows():
    v = _second_moments(1e-4)
    assert not np.any(np.asarray(v.astype(jnp.float8_e4m3fn), np.float32))  # the plain cast: nothing left
    update = 1 / (np.sqrt(v) + 1e-8)
    stored = dequantize(quantize(v, format=Float8E4M3(), block=128))
    error = np.abs(1 / (np.sqrt(stored) + 1e-8) - update).mean() / update.mean()
    assert error < 1e-3
    plain = dequantize(quantize(v, format=Float8E4M3(expanded=False), block=128))
    assert np.abs(1 / (np.sqrt(plain) + 1e-8) - update).mean() / update.mean() > 5 * error


def test_expansion_leaves_nothing_to_underflow_in_a_wide_block():
    x = np.logspace(-12, 0, 128, dtype=np.float32)[None]
    assert np.sum(np.asarray(dequantize(quantize(x, format=Float8E4M3(expanded=False), block=128))) == 0) > 40
    ratio = np.asarray(dequantize(quantize(x, format=Float8E4M3(), block=128))) / x
    # The smallest codes are 1 and 2 of a unit; half-way between, 1.5^(1/k) with k = 0.45.
    assert ratio.min() > 1 / 2.5 and ratio.max() < 2.5


@pytest.mark.parametrize("partitioning", ["auto", "shard_map"])
def test_sharded_quantization_is_that_of_one_device(partitioning):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    x, spec = _numbers((32, 64)), P("a", "b")
    whole = quantize(x, format=Float8E4M3(), block=(8, 32), axis=(-2, -1))

    def run(x):
        return quantize(x, format=Float8E4M3(), block=(8, 32), axis=(-2, -1))

    if partitioning == "shard_map":
        run = jax.shard_map(run, mesh=mesh, in_specs=spec, out_specs=spec)
    sharding = NamedSharding(mesh, spec)
    compiled = jax.jit(run, out_shardings=sharding).lower(jax.device_put(x, sharding)).compile()
    assert "all-" not in compiled.as_text() and "collective" not in compiled.as_text()
    _assert_same(compiled(jax.device_put(x, sharding)), whole)


@pytest.mark.parametrize("format", [Int4(), NormalFloat4(), Float8E5M2(), DynamicMap()], ids=str)
def test_a_quantized_array_is_saved_and_restored_on_another_mesh(format, tmp_path):
    mesh = jax.make_mesh((8,), ("a",), axis_types=(AxisType.Auto,))
    before = {"w": quantize(_numbers((16, 64)), format=format, block=32)}
    target = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, P("a"))), before
    )
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "saved", before)
        checkpointer.wait_until_finished()
        after = checkpointer.restore(tmp_path / "saved", target)
    assert after["w"].format == format and after["w"].codes.dtype == format.dtype
    assert len(after["w"].codes.addressable_shards) == 8
    _assert_same(after, before)


def test_bytes_are_codes_and_scales():
    q = quantize(np.zeros((4, 1024), np.float32), format=NormalFloat4(), block=128)
    assert q.stored_bytes * 8 / q.codes.size == 4.25
    assert quantize(np.zeros((4, 1024), np.float32), format=DynamicMap()).stored_bytes == 4 * 1024 * (1 + 4 / 256)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros(4, np.int32)}, "dtype int32: give float32"),
        ({"format": Int8}, "format=.*give one of Int8"),
        ({"block": 0}, "at least one element"),
        ({"axis": 2}, "axis=2: the array has 2 axes"),
        ({"block": (8, 8)}, "one size an axis"),
        ({"block": (8, 8), "axis": (-1, 1)}, "each once"),
        ({"implementation": "cuda"}, "'cuda': block_quant.quantize has xla"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(changes, message):
    arguments = {"x": np.zeros((4, 4), np.float32), "format": Int8(), "block": 2} | changes
    with checked.off(), pytest.raises(ValueError, match=message):
        quantize(arguments.pop("x"), **arguments)

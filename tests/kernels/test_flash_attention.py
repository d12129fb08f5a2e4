"""Flash attention: every implementation against the definition, and what must hold of any attention.

The oracle is the reference in float64 on the same inputs (float32 for narrower ones), with its automatic derivative. An
implementation may err by twice what the reference errs in the dtype of the inputs, and one rounding of the largest
value: root mean squares, over output, log-sum-exp and each gradient.
"""

import dataclasses
import functools

import checked
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import H100, TPUS, compile_for
from compiled_kernels import kernels_in
from interpreted import interpreted
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtrain_kernels.flash_attention import (
    Blocks,
    api,
    combine,
    flash_attention,
    flash_attention_backward,
    gpu,
    reference,
    xla,
)
from tolerances import SAME_GRADIENT, assert_close


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A call; `bias` has a letter for each full axis; segments are lengths of documents, a row each."""

    L: int
    S: int | None = None
    heads: tuple[int, int] = (2, 2)
    dims: tuple[int, int] = (16, 16)
    dtype: str = "float32"
    bias: str | None = None
    sinks: bool = False
    segments: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    offset: int = 0
    traced: bool = False
    options: tuple[tuple[str, object], ...] = ()
    blocks: Blocks | None = None


B = 2
CASES = {
    "documents": Case(L=63, heads=(4, 2), dims=(16, 24), segments=((20, 0, 43), (63,)), blocks=Blocks(queries=16)),
    "window and cap in a loop": Case(
        L=257,
        heads=(2, 1),
        dtype="bfloat16",
        sinks=True,
        options=(("window", 30), ("softcap", 2.0)),
        blocks=Blocks(rows=B, queries=8, keys=32),
    ),
    "full, with bias": Case(
        L=100, S=63, heads=(4, 2), bias="HLS", sinks=True, options=(("causal", False),),
        blocks=Blocks(queries=32, keys=20)
    ),
    "rows that see nothing": Case(L=100, S=63, offset=-7, dims=(8, 16), options=(("scale", 0.7),)),
    "a token and its cache": Case(L=1, S=100, offset=80, traced=True, heads=(4, 1), dtype="float16"),
    "a window both ways": Case(
        L=100, segments=((40, 60), (1, 99)), dtype="bfloat16", options=(("causal", False), ("window", 9)), bias="BHLS",
        blocks=Blocks(queries=4, keys=48)
    ),
    "slopes": Case(
        L=63, heads=(4, 2), segments=((20, 43), (63,)), options=(("slopes", (0.5, 0.25, 0.1, 0.0)), ("causal", False)),
        blocks=Blocks(queries=16, keys=20)
    ),
    "slopes of a causal loop with a cap": Case(
        L=130, S=150, heads=(2, 1), offset=20, traced=True, options=(("slopes", (0.7, 0.01)), ("softcap", 3.0)),
        blocks=Blocks(queries=8, keys=32)
    ),
    "documents and padding of keys": Case(
        L=63, S=100, offset=37, traced=True, segments=((30, 33), (63,)), sinks=True, options=(("softcap", 5.0),),
        bias="BS", blocks=Blocks(keys=32)
    ),
}  # fmt: skip


TILES = Blocks(queries=128, keys=128)
TPU_CASES = {
    "documents, a window both ways, rows that see nothing": Case(
        L=150, S=200, heads=(2, 1), dims=(64, 128), segments=((100, 0, 50), (150,)),
        options=(("causal", False), ("window", 40), ("softcap", 2.0)), blocks=TILES
    ),
    "cache, bias and sinks": Case(
        L=63, S=200, offset=130, traced=True, dims=(128, 64), dtype="bfloat16", bias="HLS", sinks=True,
        options=(("window", 90),), blocks=TILES
    ),
}  # fmt: skip


def _arrays(case: Case) -> dict[str, np.ndarray]:
    S, (H, J), (K, V) = case.S or case.L, case.heads, case.dims
    random = np.random.default_rng(0)

    def normal(*shape, dtype=case.dtype):
        return np.asarray(jnp.asarray(random.standard_normal(shape), dtype))

    arrays = {"q": normal(B, case.L, H, K), "k": normal(B, S, J, K), "v": normal(B, S, J, V)}
    if case.bias is not None:
        full = dict(zip("BHLS", (B, H, case.L, S), strict=True))
        arrays["bias"] = normal(*(size if letter in case.bias else 1 for letter, size in full.items()))
    if case.sinks:
        arrays["sinks"] = normal(H, dtype="float32")
    arrays["do"] = normal(B, case.L, H, V)
    arrays["dlse"] = normal(B, case.L, H, dtype="float32")
    return arrays


def _options(case: Case) -> dict:
    options = dict(case.options) | {"offset": jnp.int32(case.offset) if case.traced else case.offset}
    if case.segments:
        ids = np.stack([np.repeat(np.arange(len(row)), row) for row in case.segments]).astype(np.int32)
        padded = np.pad(ids, ((0, 0), (0, case.S or 0)), constant_values=9)
        options |= {"segment_ids": ids, "key_segment_ids": padded[:, : case.S or case.L]}
    return options


def _plainly(q, k, v, bias, sinks, options):
    """Call the definition in the dtype of the inputs."""
    given = {"causal": True, "window": None, "softcap": None, "scale": None, "slopes": None, "offset": 0} | options
    ids = given.pop("segment_ids", None), given.pop("key_segment_ids", None)
    inputs, sinks = api._inputs(q, k, v, bias, sinks, *ids, given["offset"])
    o, lse = reference.flash_attention(inputs, sinks, api._options(q, **given, blocks=None))
    return o, lse.swapaxes(1, 2)


def _results(case: Case, implementation: str, dtype=None) -> dict[str, np.ndarray]:
    """Return output, log-sum-exp and gradients, computed on inputs of `dtype` (their own, if None)."""
    arrays = {name: x if dtype is None else x.astype(dtype) for name, x in _arrays(case).items()}
    do, dlse, given = arrays.pop("do"), arrays.pop("dlse"), _options(case)
    static = {name: given.pop(name) for name in list(given) if not isinstance(given[name], np.ndarray | jax.Array)}
    if implementation in ("xla", "tpu", "gpu"):
        static["blocks"] = case.blocks

    @jax.jit
    def run(arrays, given):
        def call(arrays):
            q, k, v, bias, sinks = (arrays.get(name) for name in ("q", "k", "v", "bias", "sinks"))
            if implementation == "plain":
                return _plainly(q, k, v, bias, sinks, static | given)
            options = static | given | {"bias": bias, "sinks": sinks, "implementation": implementation}
            return flash_attention(q, k, v, return_lse=True, **options)

        (o, lse), pull = jax.vjp(call, arrays)
        return {"o": o, "lse": lse} | pull((do.astype(o.dtype), dlse.astype(lse.dtype)))[0]

    return jax.tree.map(np.asarray, run(arrays, given))


@functools.cache
def _truth(case: Case) -> tuple[dict, dict]:
    """Return the oracle's results, and those of the same definition in the dtype of the inputs."""
    if case.dtype == "float32":
        with jax.enable_x64(True):
            oracle = _results(case, "reference", np.float64)
    else:
        oracle = _results(case, "reference", np.float32)
    return oracle, _results(case, "plain")


def _rms(x) -> float:
    return float(np.sqrt(np.mean(np.square(x))))


def assert_as_exact(actual: dict, oracle: dict, plain: dict, dtype: str) -> None:
    assert actual.keys() == oracle.keys()
    for name, desired in oracle.items():
        found, other, desired = (np.asarray(x[name], np.float64) for x in (actual, plain, oracle))
        assert found.shape == desired.shape, name
        nothing = np.isneginf(desired)
        assert (np.isneginf(found) == nothing).all(), name
        found, other, desired = (np.where(nothing, 0, x) for x in (found, other, desired))
        # Two roundings: of sinks, four sums of 200 terms, 0.8 of one was seen beyond the first term, with AVX-512.
        rounding = 2 * float(jnp.finfo(dtype).eps) * np.abs(desired).max()
        assert _rms(found - desired) <= 2 * _rms(other - desired) + rounding, name


@pytest.mark.parametrize("name", CASES)
def test_xla_is_as_exact_as_the_definition(name):
    assert_as_exact(_results(CASES[name], "xla"), *_truth(CASES[name]), CASES[name].dtype)


@pytest.mark.parametrize("name", TPU_CASES)
def test_tpu_is_as_exact_as_the_definition(name):
    with interpreted("tpu"):
        found = _results(TPU_CASES[name], "tpu")
    assert_as_exact(found, *_truth(TPU_CASES[name]), TPU_CASES[name].dtype)


def test_tpu_computes_no_tile_that_nothing_in_it_can_see():
    q, k, v = _random((1, 512, 1, 64), (1, 512, 1, 64), (1, 512, 1, 64))
    hidden = v.copy()
    hidden[:, :256] = np.nan  # seen from the last tile of queries, one is out of the window, one another document
    options = {"segment_ids": np.repeat([2, 1, 2], [128, 128, 256])[None], "window": 200, "blocks": TILES}
    with interpreted("tpu"):
        o = jax.jit(functools.partial(flash_attention, implementation="tpu", **options))(q, k, hidden)
    assert_close(o[:, 384:], flash_attention(q, k, v, **options)[:, 384:], SAME_GRADIENT)


@pytest.mark.parametrize("topology", TPUS)
def test_tpu_kernels_compile(topology):
    def shape(*sizes, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def gradient(q, k, v, bias, ids, offset):
        options = {"segment_ids": ids, "offset": offset, "window": 700, "softcap": 20.0, "implementation": "tpu"}

        def total(q, k, v, bias):
            return jnp.sum(flash_attention(q, k, v, bias=bias, **options).astype(jnp.float32))

        return jax.grad(total, argnums=(0, 1, 2, 3))(q, k, v, bias)

    keys = shape(1, 1024, 2, 128)
    integers = shape(1, 1024, dtype=jnp.int32), shape(dtype=jnp.int32)
    compiled = compile_for(topology, gradient, shape(1, 1024, 4, 128), keys, keys, shape(1, 4, 1024, 1024), *integers)
    assert kernels_in(compiled) == {f"flash_attention_{part}": 1 for part in ("forward", "dq", "dkv")}


def _random(*shapes, dtype=np.float32):
    random = np.random.default_rng(1)
    return [random.standard_normal(shape).astype(dtype) for shape in shapes]


QKV = ((B, 40, 4, 8), (B, 40, 2, 8), (B, 40, 2, 8))


def _gradient(function, *arrays):
    """Return results and gradients of a sum that every element of every result has its own part in."""

    def total(*arrays):
        results = function(*arrays)
        return sum(jnp.sum(jnp.sin(x + 1)) for x in jax.tree.leaves(results)), results

    return jax.jit(jax.value_and_grad(total, argnums=tuple(range(len(arrays))), has_aux=True))(*arrays)


def test_huge_scores_give_the_value_of_the_likeliest_key():
    q, [v] = 1e4 * np.eye(4, 6, dtype=np.float32)[None, :, None], _random((1, 4, 1, 6))
    assert_close(flash_attention(q, q, v), v, SAME_GRADIENT)


def test_a_sink_of_no_weight_changes_nothing_even_where_a_query_sees_no_key():
    attend = functools.partial(flash_attention, offset=-7)
    (_, without), gradients = _gradient(attend, *_random(*QKV))
    for sink in (-np.inf, -1e30, np.finfo(np.float32).min):
        sinks = np.full(4, sink, np.float32)
        (_, found), (*found_gradients, dsinks) = _gradient(
            lambda q, k, v, sinks: attend(q, k, v, sinks=sinks), *_random(*QKV), sinks
        )
        assert_close((found, tuple(found_gradients)), (without, gradients), SAME_GRADIENT)
        assert not np.any(dsinks)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_a_query_whose_bias_shuts_every_key_gives_zero(implementation):
    q, k, v = _random(*QKV)
    bias = np.where(np.arange(40) == 3, -1e30, 0).astype(np.float32)[None, None, :, None]
    o, lse = flash_attention(q, k, v, bias=bias, return_lse=True, implementation=implementation)
    assert not np.any(o[:, 3]) and np.all(np.isneginf(lse[:, 3])) and np.all(np.isfinite(lse[:, 4:]))


def test_packed_documents_are_what_they_are_alone():
    q, k, v = _random(*QKV)
    ids = np.repeat([1, 2, 3], [13, 7, 20])[None].repeat(B, 0)
    packed = _gradient(lambda q, k, v: flash_attention(q, k, v, segment_ids=ids, window=9), q, k, v)

    def alone(q, k, v):
        pieces = [slice(0, 13), slice(13, 20), slice(20, 40)]
        return jnp.concatenate([flash_attention(q[:, s], k[:, s], v[:, s], window=9) for s in pieces], axis=1)

    assert_close(packed, _gradient(alone, q, k, v), SAME_GRADIENT)


def test_the_size_of_blocks_changes_nothing():
    def run(blocks):
        attend = functools.partial(flash_attention, window=11, softcap=3.0, return_lse=True, blocks=blocks)
        return _gradient(attend, *_random(*QKV))

    whole = run(Blocks(rows=B, queries=40, keys=40))
    assert_close(run(Blocks(rows=1, queries=1, keys=7)), whole, SAME_GRADIENT)


@pytest.mark.parametrize(
    ("batch", "length", "heads", "rows"),
    [(12, 64, 4, 12), (64, 64, 4, 16), (16, 256, 8, 2), (13, 256, 4, 1), (4, 4096, 8, 1)],
)
def test_on_cpu_so_many_rows_are_computed_at_a_time_that_their_scores_fit_the_cache(batch, length, heads, rows):
    row = jax.ShapeDtypeStruct((batch, length, heads, 32), jnp.float32)
    assert xla.rows_at_once(xla.CPU, row, row) == rows


def test_two_halves_of_the_keys_combined_are_the_whole():
    q, k, v = _random(*QKV)

    def halves(q, k, v):
        def part(keys, first):
            return flash_attention(q, k[:, keys], v[:, keys], offset=-first, return_lse=True)

        return combine(part(slice(0, 24), 0), part(slice(24, None), 24))  # the first 24 queries see nothing of these

    whole = _gradient(lambda q, k, v: flash_attention(q, k, v, return_lse=True), q, k, v)
    assert_close(_gradient(halves, q, k, v), whole, SAME_GRADIENT)


def test_halves_of_the_queries_with_their_offsets_are_the_whole():
    q, k, v = _random(*QKV)

    def halves(q, k, v, second):
        attend = functools.partial(flash_attention, window=30)
        return jnp.concatenate([attend(q[:, :16], k, v), attend(q[:, 16:], k, v, offset=second)], axis=1)

    whole = jax.jit(lambda q, k, v: flash_attention(q, k, v, window=30))(q, k, v)
    assert_close(jax.jit(halves)(q, k, v, 16), whole, SAME_GRADIENT)


def test_the_backward_of_parts_from_the_whole_result_is_the_gradient():
    q, k, v, do, sinks = _random(*QKV, QKV[0], (4,))
    (o, lse), pull = jax.vjp(lambda *x: flash_attention(*x[:3], sinks=x[3], return_lse=True), q, k, v, sinks)
    parts = [
        flash_attention_backward(q, k[:, s], v[:, s], o, lse, do, sinks=sinks, offset=-s.start)
        for s in (slice(0, 24), slice(24, 40))
    ]
    dk, dv = (jnp.concatenate([getattr(part, name) for part in parts], axis=1) for name in "kv")
    together = (parts[0].q + parts[1].q, dk, dv, parts[0].sinks)
    assert_close(together, pull((do, jnp.zeros_like(lse))), SAME_GRADIENT)


def test_no_buffer_has_the_square_of_the_length_and_temporaries_grow_with_the_length():
    def temporaries(length):
        x = jax.ShapeDtypeStruct((1, length, 2, 64), jnp.bfloat16)
        step = jax.grad(lambda q, k, v: jnp.sum(flash_attention(q, k, v).astype(jnp.float32)), argnums=(0, 1, 2))
        return compile_for("v5e:2x2", step, x, x, x).memory_analysis().temp_size_in_bytes

    long = temporaries(32_768)
    assert long < 32_768**2  # of any dtype
    assert long < 2.2 * temporaries(16_384)


GPU_CASES = {
    "documents, a cache and sinks": Case(
        L=100, S=200, offset=80, traced=True, heads=(2, 1), dims=(128, 64), dtype="float16", sinks=True,
        segments=((60, 40), (100,)), options=(("window", 60), ("softcap", 2.0))
    ),
    "wide heads and a bias": Case(L=63, S=100, offset=37, heads=(2, 1), dims=(256, 256), dtype="bfloat16", bias="HLS"),
}  # fmt: skip


def _add_product_in_the_interpreter(acc, a, b):
    """The interpreter knows neither `run_state` nor a product with an operand in registers."""
    b = b[...]
    plgpu.commit_smem()  # wgmma would have read it as copies write it
    return acc + jnp.dot(a, b, preferred_element_type=jnp.float32)


@pytest.mark.parametrize("name", GPU_CASES)
def test_gpu_is_as_exact_as_the_definition(name, monkeypatch):
    monkeypatch.setattr(gpu, "add_product", _add_product_in_the_interpreter)
    with interpreted("gpu"):
        found = _results(GPU_CASES[name], "gpu")
    assert_as_exact(found, *_truth(GPU_CASES[name]), GPU_CASES[name].dtype)


@pytest.mark.parametrize(
    ("dims", "biased", "sums"), [((128, 64), False, ("dkv",)), ((256, 256), True, ("dk", "dv"))], ids=str
)
def test_gpu_kernels_compile(dims, biased, sums):
    def gradient(q, k, v, bias, ids, offset):
        options = {"segment_ids": ids, "offset": offset, "window": 700, "softcap": 20.0, "implementation": "gpu"}

        def total(q, k, v, bias):
            return jnp.sum(flash_attention(q, k, v, bias=bias, **options).astype(jnp.float32))

        return jax.grad(total, argnums=(0, 1, 2, 3) if biased else (0, 1, 2))(q, k, v, bias)

    q, k, v = (
        jax.ShapeDtypeStruct((1, 1000, heads, dim), jnp.bfloat16)
        for heads, dim in ((4, dims[0]), (2, dims[0]), (2, dims[1]))
    )
    bias = jax.ShapeDtypeStruct((1, 4, 1000, 1000), jnp.bfloat16) if biased else None
    integers = jax.ShapeDtypeStruct((1, 1000), jnp.int32), jax.ShapeDtypeStruct((), jnp.int32)
    compiled = compile_for(H100, gradient, q, k, v, bias, *integers)
    assert kernels_in(compiled) == {f"flash_attention_{part}": 1 for part in ("forward", "dq", *sums)}


@pytest.mark.parametrize(
    ("implementation", "said"),
    [
        ("tpu", "tpu: the key dim is 8, not 64, 128 or 256, the value dim is 8, not 64, 128 or 256$"),
        (
            "gpu",
            "gpu: q, k and v are float32, not float16 or bfloat16, as tensor cores take them, the key dim is 8, .*256$",
        ),
    ],
)
def test_a_kernel_says_why_it_does_not_take_a_call(implementation, said):
    with checked.off(), pytest.raises(NotImplementedError, match=said):
        flash_attention(*_random(*QKV), bias=np.zeros((1, 1, 1, 40), np.float32), implementation=implementation)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"window": 0}, "window=0: must be a whole number of at least 1"),
        ({"window": 2.5}, "window=2.5: must be a whole number of at least 1"),
        ({"softcap": 0.0}, "softcap=0.0: must be above 0"),
        ({"implementation": "cuda"}, "implementation='cuda': flash_attention has xla"),
        ({"bias": np.zeros((2, 3, 1, 1))}, r"bias has shape \(2, 3, 1, 1\): must be \(2, 4, 40, 40\)"),
        ({"sinks": np.zeros(2)}, r"sinks has shape \(2,\)"),
        ({"segment_ids": np.zeros((2, 39), int)}, r"segment_ids has shape \(2, 39\)"),
        (
            {name: np.zeros((2, 40, 3, 8), np.float32) for name in "kv"},
            "k has 3 heads: they must divide the 4 heads of q",
        ),
        ({"k": np.zeros((2, 9, 2, 8), np.float32)}, "v has shape"),
        ({"v": np.zeros((2, 40, 2, 8), np.float16)}, "one floating-point dtype"),
        ({"bias": np.zeros((1, 1, 40, 40), bool)}, "bias of dtype bool: give floats"),
        ({"offset": jnp.zeros(2, int)}, r"offset of shape \(2,\) and dtype int32: give one integer"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(change, said):
    arrays = dict(zip("qkv", _random(*QKV), strict=True))
    with checked.off(), pytest.raises(ValueError, match=said):
        flash_attention(**(arrays | change))


def _sharded_gradient(wrap, **options):
    q, k, v, sinks = _random(*QKV, (4,))
    ids = np.repeat([1, 2], [13, 27])[None].repeat(B, 0)

    def attend(q, k, v, sinks, ids):
        return flash_attention(q, k, v, sinks=sinks, segment_ids=ids, return_lse=True, **options)

    return _gradient(lambda q, k, v, sinks: wrap(attend)(q, k, v, sinks, ids), q, k, v, sinks)


def test_split_over_devices_by_hand_or_by_the_compiler_nothing_changes():
    mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=(AxisType.Auto,) * 2)
    alone = _sharded_gradient(lambda attend: attend)
    of_heads, of_rows = P("rows", None, "heads"), P("rows")
    by_hand = functools.partial(
        jax.shard_map, mesh=mesh, in_specs=(of_heads,) * 3 + (P("heads"), of_rows), out_specs=(of_heads, of_heads)
    )
    assert_close(_sharded_gradient(by_hand), alone, SAME_GRADIENT)

    def by_compiler(attend):
        def laid_out(q, k, v, *others):
            return attend(
                *(jax.lax.with_sharding_constraint(x, NamedSharding(mesh, of_heads)) for x in (q, k, v)), *others
            )

        return laid_out

    assert_close(_sharded_gradient(by_compiler, blocks=Blocks(rows=B)), alone, SAME_GRADIENT)

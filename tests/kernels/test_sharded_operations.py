"""Operations split over devices, by hand in a shard_map and by the compiler: nothing changes, kernels included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ahead_of_time import mesh_of
from compiled_kernels import kernels_in
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtrain_kernels.adamw_8bit import AdamW, adamw_8bit
from jaxtrain_kernels.block_quant import DynamicMap, dequantize, quantize
from jaxtrain_kernels.cross_entropy import cross_entropy
from jaxtrain_kernels.delta_rule import delta_rule
from jaxtrain_kernels.flash_attention import flash_attention
from jaxtrain_kernels.grouped_matmul import grouped_matmul
from jaxtrain_kernels.linear_attention import linear_attention
from tolerances import SAME_GRADIENT, assert_close

OF_HEADS = P("rows", None, "heads")
RULE = AdamW(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1)


def _recurrent(q, k, v, of_heads, of_steps, *, implementation="xla"):
    """Linear attention and the delta rule, with decays that some devices share."""
    decay, options = -jnp.exp(of_heads), {"implementation": implementation, "chunk_size": 16}
    linear = linear_attention(q, k, v, decay, **options)
    return linear, delta_rule(q, k, v, jax.nn.sigmoid(of_steps), decay, **options)


RECURRENT = (OF_HEADS, OF_HEADS, OF_HEADS, P("heads"), OF_HEADS)


def _drawn(batch: int, length: int, heads: int, width: int) -> list[np.ndarray]:
    random, steps = np.random.default_rng(0), (batch, length, heads)
    return [random.standard_normal(shape).astype(np.float32) / 4 for shape in (*[(*steps, width)] * 3, (heads,), steps)]


def _gradient(function, arrays):
    """Return gradients of a sum that every element of every result has its own part in, and the results."""

    def total(arrays):
        results = function(*arrays)
        return sum(jnp.sum(jnp.sin(x + 1)) for x in jax.tree.leaves(results)), results

    return jax.jit(jax.grad(total, has_aux=True))(arrays)


def _mesh():
    return jax.make_mesh((4, 2), ("rows", "heads"), axis_types=(AxisType.Auto,) * 2)


def _laid_out(arrays, specs):
    return [jax.device_put(x, NamedSharding(_mesh(), spec)) for x, spec in zip(arrays, specs, strict=True)]


def test_recurrent_operations_split_over_devices_are_those_of_one():
    arrays, results = _drawn(4, 20, 2, 8), (OF_HEADS, P("rows", "heads"))
    desired, split = _gradient(_recurrent, arrays), _laid_out(arrays, RECURRENT)
    by_hand = jax.shard_map(_recurrent, mesh=_mesh(), in_specs=RECURRENT, out_specs=(results,) * 2)
    assert_close(_gradient(by_hand, split), desired, SAME_GRADIENT, "by hand")
    _, of_one = desired
    assert_close(jax.jit(_recurrent)(*split), of_one, SAME_GRADIENT, "by the compiler")


@pytest.mark.parametrize("by", ["hand", "the compiler"])
def test_the_step_in_eight_bits_split_over_devices_is_that_of_one(by):
    spec, random = P("rows", "heads"), np.random.default_rng(0)
    w, dw = (random.standard_normal((32, 64)).astype(np.float32) for _ in range(2))
    formats = (dw, DynamicMap()), (jnp.square(dw), DynamicMap(signed=False))
    m, v = (quantize(x, format=format, block=(8, 32), axis=(-2, -1)) for x, format in formats)

    def step(w, dw, m, v):
        new, m, v = adamw_8bit(w, dw, m, v, rule=RULE, learning_rate=0.01, step=jnp.int32(3))
        return new, dequantize(m), dequantize(v)

    desired = jax.jit(step)(w, dw, m, v)
    if by == "hand":
        step = jax.shard_map(step, mesh=_mesh(), in_specs=(spec,) * 4, out_specs=(spec,) * 3)
    there = jax.device_put((w, dw, m, v), NamedSharding(_mesh(), spec))
    assert_close(jax.jit(step)(*there), desired, SAME_GRADIENT)


def test_cross_entropy_split_by_the_compiler_is_that_of_one_device():
    random = np.random.default_rng(0)
    x, head = (random.standard_normal(shape).astype(np.float32) for shape in ((16, 8), (64, 8)))
    targets = random.integers(0, 64, 16).astype(np.int32)

    def loss(x, head):
        return cross_entropy(x, head, targets, tile=16)

    desired = _gradient(loss, [x, head])
    assert_close(_gradient(loss, _laid_out([x, head], [P("rows"), P("heads")])), desired, SAME_GRADIENT)


def test_grouped_products_split_by_rows_and_columns_are_those_of_one_device():
    random, sizes = np.random.default_rng(0), np.array([[3, 0, 9], [0, 0, 0], [5, 11, 0], [1, 2, 3]], np.int32)
    x, weights = (random.standard_normal(shape).astype(np.float32) for shape in ((64, 8), (3, 8, 6)))

    def products(x, weights, sizes):
        return grouped_matmul(x, weights, sizes[0])

    def of_one(x, weights):
        return jnp.concatenate([grouped_matmul(x[16 * n : 16 * (n + 1)], weights, own) for n, own in enumerate(sizes)])

    specs = P("rows"), P(None, None, "heads"), P("rows")
    by_hand = jax.shard_map(products, mesh=_mesh(), in_specs=specs, out_specs=P("rows", "heads"))
    split = _laid_out([x, weights, sizes], specs)
    found = _gradient(lambda x, weights: by_hand(x, weights, split[2]), split[:2])
    assert_close(found, _gradient(of_one, [x, weights]), SAME_GRADIENT)


def _all_kernels(implementation: str, q, k, v, of_heads, of_steps, w):
    """Return results of every operation that has kernels, and gradients of those that have them."""

    def differentiable(*arrays):
        attended = flash_attention(*arrays[:3], implementation=implementation)
        by_channel = linear_attention(*arrays[:3], -jnp.exp(arrays[2]), implementation=implementation)
        rows, matrices = (x.reshape(-1, 128) for x in arrays[:2])
        products = grouped_matmul(rows, matrices[None], jnp.int32([100]), implementation=implementation)
        results = attended, by_channel, products, _recurrent(*arrays, implementation=implementation)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in jax.tree.leaves(results))

    gradients = jax.grad(differentiable, argnums=(0, 1, 2, 3, 4))(q, k, v, of_heads, of_steps)
    m = quantize(w, format=DynamicMap(), block=(8, 32), axis=(-2, -1), implementation=implementation)
    step = adamw_8bit(w, w, m, m, rule=RULE, learning_rate=0.1, step=1, implementation=implementation)
    return gradients, dequantize(step.m, implementation=implementation)


def _split_kernels(implementation: str, mesh):
    """Return every kernel inside a shard_map that checks what varies over the mesh, and the shapes of its arrays."""
    specs, kinds = (*RECURRENT, P("rows", "heads")), (*[jnp.bfloat16] * 3, *[jnp.float32] * 3)
    shapes = [x.shape for x in _drawn(2, 128, 4, 64)] + [(64, 512)]
    function = functools.partial(_all_kernels, implementation)
    split = jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=(RECURRENT, P("rows", "heads")))
    arrays = zip(shapes, kinds, specs, strict=True)
    return split, [jax.ShapeDtypeStruct(x, kind, sharding=NamedSharding(mesh, spec)) for x, kind, spec in arrays]


def test_tpu_kernels_split_by_hand_compile_and_each_is_in_the_program():
    function, arrays = _split_kernels("tpu", mesh_of("v5e:2x2", (2, 2), ("rows", "heads")))
    found = kernels_in(jax.jit(function).lower(*arrays).compile())
    recurrent = [f"{name}_{part}" for name in ("linear_attention", "delta_rule") for part in ("states", "backward")]
    attention = [f"flash_attention_{part}" for part in ("forward", "dq", "dkv")]
    of_moments = ["block_quantize", "adamw_8bit", "block_dequantize"]
    products = ["grouped_matmul_transposed", "transposed_grouped_matmul"]
    expected = *recurrent, *attention, *of_moments, *products
    assert found == {name: 2 if "linear" in name else 1 for name in expected}


def test_gpu_kernels_have_the_types_of_a_shard_map():
    mesh = jax.make_mesh((2, 2), ("rows", "heads"), axis_types=(AxisType.Auto,) * 2)
    function, arrays = _split_kernels("gpu", mesh)
    gradients, moments = jax.eval_shape(function, *arrays)
    assert [x.shape for x in (*gradients, moments)] == [x.shape for x in arrays]

"""A linear whose products are of eight-bit integers. Xi et al. (2024, Jetfire), arXiv:2403.12422.

Activations and weights are quantized in squares of 32 x 32, and the products of squares are added in int32. Blocks of
activations lie within a row, so no result depends on the mesh or on microbatches. Deviation: the gradient passes the
quantization straight through (Bengio et al., 2013, arXiv:1308.3432) and is not quantized itself. Both its products are
of the dequantized codes, in the dtype of the activations; eight bits are kept for them.
"""

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtrain_kernels import block_quant
from jaxtrain_kernels.block_quant import QuantizedArray, dequantize, quantize
from jaxtyping import Array, Float, Int

from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.linear.dense import Dense, multiply
from jaxtrain.sharding import axis_size

BLOCK = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Int8(LinearConfig):
    """Q(x) Q(w) + bias, with weights that are trained in their own dtype."""

    paper: ClassVar[str] = "arXiv:2403.12422"

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "_Int8":
        return _Int8(inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)

    def check_head(self) -> None:
        raise ValueError("head.linear=Int8(): the head multiplies with its table in tiles, not in int8; use Dense()")


class _Int8(Linear):
    def __init__(self, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs):
        self.inputs, self.outputs, self.outputs_first = inputs, outputs, outputs_first
        self.weight = Dense().build(inputs, outputs, outputs_first=outputs_first, rngs=rngs)
        self.bias = bias_of(outputs) if bias else None

    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        x_BLK = x.reshape(*x.shape[:2], -1)
        y_BLN = multiply_int8(x_BLK, self._matrix(), shards=axis_size(self.inputs[0][1]))
        return y_BLN.reshape(*x.shape[:2], *(size for size, _ in self.outputs))

    def grouped(self, x: Float[Array, "N ..."], sizes: Int[Array, " E"]) -> Float[Array, "N ..."]:
        raise ValueError(
            "linear=Int8(): products of sorted rows do not quantize activations; take dispatch=@EveryExpert() or "
            "@Capacity()"
        )

    def dense(self) -> Float[Array, "..."]:
        """Return the matrix that the codes stand for. Its gradient is that of the weights."""
        w = self._matrix()
        codes = dequantize(_quantized(w))[: w.shape[0], : w.shape[1]].astype(w.dtype)
        w = w + jax.lax.stop_gradient(codes - w)
        return (w.T if self.outputs_first else w).reshape(self.weight.dense().shape)

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        self.weight.set_dense(matrix)

    def _matrix(self) -> Float[Array, "K N"]:
        w = self.weight.dense()
        if self.outputs_first:
            return w.reshape(self._size(self.outputs), -1).T
        return w.reshape(self._size(self.inputs), -1)

    @staticmethod
    def _size(side: Side) -> int:
        return math.prod(size for size, _ in side)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def multiply_int8(x: Float[Array, "B L K"], w: Float[Array, "K N"], shards: int = 1) -> Float[Array, "B L N"]:
    """Return Q(x) Q(w) in the dtype of x: products in int32, scaled and added in float32.

    `shards` devices have the inputs: each adds its own, and the sums are added once.
    """
    return _forward(x, w, shards)[0]


def _forward(x: Float[Array, "B L K"], w: Float[Array, "K N"], shards: int):
    x_quantized, w_quantized = _quantized(x), _quantized(w)
    y = _product(x_quantized, w_quantized, shards)[:, : x.shape[1], : w.shape[1]].astype(x.dtype)
    # Arrays of no elements carry shapes and dtypes to the backward.
    return y, (x_quantized, w_quantized, jnp.zeros((0, *x.shape), x.dtype), jnp.zeros((0, *w.shape), w.dtype))


def _backward(shards: int, residuals, dy: Float[Array, "B L N"]):
    x_quantized, w_quantized, like_x, like_w = residuals
    (_, L, K), (_, N) = like_x.shape[1:], like_w.shape[1:]
    x = dequantize(x_quantized, dtype=dy.dtype)[:, :L, :K]
    w = dequantize(w_quantized, dtype=dy.dtype)[:K, :N]
    dx = multiply(dy, w, outputs_first=True)
    dw = jax.lax.dot_general(x.reshape(-1, K), dy.reshape(-1, N), (((0,), (0,)), ((), ())))
    return dx.astype(like_x.dtype), dw.astype(like_w.dtype)


multiply_int8.defvjp(_forward, _backward)


def _quantized(x: Float[Array, "... R C"]) -> QuantizedArray:
    """Return squares of the last two axes, which are padded to whole ones with zeros."""
    missing = [(0, 0)] * (x.ndim - 2) + [(0, -size % BLOCK) for size in x.shape[-2:]]
    return quantize(jnp.pad(x, missing), format=block_quant.Int8(), block=(BLOCK, BLOCK), axis=(-2, -1))


def _product(x: QuantizedArray, w: QuantizedArray, shards: int) -> Float[Array, "B L N"]:
    """Return the product of quantized arrays, float32. One step for every block of the inputs that a shard has."""
    (B, L, K), N = x.codes.shape, w.codes.shape[1]
    steps = K // BLOCK
    shards = shards if steps % shards == 0 else 1

    def by_step(part: Array, axis: int) -> Array:
        """Return an array with its axis of blocks in two, [steps, shards, ...], before all others."""
        shape = (*part.shape[:axis], shards, steps // shards, *part.shape[axis + 1 :])
        return jnp.moveaxis(part.reshape(shape), (axis + 1, axis), (0, 1))

    def add(total: Float[Array, "S B L N"], step: tuple[Array, ...]):
        x_codes, x_scales, w_codes, w_scales = step
        part_SBLN = jax.lax.dot_general(
            x_codes, w_codes, (((3,), (1,)), ((0,), (0,))), preferred_element_type=jnp.int32
        )
        row_SBL1 = jnp.repeat(x_scales, BLOCK, axis=-1)[..., None]
        column_S11N = jnp.repeat(w_scales, BLOCK, axis=-1)[:, None, None]
        return total + part_SBLN.astype(jnp.float32) * (row_SBL1 * column_S11N), None

    blocks = (
        by_step(x.codes.reshape(B, L, steps, BLOCK), 2),
        by_step(x.scales, 2),
        by_step(w.codes.reshape(steps, BLOCK, N), 0),
        by_step(w.scales, 0),
    )
    total, _ = jax.lax.scan(add, jnp.zeros((shards, B, L, N), jnp.float32), blocks)
    return jnp.sum(total, axis=0) / np.float32(block_quant.Int8.steps**2)

"""A frozen linear in four bits: NormalFloat4. Dettmers et al. (2023), arXiv:2305.14314.

Codes are gathered over devices, and each layer dequantizes its own. Blocks lie along the model width. Where the mesh
does not divide their number, scales are replicated. `LoRA(base=NF4())` with
`trainable = Adapters()` is QLoRA. Left out: quantization of the scales.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from flax import nnx
from jaxtrain_kernels.block_quant import Blocks, NormalFloat4, QuantizedArray, dequantize, quantize
from jaxtyping import Array, Float

from jaxtrain.axes import Axes, Kind
from jaxtrain.nn.linear.base import Linear, LinearConfig, Side, bias_of
from jaxtrain.nn.linear.dense import Dense, multiply
from jaxtrain.nn.param import Frozen
from jaxtrain.ranges import check_at_least_one


@dataclass(frozen=True, kw_only=True, slots=True)
class NF4(LinearConfig):
    """x dequantize(codes, scales) + bias, one scale for each `block` weights. No gradient reaches the weights."""

    block: int = 64
    paper: ClassVar[str] = "arXiv:2305.14314"

    def __post_init__(self):
        check_at_least_one(self, "block")

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "_NF4":
        return _NF4(self, inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)


class _NF4(Linear):
    def __init__(self, config: NF4, inputs: Side, outputs: Side, *, bias: bool, outputs_first: bool, rngs: nnx.Rngs):
        self.inputs, self.outputs_first, self.block = len(inputs), outputs_first, config.block
        names = tuple(name for _, name in ((*outputs, *inputs) if outputs_first else (*inputs, *outputs)))
        self.axis = names.index("embed") - len(names) if "embed" in names else -1
        of_scales = tuple(f"{name}_blocks" if name == "embed" else name for name in names)
        initial = Dense().build(inputs, outputs, outputs_first=outputs_first, rngs=rngs).dense()
        q = self._quantized(initial)
        self.codes = Frozen(q.codes, axes=Axes(names, Kind.CODES, cast=False))
        self.scales = Frozen(q.scales, axes=Axes(of_scales, Kind.VECTOR, cast=False))
        self.bias = bias_of(outputs) if bias else None

    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        # A checkpoint, so that the backward keeps the codes and not the dequantized weights.
        return jax.checkpoint(self._product)(x, self.codes[...], self.scales[...])

    def _product(self, x: Float[Array, "B L ..."], codes: Array, scales: Array) -> Float[Array, "B L ..."]:
        w = self._dequantized(codes, scales).astype(x.dtype)
        return multiply(x, w, inputs=self.inputs, outputs_first=self.outputs_first)

    def dense(self) -> Float[Array, "..."]:
        return self._dequantized(self.codes[...], self.scales[...])

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        """Quantize the matrix."""
        q = self._quantized(matrix)
        self.codes[...], self.scales[...] = q.codes, q.scales

    def _quantized(self, matrix: Float[Array, "..."]) -> QuantizedArray:
        return quantize(matrix, format=NormalFloat4(), block=self.block, axis=self.axis)

    def _dequantized(self, codes: Array, scales: Array) -> Float[Array, "..."]:
        blocks = Blocks(sizes=(self.block,), axes=(self.axis,))
        q = QuantizedArray(codes=codes, scales=scales, exponents=None, format=NormalFloat4(), blocks=blocks)
        return dequantize(q)

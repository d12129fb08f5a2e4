"""Block quantization: small codes and one scale a block, in eight and four bits."""

from jaxtrain_kernels.block_quant.api import dequantize, quantize
from jaxtrain_kernels.block_quant.array import Blocks, QuantizedArray
from jaxtrain_kernels.block_quant.formats import (
    DynamicMap,
    Float8E4M3,
    Float8E5M2,
    Format,
    Int4,
    Int8,
    NormalFloat4,
)

__all__ = [
    "Blocks",
    "DynamicMap",
    "Float8E4M3",
    "Float8E5M2",
    "Format",
    "Int4",
    "Int8",
    "NormalFloat4",
    "QuantizedArray",
    "dequantize",
    "quantize",
]

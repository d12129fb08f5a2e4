"""The XLA implementation: the whole step as elementwise arithmetic around two reductions a moment, fused by XLA."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain_kernels.adamw_8bit.rule import AdamW, AdamWStep, new_moments, update
from jaxtrain_kernels.block_quant import xla
from jaxtrain_kernels.block_quant.array import QuantizedArray


@functools.partial(jax.jit, static_argnames="rule")
def adamw_8bit(
    parameter: Float[Array, "..."],
    gradient: Float[Array, "..."],
    m: QuantizedArray,
    v: QuantizedArray,
    s: Float[Array, "3"],
    *,
    rule: AdamW,
) -> AdamWStep:
    """Return the step; see api.adamw_8bit."""
    p, g = parameter.astype(jnp.float32), gradient.astype(jnp.float32)
    m_new, v_new = new_moments(rule, xla.dequantize(m), xla.dequantize(v), g)
    return AdamWStep(
        update(rule, m_new, v_new, p, tuple(s)).astype(parameter.dtype),
        xla.quantize(m_new, format=m.format, blocks=m.blocks, noise=None),
        xla.quantize(v_new, format=v.format, blocks=v.blocks, noise=None, lifted=True),
    )

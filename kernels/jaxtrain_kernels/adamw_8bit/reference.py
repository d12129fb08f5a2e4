"""The definition: dequantize both moments, AdamW's rule, quantize both."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain_kernels.adamw_8bit.rule import AdamW, AdamWStep, new_moments, update
from jaxtrain_kernels.block_quant import reference
from jaxtrain_kernels.block_quant.array import QuantizedArray


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
    m_new, v_new = new_moments(rule, reference.dequantize(m), reference.dequantize(v), g)
    return AdamWStep(
        update(rule, m_new, v_new, p, tuple(s)).astype(parameter.dtype),
        reference.quantize(m_new, format=m.format, blocks=m.blocks, noise=None),
        reference.quantize(_lift(v_new, v), format=v.format, blocks=v.blocks, noise=None),
    )


def _lift(v_new: Float[Array, "..."], v: QuantizedArray) -> Float[Array, "..."]:
    """Return second moments; those above 0 are at least the smallest value. In an expanded block none rounds to 0."""
    if v.format.expands:
        return v_new
    split, inner = reference.split(v_new, v.blocks)
    finite = jnp.where(jnp.isfinite(split), split, 0.0)
    least = jnp.minimum(jnp.max(finite, axis=inner, keepdims=True), 2.0**126) * v.format.least  # of the scale
    return reference.join(jnp.where(split > 0, jnp.maximum(split, least), split), v_new.shape, v.blocks)

"""AdamW with 8-bit moments: dequantize, update and quantize again in one pass.

Dettmers et al. (2022), arXiv:2110.02861, with their dynamic map; with FP8 formats, Xi et al. (2025, COAT),
arXiv:2410.19313. One deviation: a second moment above 0 never rounds to 0, but to the smallest value of the format.
With the published rounding the first moment would be divided by epsilon alone. Left out: the stable embedding layer,
and quantiles.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.adamw_8bit import gpu, reference, tpu, xla
from jaxtrain_kernels.adamw_8bit.rule import AdamW, AdamWStep, scalars
from jaxtrain_kernels.block_quant.array import QuantizedArray
from jaxtrain_kernels.block_quant.formats import DynamicMap
from jaxtrain_kernels.choice import Implementation, choose
from jaxtrain_kernels.varying import alike

IMPLEMENTATIONS = (
    Implementation(name="xla", run=xla.adamw_8bit),
    Implementation(name="tpu", run=tpu.adamw_8bit, refuses=tpu.refuses, proven=False),
    Implementation(name="gpu", run=gpu.adamw_8bit, refuses=gpu.refuses, proven=False),
    Implementation(name="reference", run=reference.adamw_8bit),
)


def adamw_8bit(
    parameter: Float[Array, "..."],
    gradient: Float[Array, "..."],
    m: QuantizedArray,
    v: QuantizedArray,
    *,
    rule: AdamW,
    learning_rate: Float[Array, ""] | float,
    step: Int[Array, ""] | int,
    implementation: str | None = None,
) -> AdamWStep:
    """Return the update, which is added to the parameter, and the new moments. `step` counts from 1.

    The update is computed in float32 from the new moments before they are quantized. Where the gradient is NaN, the
    update is NaN and the moments become 0. Not differentiable.

        zeros = jnp.zeros_like(w)
        m, v = quantize(zeros, format=DynamicMap()), quantize(zeros, format=DynamicMap(signed=False))
        rule = AdamW(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1)
        update, m, v = adamw_8bit(w, dw, m, v, rule=rule, learning_rate=1e-3, step=1)

    Raises:
        ValueError: the arrays differ in shape, or the moments in their blocks; the first moment has no sign; the
            parameter or the gradient are no floats.
        NotImplementedError: no implementation, or not the one named, takes the call; each with its reasons.
    """
    shapes = {name: x.shape for name, x in (("gradient", gradient), ("m", m), ("v", v))}
    if wrong := [f"{name} {shape}" for name, shape in shapes.items() if shape != parameter.shape]:
        raise ValueError(f"a parameter of shape {parameter.shape} with {', '.join(wrong)}: give the same shape to all")
    if m.blocks != v.blocks:
        raise ValueError(f"m has {m.blocks}, v {v.blocks}: quantize both moments in the same blocks")
    if m.format == DynamicMap(signed=False):
        raise ValueError(f"m is in {m.format}, which has no sign: give it a signed format, and this one to v")
    if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in (parameter, gradient)):
        raise ValueError(f"a parameter of dtype {parameter.dtype}, a gradient of {gradient.dtype}: give floats")
    arguments = (parameter, gradient, m, v, scalars(rule, jnp.asarray(learning_rate), step))
    leaves, structure = jax.tree.flatten(jax.lax.stop_gradient(arguments))
    arguments = jax.tree.unflatten(structure, alike(*leaves))
    chosen = choose("adamw_8bit", IMPLEMENTATIONS, implementation, *arguments, rule=rule)
    return chosen.run(*arguments, rule=rule)

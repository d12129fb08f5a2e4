"""AdamW with both moments in eight bits. Dettmers et al. (2022), arXiv:2110.02861; with FP8, arXiv:2410.19313 (COAT).

In every step the moments of a parameter are dequantized, updated and quantized again in one pass, so no 32-bit moments
are ever held. Tables that tokens look up, and tensors under 4,096 elements a layer, keep moments of 32 bits. Left out:
the stable embedding layer of the paper, which changes the model.

A block is 256 elements: 8 x 32 over the longest other axis and the last one, rather than 256 along the last. So shards
hold whole blocks on the meshes that are used, and scales are sharded like codes. Where a shard does not hold whole
blocks, the result is the same, and only scales are moved between devices.
"""

import functools
import math
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtrain_kernels.adamw_8bit import IMPLEMENTATIONS, adamw_8bit
from jaxtrain_kernels.adamw_8bit import AdamW as Rule
from jaxtrain_kernels.block_quant import Blocks, Format, QuantizedArray, quantize
from jaxtrain_kernels.choice import check_named
from jaxtyping import Array, Float, Int

from jaxtrain.axes import STACK, Axes, Kind
from jaxtrain.optim.base import Optimizer
from jaxtrain.optim.moments.base import Moments
from jaxtrain.optim.moments.dynamic import DynamicMoments
from jaxtrain.optim.schedules import Schedule
from jaxtrain.ranges import check_decay, check_not_negative, check_positive
from jaxtrain.sharding import on_each_shard

LEAST_ELEMENTS = 4096
BLOCK_ELEMENTS = 256
BLOCK_WIDTH = 32

Moment = QuantizedArray | Array


class AdamW8bitState(NamedTuple):
    """The moments: quantized arrays, or plain ones for parameters that are small or looked up."""

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count; optax and checkpoints have this name
    m: dict
    v: dict


@dataclass(frozen=True, kw_only=True, slots=True)
class AdamW8bit(Optimizer):
    """AdamW in about a quarter of its memory; `moments` chooses the format of the moments.

    `implementation` names a kernel that is not yet the default of the device. Each device runs it on its own shards.
    """

    learning_rate: Schedule
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    moments: Moments = DynamicMoments()
    implementation: str | None = None
    paper: ClassVar[str] = "arXiv:2110.02861"

    def __post_init__(self):
        check_decay(self, "b1", "b2")
        check_positive(self, "epsilon")
        check_not_negative(self, "weight_decay")
        check_named("adamw_8bit", IMPLEMENTATIONS, self.implementation)

    def build(self, rate: optax.Schedule, axes: dict) -> optax.GradientTransformation:
        def init(params: dict) -> AdamW8bitState:
            m, v = (_zeros(format, axes, params) for format in self.moments.formats)
            return AdamW8bitState(jnp.zeros((), jnp.int32), m, v)

        def update(gradients: dict, state: AdamW8bitState, params: dict) -> tuple[dict, AdamW8bitState]:
            step, learning_rate = state.count + 1, rate(state.count)

            def one(parameter, gradient, m, v, facts):
                weight_decay = self.weight_decay if facts.decays else 0.0
                rule = Rule(b1=self.b1, b2=self.b2, epsilon=self.epsilon, weight_decay=weight_decay)
                options = {"rule": rule, "learning_rate": learning_rate, "step": step}
                if not isinstance(m, QuantizedArray):
                    return tuple(_adamw_32bit(parameter, gradient, m, v, **options))
                run = functools.partial(adamw_8bit, implementation=self.implementation, **options)
                if self.implementation:
                    return tuple(on_each_shard(run, facts.names, parameter, gradient, m, v))
                return tuple(run(parameter, gradient, m, v))

            treedef: Any = jax.tree.structure(params)  # JAX's stubs declare no methods of a PyTreeDef
            trees = (params, gradients, state.m, state.v, axes)
            results = [one(*leaves) for leaves in zip(*(treedef.flatten_up_to(tree) for tree in trees), strict=True)]
            updates, m, v = (treedef.unflatten(column) for column in zip(*results, strict=True))
            return updates, AdamW8bitState(step, m, v)

        return optax.GradientTransformation(init, update)


def _adamw_32bit(
    parameter: Float[Array, "..."],
    gradient: Float[Array, "..."],
    m: Float[Array, "..."],
    v: Float[Array, "..."],
    *,
    rule: Rule,
    learning_rate: Float[Array, ""],
    step: Int[Array, ""],
) -> tuple[Array, Array, Array]:
    """Return the update and the new moments, as `adamw_8bit` does, for plain moments."""
    m = rule.b1 * m + (1 - rule.b1) * gradient
    v = rule.b2 * v + (1 - rule.b2) * jnp.square(gradient)
    direction = (m / (1 - rule.b1**step)) / (jnp.sqrt(v / (1 - rule.b2**step)) + rule.epsilon)
    return -learning_rate * (direction + rule.weight_decay * parameter), m, v


def _zeros(format: Format, axes: dict, params: dict) -> dict:
    """Return moments of zero: quantized, or plain where they keep 32 bits."""

    def one(facts: Axes, parameter: Array) -> Moment:
        # Without the barrier the compiler quantizes the zeros itself, which takes it seconds.
        zeros = jax.lax.optimization_barrier(jnp.zeros_like(parameter))
        blocks = blocks_of(facts, parameter.shape)
        return zeros if blocks is None else quantize(zeros, format=format, block=blocks.sizes, axis=blocks.axes)

    return jax.tree.map(one, axes, params)


def blocks_of(axes: Axes, shape: tuple[int, ...]) -> Blocks | None:
    """Return the blocks of a parameter's moments; None where they keep 32 bits."""
    of_layer = [axis for axis, name in enumerate(axes.names) if name != STACK]  # a stack has one tensor for each layer
    if axes.kind is Kind.TABLE or math.prod(shape[axis] for axis in of_layer) < LEAST_ELEMENTS:
        return None
    *others, last = (axis - len(shape) for axis in of_layer)
    if not others:
        return Blocks(sizes=(BLOCK_ELEMENTS,), axes=(last,))
    width = min(BLOCK_WIDTH, shape[last])
    longest = max(others, key=lambda axis: (shape[axis], axis))
    return Blocks(sizes=(BLOCK_ELEMENTS // width, width), axes=(longest, last))

"""Fully sharded parameters: stored in shards, gathered where a layer uses them, gradients scattered to the shards.

Rajbhandari et al. (2020), arXiv:1910.02054 (stage 3), written as constraints: the compiler chooses the collectives.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import primal_tangent_dtype

from jaxtrain.axes import Axes
from jaxtrain.mesh import OUTER
from jaxtrain.sharding import axis_size, parameter_spec

GATHERED = ("fsdp", OUTER, "expert")  # over which parameters are stored in shards; experts stay split over `expert`


def lay_out(params, axes):
    """Return a tree of parameters, or of their gradients, constrained to the layout of the shards."""
    return jax.tree.map(lambda facts, w: _place(w, facts.names, ()), axes, params)


def _place(x: jax.Array, names: tuple, drop: tuple[str, ...]) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, parameter_spec(names, x.shape, mesh, drop=drop))


def _whole(w: jax.Array, names: tuple) -> jax.Array:
    """Return a parameter gathered over one mesh axis after another, the last first, while the pieces are small."""
    for first in reversed(range(len(GATHERED))):
        w = _place(w, names, GATHERED[first:])
    return w


def of_repeat(params, repeat: jax.Array):
    """Return one repeat of stacked parameters, sent to all stages by the stage that stores it.

    A plain `stack[repeat]` makes XLA all-gather the whole stack in every iteration.
    """
    stages = axis_size("repeats")

    def one(stack):
        if stages == 1 or len(stack) % stages:
            return stack[repeat]
        by_stage = stack.reshape(stages, -1, *stack.shape[1:])
        at_stage, index = repeat // by_stage.shape[1], repeat % by_stage.shape[1]
        is_stored = jnp.arange(stages).reshape(-1, *(1,) * (stack.ndim - 1)) == at_stage
        parts = jnp.where(is_stored, jax.lax.dynamic_index_in_dim(by_stage, index, axis=1, keepdims=False), 0)
        return jax.lax.reduce(parts, jnp.zeros((), parts.dtype), jax.lax.add, (0,))

    return jax.tree.map(one, params)


def narrow_gradients(params, axes, dtype):
    """Return the parameters unchanged. Gradients of those that a gather casts are in `dtype`, not in the parameter's.

    These gradients are computed and summed over devices in the compute dtype, so keeping them in it loses nothing. The
    stack of gradients that a scan over stacked parameters builds is the largest buffer of a train step. Called before
    the scan, this makes it take half the memory in bf16. The stack is widened after the scan, where it is read.
    """
    return jax.tree.map(lambda facts, w: _narrow_gradient(w, np.dtype(dtype)) if facts.cast else w, axes, params)


def _narrow_gradient(w: jax.Array, dtype: np.dtype) -> jax.Array:
    if jnp.issubdtype(w.dtype, jax.dtypes.extended) or w.dtype == dtype:
        return w
    return jax.lax.convert_element_type(w, primal_tangent_dtype(w.dtype, dtype))


def narrow(params, axes, dtype):
    """Return the parameters cast as a gather casts them: a copy, so call it only where they are copied anyway."""
    return jax.tree.map(lambda facts, w: w.astype(dtype) if facts.cast else w, axes, params)


def gather(params, axes, dtype):
    """Return parameters ready for use: whole along `fsdp`, and in the compute dtype where they may be cast.

    Call it where a layer uses its parameters: inside the scan over layers only one layer is then whole at a time.
    Vectors (norm scales, biases) keep their dtype. Gradients come back in the layout of the shards.
    """

    def one(facts: Axes, w):
        to = np.dtype(dtype) if facts.cast else w.dtype
        if not jnp.issubdtype(to, jnp.floating):
            return _whole(w, facts.names)
        return _gather(_narrow_gradient(w, to), facts.names, to)

    return jax.tree.map(one, axes, params)


def scatter_gradients(gradients, axes):
    """Return the gradients of gathered parameters, summed over devices into the layout of the shards."""
    return jax.tree.map(lambda facts, dw: _scatter(dw, facts.names), axes, gradients)


def _scatter(dw: jax.Array, names: tuple) -> jax.Array:
    # The transpose of a constraint is the same constraint, which would all-reduce whole gradients. A constraint of the
    # gradient to the layout of the shards lets the compiler reduce-scatter it.
    for first in range(1, len(GATHERED) + 1):
        dw = _place(dw, names, GATHERED[first:])
    return dw


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w, names, dtype):
    # The first constraint makes the cast run on the shards, so that the all-gathers move values in `dtype`.
    return _whole(_place(_round(jax.lax.convert_element_type(w, jnp.float32), dtype), names, ()), names)


def _gather_forward(w, names, dtype):
    return _gather(w, names, dtype), None


def _gather_backward(names, dtype, _, dw):
    return (_scatter(dw, names),)


_gather.defvjp(_gather_forward, _gather_backward)


def _round(w: jax.Array, dtype: np.dtype) -> jax.Array:
    # XLA hoists a plain cast of the stacked weights out of the scan over layers, and so keeps a second copy of all of
    # them. It leaves reduce_precision, which rounds to the same bits, where it is.
    if dtype == jnp.bfloat16:
        w = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return w.astype(dtype)

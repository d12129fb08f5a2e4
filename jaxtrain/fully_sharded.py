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

GATHERED = ("fsdp", OUTER)  # axes over which a parameter is stored in shards and gathered for use, the last first


def lay_out(params, axes):
    """Lay a tree of parameters, or of their gradients, out in shards."""
    return jax.tree.map(lambda own, w: _place(w, own.names, ()), axes, params)


def _place(x: jax.Array, names: tuple, drop: tuple[str, ...]) -> jax.Array:
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.empty else jax.lax.with_sharding_constraint(x, parameter_spec(names, x.shape, mesh, drop=drop))


def of_repeat(params, repeat: jax.Array):
    """Return one repeat of stacked parameters, sent to all stages by the stage that stores it.

    A plain `stack[repeat]` makes XLA all-gather the whole stack in every iteration.
    """
    stages = axis_size("repeats")

    def one(stack):
        if stages == 1 or len(stack) % stages:
            return stack[repeat]
        by_stage = stack.reshape(stages, -1, *stack.shape[1:])
        at_stage, position = repeat // by_stage.shape[1], repeat % by_stage.shape[1]
        there = jnp.arange(stages).reshape(-1, *(1,) * (stack.ndim - 1)) == at_stage
        own = jnp.where(there, jax.lax.dynamic_index_in_dim(by_stage, position, axis=1, keepdims=False), 0)
        return jax.lax.reduce(own, jnp.zeros((), own.dtype), jax.lax.add, (0,))

    return jax.tree.map(one, params)


def narrow_gradients(params, axes, dtype):
    """Return the same parameters; gradients of those that a gather casts are in `dtype` rather than in their own.

    They are computed and summed over devices in the compute dtype, so that widening them loses and gains nothing. Done
    before a scan over stacked parameters, the stack of their gradients, the largest buffer of a train step, takes half
    the memory in bf16; it is widened behind the scan, where it is read.
    """

    return jax.tree.map(lambda own, w: _narrow_gradient(w, np.dtype(dtype)) if own.cast else w, axes, params)


def _narrow_gradient(w: jax.Array, dtype: np.dtype) -> jax.Array:
    if jnp.issubdtype(w.dtype, jax.dtypes.extended) or w.dtype == dtype:
        return w
    return jax.lax.convert_element_type(w, primal_tangent_dtype(w.dtype, dtype))


def narrow(params, axes, dtype):
    """Return the parameters as a gather casts them, for where a copy of them is made anyway."""
    return jax.tree.map(lambda own, w: w.astype(dtype) if own.cast else w, axes, params)


def gather(params, axes, dtype):
    """Return parameters ready for use: those that may be cast in the compute dtype, all of them whole along `fsdp`.

    Called where a layer uses its parameters, so inside the scan over layers only one layer is whole at a time.
    Vectors (norm scales, biases) keep their dtype. Gradients come back in the layout of the shards.
    """

    def one(own: Axes, w):
        to = np.dtype(dtype) if own.cast else w.dtype
        if not jnp.issubdtype(to, jnp.floating):
            return _place(_place(w, own.names, GATHERED[1:]), own.names, GATHERED)
        return _gather(_narrow_gradient(w, to), own.names, to)

    return jax.tree.map(one, axes, params)


def scatter_gradients(gradients, axes):
    """Return the gradients of gathered parameters, summed over devices into the layout of the shards."""
    return jax.tree.map(lambda own, dw: _scatter(dw, own.names), axes, gradients)


def _scatter(dw: jax.Array, names: tuple) -> jax.Array:
    # The transpose of a constraint is the same constraint, which would all-reduce whole gradients. Constraining the
    # gradient to the layout of the shards lets the compiler reduce-scatter.
    return _place(_place(dw, names, GATHERED[1:]), names, ())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w, names, dtype):
    # The first constraint keeps the cast on the shards, so that what travels is in `dtype`; then one hop an axis.
    w = _place(_round(jax.lax.convert_element_type(w, jnp.float32), dtype), names, ())
    return _place(_place(w, names, GATHERED[1:]), names, GATHERED)


def _gather_forward(w, names, dtype):
    return _gather(w, names, dtype), None


def _gather_backward(names, dtype, _, dw):
    return (_scatter(dw, names),)


_gather.defvjp(_gather_forward, _gather_backward)


def _round(w: jax.Array, dtype: np.dtype) -> jax.Array:
    # XLA moves a plain cast of the stacked weights out of the scan over layers and keeps a second copy of all of them;
    # an explicit rounding to the same bits it leaves where it is.
    if dtype == jnp.bfloat16:
        w = jax.lax.reduce_precision(w, exponent_bits=8, mantissa_bits=7)
    return w.astype(dtype)

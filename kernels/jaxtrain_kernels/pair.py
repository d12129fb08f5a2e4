"""A forward and a backward function as one differentiable function that keeps nothing but its inputs."""

import functools
from collections.abc import Callable

import jax


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def differentiable(forward: Callable, backward: Callable, chunk: int, *inputs):
    """Run `forward`; its gradient is `backward` of the inputs, so that only they are kept."""
    return forward(*inputs, chunk=chunk)


def _keep_inputs(forward: Callable, backward: Callable, chunk: int, *inputs):
    return forward(*inputs, chunk=chunk), inputs


def _backward(forward: Callable, backward: Callable, chunk: int, inputs, gradients):
    return backward(inputs, gradients, chunk=chunk)


differentiable.defvjp(_keep_inputs, _backward)

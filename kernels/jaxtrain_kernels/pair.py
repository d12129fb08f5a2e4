"""Recurrent operations as differentiable functions that keep nothing but their inputs, and the list of their forms."""

import functools
from collections.abc import Callable
from types import ModuleType

import jax

from jaxtrain_kernels.choice import Implementation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def differentiable(forward: Callable, backward: Callable, chunk: int, *inputs):
    """Run `forward`; its gradient is `backward` of the inputs, so that only they are kept."""
    return forward(*inputs, chunk=chunk)


def _keep_inputs(forward: Callable, backward: Callable, chunk: int, *inputs):
    return forward(*inputs, chunk=chunk), inputs


def _backward(forward: Callable, backward: Callable, chunk: int, inputs, gradients):
    return backward(inputs, gradients, chunk=chunk)


differentiable.defvjp(_keep_inputs, _backward)


def implementations(
    *, xla: ModuleType, tpu: ModuleType, gpu: ModuleType, reference: Callable
) -> tuple[Implementation, ...]:
    """Return the four forms of a recurrent operation; modules have `forward`, `backward`, kernels `refuses` too."""

    def pair(module: ModuleType) -> Callable:
        return functools.partial(differentiable, module.forward, module.backward)

    return (
        Implementation(name="xla", run=pair(xla)),
        Implementation(name="tpu", run=pair(tpu), refuses=tpu.refuses, proven=False),
        Implementation(name="gpu", run=pair(gpu), refuses=gpu.refuses, proven=False),
        Implementation(name="reference", run=reference),
    )

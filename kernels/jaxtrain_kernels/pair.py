"""Recurrent operations as differentiable functions whose residuals are their inputs, and their implementations."""

import functools
from collections.abc import Callable
from types import ModuleType

import jax

from jaxtrain_kernels.choice import Implementation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def differentiable(forward: Callable, backward: Callable, chunk: int, *inputs):
    """Run `forward`. Its gradient is `backward` of the inputs, which are the only residuals."""
    return forward(*inputs, chunk=chunk)


def _keep_inputs(forward: Callable, backward: Callable, chunk: int, *inputs):
    return forward(*inputs, chunk=chunk), inputs


def _backward(forward: Callable, backward: Callable, chunk: int, inputs, gradients):
    return backward(inputs, gradients, chunk=chunk)


differentiable.defvjp(_keep_inputs, _backward)


def implementations(
    *, xla: ModuleType, tpu: ModuleType, gpu: ModuleType, reference: Callable
) -> tuple[Implementation, ...]:
    """Return the implementations of a recurrent operation. Modules have `forward` and `backward`, kernels `refuses`."""

    def pair(module: ModuleType) -> Callable:
        return functools.partial(differentiable, module.forward, module.backward)

    return (
        Implementation(name="xla", run=pair(xla)),
        Implementation(name="tpu", run=pair(tpu), refuses=tpu.refuses, proven=False),
        Implementation(name="gpu", run=pair(gpu), refuses=gpu.refuses, proven=False),
        Implementation(name="reference", run=reference),
    )

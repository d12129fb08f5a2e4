"""Linear attention in Mosaic GPU for Hopper: gpu_scalar.py, and with a gate for every key channel gpu_channels.py."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from jaxtrain_kernels import gpu_chunks
from jaxtrain_kernels.linear_attention import gpu_channels, gpu_scalar


def refuses(q: Float[Array, "B L H K"], k: Array, v: Array, log_decay: Array | None) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    return gpu_chunks.refuses(q, v)


def forward(q, k, v, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py, chunks always of 64."""
    return _kernels(log_decay).forward(q, k, v, log_decay, runs, state, chunk=chunk)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    return _kernels(residuals[3]).backward(residuals, gradients, chunk=chunk)


def _kernels(log_decay: Float[Array, "B L J #K"]):
    return gpu_scalar if log_decay.shape[-1] == 1 else gpu_channels

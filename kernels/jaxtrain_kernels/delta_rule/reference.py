"""The definition of the delta rule: one step after another, in the dtype of the inputs."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.chunks import step_by_step


def step(
    state: Float[Array, "B J K V"],
    q: Float[Array, "B H K"],
    k: Float[Array, "B J K"],
    v: Float[Array, "B J V"],
    beta: Float[Array, "B J"],
    log_decay: Float[Array, "B J"],
) -> tuple[Float[Array, "B H V"], Float[Array, "B J K V"]]:
    """Return q S and S = S' + beta k (v - k S')^T with S' = exp(log_decay) S."""
    state = jnp.exp(log_decay)[..., None, None] * state
    error = v - jnp.einsum("BJK,BJKV->BJV", k, state)
    state = state + (beta[..., None] * k)[..., :, None] * error[..., None, :]
    groups = q.reshape(*k.shape[:2], -1, k.shape[2])
    return jnp.einsum("BJGK,BJKV->BJGV", groups, state).reshape(*q.shape[:2], -1), state


def delta_rule(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J V"],
    beta: Float[Array, "B L J"],
    log_decay: Float[Array, "B L J"],
    runs: Int[Array, "B L"],
    state: Float[Array, "B J K V"],
) -> tuple[Float[Array, "B L H V"], Float[Array, "B J K V"]]:
    """Return the output of every step and the state after the last."""
    return step_by_step(step, (q, k, v, beta, log_decay), runs, state)

"""The definition of linear attention: one step after another, in the dtype of the inputs."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.chunks import step_by_step


def step(
    state: Float[Array, "B J K V"],
    q: Float[Array, "B H K"],
    k: Float[Array, "B J K"],
    v: Float[Array, "B J V"],
    log_decay: Float[Array, "B J #K"],
) -> tuple[Float[Array, "B H V"], Float[Array, "B J K V"]]:
    """Return q S and S = exp(log_decay) S + k v^T; the query heads of a group read the state of their key head."""
    state = jnp.exp(log_decay)[..., None] * state + k[..., :, None] * v[..., None, :]
    groups = q.reshape(*k.shape[:2], -1, k.shape[2])
    return jnp.einsum("BJGK,BJKV->BJGV", groups, state).reshape(*q.shape[:2], -1), state


def linear_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J V"],
    log_decay: Float[Array, "B L J #K"],
    runs: Int[Array, "B L"],
    state: Float[Array, "B J K V"],
) -> tuple[Float[Array, "B L H V"], Float[Array, "B J K V"]]:
    """Return the output of every step and the state after the last."""
    return step_by_step(step, (q, k, v, log_decay), runs, state)

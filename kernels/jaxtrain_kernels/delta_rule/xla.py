"""The delta rule chunk by chunk, by the WY form (Yang et al., 2024, arXiv:2406.06484; gated, arXiv:2412.06464).

Every step i adds k_i u_i^T to the state. The row u_i = beta_i (v_i - k_i S') depends on the rows before it, so the rows
of a chunk are the solution of a unit lower triangular system,

    (I + beta tril(decay * K K^T, -1)) U = beta V - beta (into * K) S,      U = U0 - W S.

Its matrix does not depend on the state, so U0 and W of all chunks are solved for at once, in float32. The scan over
chunks is then linear attention with the values U. The backward pass recomputes the forward pass, from the state before
each chunk.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.chunks import (
    Weights,
    accumulator,
    last_first,
    merge_outputs,
    pairwise_decay,
    product,
    split,
    split_heads,
    weights,
)


def forward(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J V"],
    beta: Float[Array, "B L J"],
    log_decay: Float[Array, "B L J"],
    runs: Int[Array, "B L"],
    state: Float[Array, "B J K V"],
    *,
    chunk: int,
) -> tuple[Float[Array, "B L H V"], Float[Array, "B J K V"]]:
    """Return the output of every step and the state after the last."""
    q_, k_, v_, beta_, decay_ = (split_heads(x, chunk) for x in (q, k, v, beta[..., None], log_decay[..., None]))
    runs_ = split(runs, chunk, edge=True)
    befores = jnp.concatenate([runs_[:1, :, 0], runs_[:-1, :, -1]])  # the run of the state before each chunk
    weights_ = jax.vmap(weights)(decay_, runs_, befores)
    u0, w = jax.vmap(_solve)(k_, v_, beta_, weights_)
    body = jax.checkpoint(_chunk, prevent_cse=False)
    state, outputs = jax.lax.scan(
        lambda state, chunk: body(state, *chunk), state, (last_first(q_), k_, u0, w, weights_)
    )
    return merge_outputs(outputs, q.shape[1]), state


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    *floats, runs, state = residuals

    def of_floats(state, *floats):
        return forward(*floats, runs, state, chunk=chunk)

    dstate, *dfloats = jax.vjp(of_floats, state, *floats)[1](gradients)
    return *dfloats, None, dstate


def _solve(k: Float[Array, "B J C K"], v: Float[Array, "B J C V"], beta: Float[Array, "B J C 1"], w: Weights):
    """Return U0 [B J C V] and W [B J C K]."""
    dtype, C = k.dtype, k.shape[2]
    overlap = product("BJCK,BJSK->BJCS", k, k, dtype=dtype) * pairwise_decay(w)
    lower = jnp.tril(beta * overlap, -1) + jnp.eye(C, dtype=overlap.dtype)[None, None]
    right = beta * jnp.concatenate([v, k * w.into], axis=-1).astype(accumulator(dtype))
    solved = jax.lax.linalg.triangular_solve(lower, right, left_side=True, lower=True, unit_diagonal=True)
    return solved[..., : v.shape[3]], solved[..., v.shape[3] :].astype(dtype)


def _chunk(
    state: Float[Array, "B J K V"],
    q: Float[Array, "B H C K"],
    k: Float[Array, "B J C K"],
    u0: Float[Array, "B J C V"],
    w_BJCK: Float[Array, "B J C K"],
    w: Weights,
):
    dtype = q.dtype
    q_BJGCK = q.reshape(*k.shape[:2], -1, *k.shape[2:])
    u = u0 - product("BJCK,BJKV->BJCV", w_BJCK, state, dtype=dtype)
    scores = product("BJGCK,BJSK->BJGCS", q_BJGCK, k, dtype=dtype) * last_first(pairwise_decay(w))[:, :, None]
    output = product("BJGCS,BJSV->BJGCV", scores, u, dtype=dtype)
    output += product("BJGCK,BJKV->BJGCV", q_BJGCK * last_first(w.into)[:, :, None], state, dtype=dtype)
    state = w.into[:, :, -1, :, None] * state + product("BJCK,BJCV->BJKV", k * w.out, u, dtype=dtype)
    return state, output.reshape(*q.shape[:3], -1).astype(dtype)

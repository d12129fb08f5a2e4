"""Linear attention chunk by chunk: a scan over chunks with matrix products inside.

Within a chunk each step sees the state before the chunk, and the earlier steps through a masked matrix of scores. With
a gate for every key channel the scores have two levels (Yang et al., 2023, arXiv:2312.06635, section 4.3). Pairs in
different sub-chunks are a matrix product, with both factors decayed towards the start of the later sub-chunk. Pairs in
one sub-chunk are computed in log space, channel by channel. No exponent is ever positive, so no gate overflows.

Accumulates in float32 (float64 for float64). The backward pass runs the scan again, keeps the state before each chunk
and recomputes the rest of each chunk: memory grows with the length by one state a chunk.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.chunks import (
    Sum,
    Weights,
    last_first,
    merge_outputs,
    of_steps_between,
    pairwise_decay,
    product,
    split,
    split_heads,
    sum_of_later,
    weights,
)

SUB_CHUNK = 16


def forward(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J V"],
    log_decay: Float[Array, "B L J #K"],
    runs: Int[Array, "B L"],
    state: Float[Array, "B J K V"],
    *,
    chunk: int,
) -> tuple[Float[Array, "B L H V"], Float[Array, "B J K V"]]:
    """Return the output of every step and the state after the last."""

    def advance(carry, inputs):
        state, run = carry
        *tensors, runs = inputs
        output, state = _chunk(*tensors, runs, run, state)
        return (state, runs[:, -1]), output

    q_, k_, v_, decay_ = (split_heads(x, chunk) for x in (q, k, v, log_decay))
    chunks = (last_first(q_), k_, v_, decay_, split(runs, chunk, edge=True))
    (state, _), outputs = jax.lax.scan(jax.checkpoint(advance, prevent_cse=False), (state, runs[:, 0]), chunks)
    return merge_outputs(outputs, q.shape[1]), state


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, log_decay, runs, state = residuals

    def of_floats(q, k, v, log_decay, state):
        return forward(q, k, v, log_decay, runs, state, chunk=chunk)

    dq, dk, dv, dlog_decay, dstate = jax.vjp(of_floats, q, k, v, log_decay, state)[1](gradients)
    return dq, dk, dv, dlog_decay, None, dstate


def _chunk(
    q: Float[Array, "B H C K"],
    k: Float[Array, "B J C K"],
    v: Float[Array, "B J C V"],
    log_decay: Float[Array, "B J C #K"],
    runs: Int[Array, "B C"],
    run: Int[Array, " B"],
    state: Float[Array, "B J K V"],
):
    """Return the output, in reversed steps as `q`, and the state after the chunk."""
    w, dtype = weights(log_decay, runs, run), q.dtype
    q_BJGCK = q.reshape(*k.shape[:2], -1, *k.shape[2:])
    scores = (_scores_of_scalar if log_decay.shape[-1] == 1 else _scores_of_channels)(q_BJGCK, k, w)
    output = product("BJGCS,BJSV->BJGCV", scores, v, dtype=dtype)
    output += product("BJGCK,BJKV->BJGCV", q_BJGCK * last_first(w.into)[:, :, None], state, dtype=dtype)
    state = w.into[:, :, -1, :, None] * state + product("BJCK,BJCV->BJKV", k * w.out, v, dtype=dtype)
    return output.reshape(*q.shape[:3], -1).astype(dtype), state


def _scores_of_scalar(q: Float[Array, "B J G C K"], k: Float[Array, "B J C K"], w: Weights) -> Array:
    return product("BJGCK,BJSK->BJGCS", q, k, dtype=q.dtype) * last_first(pairwise_decay(w))[:, :, None]


def _scores_of_channels(
    q: Float[Array, "B J G C K"], k: Float[Array, "B J C K"], w: Weights
) -> Float[Array, "B J G C C"]:
    """Return sum over channels of q_i k_j exp(c_i - c_j) for j <= i, c the cumulative log-decay."""
    B, J, G, C, K = q.shape
    subs = C // SUB_CHUNK
    q, k_BJNcK, coarse, fine = (
        x.reshape(*x.shape[:-2], subs, SUB_CHUNK, K) for x in (last_first(q), k, w.cumulative.coarse, w.fine)
    )
    starts_BJN1K = jnp.pad(coarse[:, :, :-1, -1:], ((0, 0), (0, 0), (1, 0), (0, 0), (0, 0)))  # before each sub-chunk
    own = Sum(coarse - starts_BJN1K, jnp.cumsum(fine, axis=3))
    far = _earlier_sub_chunks(q, k, own, starts_BJN1K, w).reshape(B, J, G, C, C)
    near = _own_sub_chunk(q, k_BJNcK, own, fine)
    on_diagonal = near[:, :, :, :, :, None] * jnp.eye(subs, dtype=near.dtype)[None, None, None, :, None, :, None]
    return last_first(jnp.where(w.seen[:, :, None], far + on_diagonal.reshape(B, J, G, C, C), 0))


def _earlier_sub_chunks(q_BJGNcK, k_BJCK, own_BJNcK: Sum, starts_BJN1K: Array, w: Weights) -> Array:
    """Return the scores [B J G N c C] of each sub-chunk with all steps before it, zero elsewhere."""
    before = _before_sub_chunk(own_BJNcK.coarse.shape[2], k_BJCK.shape[2])[None, None, :, :, None]
    fine = sum_of_later(jnp.where(before, w.fine[:, :, None], 0), axis=3)
    k_decayed = k_BJCK[:, :, None] * Sum(starts_BJN1K - w.cumulative.coarse[:, :, None], fine).exp(where=before)
    q_decayed = q_BJGNcK * own_BJNcK.exp(where=True)[:, :, None]
    return product("BJGNcK,BJNSK->BJGNcS", q_decayed, k_decayed, dtype=q_BJGNcK.dtype)


def _before_sub_chunk(subs: int, steps: int) -> Bool[Array, "N C"]:
    return jnp.arange(steps)[None] < SUB_CHUNK * jnp.arange(subs)[:, None]


def _own_sub_chunk(q_BJGNcK, k_BJNcK, sums_BJNcK: Sum, fine_BJNcK: Array) -> Float[Array, "B J G N c c"]:
    """Return the scores of each sub-chunk with itself."""
    not_later = jnp.tril(jnp.ones((SUB_CHUNK, SUB_CHUNK), bool))[None, None, None, :, :, None]
    decay = sums_BJNcK[:, :, :, :, None].since(sums_BJNcK[:, :, :, None, :]).rough_exp(where=not_later)
    k_decayed = k_BJNcK[:, :, :, None, :] * of_steps_between(fine_BJNcK, jax.lax.stop_gradient(decay))
    return product("BJGNcK,BJNcSK->BJGNcS", q_BJGNcK, k_decayed, dtype=decay.dtype)

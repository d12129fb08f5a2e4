"""Attention by its definition, with the whole L x S matrix; its automatic derivative is the oracle for gradients."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.flash_attention.problem import LOWEST, Inputs, Options, accumulator, offset_of, seen_by_position


def flash_attention(
    x: Inputs, sinks: Float[Array, " H"] | None, options: Options
) -> tuple[Float[Array, "B L H V"], Float[Array, "B H L"]]:
    """Return the output and the log-sum-exp of the scores, computed in the dtype of the inputs."""
    heads = x.q.shape[2] // x.k.shape[2]
    k, v = (jnp.repeat(y, heads, axis=2) for y in (x.k, x.v))
    scores = options.scale * jnp.einsum("BLHK,BSHK->BHLS", x.q, k)
    if options.softcap is not None:
        scores = options.softcap * jnp.tanh(scores / options.softcap)
    if options.slopes is not None:
        slopes_H11 = jnp.asarray(options.slopes, scores.dtype)[:, None, None]
        scores = scores - (slopes_H11 * jnp.abs(_distance(x, options))[None].astype(scores.dtype))[None]
    if x.bias is not None:
        scores = scores + x.bias.astype(scores.dtype)
    seen = jnp.broadcast_to(_seen(x, options), scores.shape)
    if sinks is not None:  # one more key, which has no value
        B, H, L, _ = scores.shape
        sink = jnp.broadcast_to(sinks.astype(scores.dtype)[None, :, None, None], (B, H, L, 1))
        scores = jnp.concatenate([scores, sink], axis=-1)
        seen = jnp.concatenate([seen, jnp.ones((B, H, L, 1), bool)], axis=-1)
        v = jnp.pad(v, ((0, 0), (0, 1), (0, 0), (0, 0)))
    weights, lse = _softmax(scores, seen)
    return jnp.einsum("BHLS,BSHV->BLHV", weights, v), lse


def _distance(x: Inputs, options: Options) -> Int[Array, "L S"]:
    """Return how far each key is behind each query."""
    L, S = x.q.shape[1], x.k.shape[1]
    return (offset_of(x, options) + jnp.arange(L))[:, None] - jnp.arange(S)[None, :]


def _seen(x: Inputs, options: Options) -> Bool[Array, "#B 1 L S"]:
    L, S = x.q.shape[1], x.k.shape[1]
    by_position = seen_by_position(options, _distance(x, options))
    seen = jnp.ones((1, 1, L, S), bool) if by_position is None else by_position[None, None]
    if x.segments is not None:
        of_queries, of_keys = x.segments
        seen = seen & (of_queries[:, None, :, None] == of_keys[:, None, None, :])
    return seen


def _softmax(scores, seen):
    """Return the weights of the keys seen, and the log-sum-exp; zeros and -inf if none of them scores above LOWEST."""
    seen = seen & (scores.astype(accumulator(scores.dtype)) > LOWEST)
    scores = jnp.where(seen, scores, -jnp.inf)
    maximum = jnp.max(scores, axis=-1, keepdims=True)
    maximum = jnp.where(jnp.isfinite(maximum), maximum, 0.0)
    exponentials = jnp.where(seen, jnp.exp(jnp.where(seen, scores - maximum, 0.0)), 0.0)
    total = jnp.sum(exponentials, axis=-1, keepdims=True)
    empty = total == 0
    total = jnp.where(empty, 1.0, total)
    lse = jnp.where(empty, -jnp.inf, jnp.log(total) + maximum)
    return exponentials / total, lse[..., 0]

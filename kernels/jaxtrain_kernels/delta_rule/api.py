"""The delta rule, plain and gated: the public functions.

    S_t = S' + beta_t k_t (v_t - S'^T k_t)^T      S' = exp(log_decay_t) S_{t-1}      o_t = S_t^T q_t

Schlag et al. (2021), arXiv:2102.11174; parallel over the length, Yang et al. (2024), arXiv:2406.06484; gated, Yang et
al. (2024), arXiv:2412.06464. The caller normalises keys: with |k| <= 1 and beta in [0, 2] the state cannot grow.
A gate for every key channel (Kimi delta attention) is left out.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.choice import choose
from jaxtrain_kernels.chunks import (
    SMALLEST_CHUNK,
    accumulator,
    check_beta,
    check_chunk_size,
    check_log_decay,
    check_shapes,
    check_shapes_of_step,
    fitting_chunk,
    per_step,
    runs_of,
)
from jaxtrain_kernels.delta_rule import gpu, reference, tpu, xla
from jaxtrain_kernels.pair import implementations
from jaxtrain_kernels.varying import alike


def delta_rule(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J V"],
    beta: Float[Array, "B L J"],
    log_decay: Float[Array, " J"] | Float[Array, "B L J"] | None = None,
    *,
    initial_state: Float[Array, "B J K V"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    chunk_size: int = 64,
    implementation: str | None = None,
) -> tuple[Float[Array, "B L H V"], Float[Array, "B J K V"]]:
    """Return the output of every step, in the dtype of `v`, and the state after the last, in float32.

    Each of the J key heads has a state, which the H/J query heads of its group read. The state is reset where
    `segment_ids` change; the first segment continues `initial_state`. Both results are differentiable with respect to
    everything but `segment_ids`. Log-decays are at most 0; those below -50 act as -50. Sums are taken in float32.
    Chunks have no more steps than keys have channels, but at least 16; with `implementation="gpu"` they always have 64.

        o, state = delta_rule(q, k / jnp.linalg.norm(k, axis=-1, keepdims=True), v, jax.nn.sigmoid(b))

    Raises:
        ValueError: shapes or dtypes do not fit each other, or the chunk size is not a multiple of 16 from 16 to 256.
        NotImplementedError: the implementation asked for does not take the call; with its reasons.
    """
    check_shapes(q, k, v, initial_state, segment_ids)
    (B, L, J, K), dtype = k.shape, accumulator(q.dtype)
    check_beta(beta, k)
    check_log_decay(log_decay, (J,), (B, L, J))
    check_chunk_size(chunk_size)
    chosen = choose("delta_rule", IMPLEMENTATIONS, implementation, q, k, v)
    if initial_state is None:
        initial_state = jnp.zeros((B, J, K, v.shape[3]), dtype)
    runs = jnp.zeros((B, L), jnp.int32) if segment_ids is None else runs_of(segment_ids)
    decay = per_step(log_decay, k)[..., 0]
    inputs = alike(q, k, v, beta.astype(dtype), decay, runs, initial_state.astype(dtype))
    return chosen.run(fitting_chunk(min(chunk_size, _largest_chunk(K)), L), *inputs)


def _largest_chunk(K: int) -> int:
    """Return the most steps of a chunk: as many as keys have channels.

    More steps overwrite what the chunk itself wrote. The sum over such a chunk is small compared with its terms, and in
    float32 errors would grow with its length.
    """
    return max(K // SMALLEST_CHUNK * SMALLEST_CHUNK, SMALLEST_CHUNK)


def recurrent_step(
    q: Float[Array, "B H K"],
    k: Float[Array, "B J K"],
    v: Float[Array, "B J V"],
    beta: Float[Array, "B J"],
    log_decay: Float[Array, " J"] | Float[Array, "B J"] | None,
    state: Float[Array, "B J K V"],
) -> tuple[Float[Array, "B H V"], Float[Array, "B J K V"]]:
    """Return the output of one step, in the dtype of `v`, and the state after it, for decoding.

    Raises:
        ValueError: shapes do not fit each other.
    """
    check_shapes_of_step(q, k, v, state)
    B, J, _ = k.shape
    check_beta(beta, k)
    check_log_decay(log_decay, (J,), (B, J))
    wide_q, wide_k, wide_v, wide_beta = (x.astype(state.dtype) for x in (q, k, v, beta))
    if log_decay is not None and log_decay.ndim > 1:
        log_decay = log_decay[:, None]
    decay = per_step(log_decay, k[:, None])[:, 0, :, 0].astype(state.dtype)
    output, state = reference.step(state, wide_q, wide_k, wide_v, wide_beta, decay)
    return output.astype(v.dtype), state


def _run_reference(chunk: int, q, k, v, beta, log_decay, runs, state):
    wide_q, wide_k, wide_v, wide_beta = (x.astype(state.dtype) for x in (q, k, v, beta))
    output, state = reference.delta_rule(wide_q, wide_k, wide_v, wide_beta, log_decay, runs, state)
    return output.astype(v.dtype), state


IMPLEMENTATIONS = implementations(xla=xla, tpu=tpu, gpu=gpu, reference=_run_reference)

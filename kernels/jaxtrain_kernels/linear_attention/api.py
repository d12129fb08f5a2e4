"""Linear attention with any decay: the public functions.

    S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T        o_t = S_t^T q_t

By the shape of `log_decay`: none (Katharopoulos et al., 2020, arXiv:2006.16236, without feature map and normaliser);
one number a head (retention, Sun et al., 2023, arXiv:2307.08621; lightning attention, Qin et al., 2024,
arXiv:2405.17381); one a head and step (Mamba-2, Dao and Gu, 2024, arXiv:2405.21060); one for every key channel of every
step (gated linear attention, Yang et al., 2023, arXiv:2312.06635). Feature maps, normalisers, scaling of queries and
output norms are the caller's: none is part of the recurrence.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.choice import choose
from jaxtrain_kernels.chunks import (
    accumulator,
    check_chunk_size,
    check_log_decay,
    check_shapes,
    check_shapes_of_step,
    fitting_chunk,
    per_step,
    runs_of,
)
from jaxtrain_kernels.linear_attention import gpu, reference, tpu, xla
from jaxtrain_kernels.pair import implementations
from jaxtrain_kernels.varying import alike


def linear_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B L J K"],
    v: Float[Array, "B L J V"],
    log_decay: Float[Array, " J"] | Float[Array, "B L J"] | Float[Array, "B L J K"] | None = None,
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
    `implementation="gpu"` always has chunks of 64; with a gate for every key channel `"tpu"` has chunks of at most 128.

        o, state = linear_attention(q, k, v, jax.nn.log_sigmoid(gate))

    Raises:
        ValueError: shapes or dtypes do not fit each other, or the chunk size is not a multiple of 16 from 16 to 256.
        NotImplementedError: the implementation asked for does not take the call; with its reasons.
    """
    check_shapes(q, k, v, initial_state, segment_ids)
    B, L, J, K = k.shape
    check_log_decay(log_decay, (J,), (B, L, J), (B, L, J, K))
    check_chunk_size(chunk_size)
    chosen = choose("linear_attention", IMPLEMENTATIONS, implementation, q, k, v, log_decay)
    if initial_state is None:
        initial_state = jnp.zeros((B, J, K, v.shape[3]), accumulator(q.dtype))
    runs = jnp.zeros((B, L), jnp.int32) if segment_ids is None else runs_of(segment_ids)
    state = initial_state.astype(accumulator(q.dtype))
    return chosen.run(fitting_chunk(chunk_size, L), *alike(q, k, v, per_step(log_decay, k), runs, state))


def recurrent_step(
    q: Float[Array, "B H K"],
    k: Float[Array, "B J K"],
    v: Float[Array, "B J V"],
    log_decay: Float[Array, " J"] | Float[Array, "B J"] | Float[Array, "B J K"] | None,
    state: Float[Array, "B J K V"],
) -> tuple[Float[Array, "B H V"], Float[Array, "B J K V"]]:
    """Return the output of one step, in the dtype of `v`, and the state after it, for decoding.

    Raises:
        ValueError: shapes do not fit each other.
    """
    check_shapes_of_step(q, k, v, state)
    B, J, K = k.shape
    check_log_decay(log_decay, (J,), (B, J), (B, J, K))
    wide_q, wide_k, wide_v = (x.astype(state.dtype) for x in (q, k, v))
    if log_decay is not None and log_decay.ndim > 1:
        log_decay = log_decay[:, None]
    decay = per_step(log_decay, k[:, None])[:, 0].astype(state.dtype)
    output, state = reference.step(state, wide_q, wide_k, wide_v, decay)
    return output.astype(v.dtype), state


def _run_reference(chunk: int, q, k, v, log_decay, runs, state):
    wide_q, wide_k, wide_v = (x.astype(state.dtype) for x in (q, k, v))
    output, state = reference.linear_attention(wide_q, wide_k, wide_v, log_decay, runs, state)
    return output.astype(v.dtype), state


IMPLEMENTATIONS = implementations(xla=xla, tpu=tpu, gpu=gpu, reference=_run_reference)

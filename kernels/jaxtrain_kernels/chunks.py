"""What the recurrent operations share: sequences step by step or in chunks, and where the state is reset.

A *run* is a stretch of a sequence with equal segment ids. The state is reset where a run begins; the first run
continues the initial state. Letters beyond the legend: J key heads, G query heads a key head, N chunks, C steps of a
chunk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.dtypes import check_dtypes

SMALLEST_CHUNK, LARGEST_CHUNK = 16, 256
# exp(-50) is 2e-22: less of the state is left than its rounding. The bound keeps sums of log-decays exact enough.
LOWEST_LOG_DECAY = -50.0


def check_chunk_size(chunk_size: int) -> None:
    """Raise ValueError for a chunk size that the implementations do not take."""
    if chunk_size % SMALLEST_CHUNK or not SMALLEST_CHUNK <= chunk_size <= LARGEST_CHUNK:
        raise ValueError(
            f"{chunk_size=}: must be a multiple of {SMALLEST_CHUNK} from {SMALLEST_CHUNK} to {LARGEST_CHUNK}"
        )


def check_shapes(q, k, v, initial_state, segment_ids) -> None:
    """Raise ValueError if the shapes do not fit: q [B, L, H, K], k [B, L, J, K], v [B, L, J, V] and so on."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {x.shape}: must have four axes, batch, length, heads and channels")
    (B, L, J, K), V = k.shape, v.shape[3]
    _check_fit(k, v, {"q": (q, (B, L, q.shape[2], K)), "v": (v, (B, L, J, V))})
    if initial_state is not None:
        _check_fit(k, v, {"initial_state": (initial_state, (B, J, K, V))})
    if segment_ids is not None:
        _check_fit(k, v, {"segment_ids": (segment_ids, (B, L))})
    _check_heads(q.shape[2], J)
    if 0 in (B, L):
        raise ValueError(f"q, k and v have {B} rows of {L} steps: give at least one of each")
    check_dtypes(q, k, v)


def check_shapes_of_step(q, k, v, state) -> None:
    """Raise ValueError if the shapes of one step do not fit: q [B, H, K], k [B, J, K], v [B, J, V]."""
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 3:
            raise ValueError(f"{name} has shape {x.shape}: must have three axes, batch, heads and channels")
    (B, J, K), V = k.shape, v.shape[2]
    _check_fit(k, v, {"q": (q, (B, q.shape[1], K)), "v": (v, (B, J, V)), "state": (state, (B, J, K, V))})
    _check_heads(q.shape[1], J)


def check_log_decay(log_decay: Array | None, *shapes: tuple[int, ...]) -> None:
    if log_decay is not None and log_decay.shape not in shapes:
        *first, last = map(str, shapes)
        raise ValueError(f"log_decay has shape {log_decay.shape}: must be {', '.join(first)} or {last}")


def check_beta(beta: Array, k: Array) -> None:
    if beta.shape != k.shape[:-1]:
        raise ValueError(f"beta has shape {beta.shape}: with k {k.shape} it must be {k.shape[:-1]}")


def _check_fit(k, v, expected: dict[str, tuple[Array, tuple[int, ...]]]) -> None:
    for name, (x, shape) in expected.items():
        if x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}: with k {k.shape} and v {v.shape} it must be {shape}")


def _check_heads(H: int, J: int) -> None:
    if J == 0 or H % J:
        raise ValueError(f"k has {J} heads: they must divide the {H} heads of q")


def fitting_chunk(chunk_size: int, length: int) -> int:
    """Return the chunk size, or for a shorter sequence the smallest one that holds it."""
    return min(chunk_size, -(-length // SMALLEST_CHUNK) * SMALLEST_CHUNK)


def accumulator(dtype: jnp.dtype) -> jnp.dtype:
    """Return the dtype of states and sums: float32, or float64 for float64 inputs."""
    return jnp.promote_types(dtype, jnp.float32)


def runs_of(segment_ids: Int[Array, "B L"]) -> Int[Array, "B L"]:
    """Number the runs of equal segment ids of each row from 0."""
    changes = (segment_ids[:, 1:] != segment_ids[:, :-1]).astype(jnp.int32)
    return jnp.pad(jnp.cumsum(changes, axis=1), ((0, 0), (1, 0)))


def per_step(log_decay: Array | None, like: Float[Array, "B L J K"]) -> Float[Array, "B L J #K"]:
    """Return the log-decay of every step and key head, from any of its shapes; the last axis is 1 or K."""
    B, L, J, _ = like.shape
    dtype = accumulator(like.dtype)
    if log_decay is None:
        return jnp.zeros((B, L, J, 1), dtype)
    log_decay = jnp.maximum(log_decay.astype(dtype), LOWEST_LOG_DECAY)
    if log_decay.ndim == 1:
        return jnp.broadcast_to(log_decay[None, None, :, None], (B, L, J, 1))
    return log_decay[..., None] if log_decay.ndim == 3 else log_decay


def step_by_step(
    step: Callable, tensors: Sequence[Array], runs: Int[Array, "B L"], state: Float[Array, "B J K V"]
) -> tuple[Float[Array, "B L H V"], Float[Array, "B J K V"]]:
    """Return the output of every step and the state after the last of `step(state, *tensors) -> (output, state)`.

    `tensors` are [B, L, ...]. The state is reset to zero where a run begins.
    """

    def advance(carry, inputs):
        state, run = carry
        *now, new_run = inputs
        state = jnp.where((new_run == run)[:, None, None, None], state, 0)
        output, state = step(state, *now)
        return (state, new_run), output

    inputs = [x.swapaxes(0, 1) for x in (*tensors, runs)]
    (state, _), outputs = jax.lax.scan(advance, (state, runs[:, 0]), inputs)
    return outputs.swapaxes(0, 1), state


def split(x: Array, chunk: int, *, edge: bool = False) -> Array:
    """Return [B, L, ...] as [N, B, C, ...], padded at the end with zeros or, with `edge`, with the last step."""
    pad = [(0, 0)] * x.ndim
    pad[1] = (0, -x.shape[1] % chunk)
    x = jnp.pad(x, pad, mode="edge") if edge else jnp.pad(x, pad)
    return x.reshape(x.shape[0], -1, chunk, *x.shape[2:]).swapaxes(0, 1)


def split_heads(x: Float[Array, "B L H K"], chunk: int) -> Float[Array, "N B H C K"]:
    return split(x, chunk).swapaxes(2, 3)


def last_first(x: Float[Array, "... C K"]) -> Float[Array, "... C K"]:
    """Return the steps of each chunk in reverse order.

    Matrix products take queries and outputs in this order. Sums over them in the backward pass then begin with the most
    decayed terms, and lose fewer digits.
    """
    return jnp.flip(x, -2)


def merge_outputs(x: Float[Array, "N B H C V"], length: int) -> Float[Array, "B L H V"]:
    """Return chunks with reversed steps as sequences in order, without the padding."""
    N, B, H, C, V = x.shape
    return last_first(x).transpose(1, 0, 3, 2, 4).reshape(B, N * C, H, V)[:, :length]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sum:
    """Sums of log-decays in two parts, so that large sums and their differences keep their last digits.

    The coarse part is a multiple of 1/256, so its sums and differences are exact.
    """

    coarse: Array
    fine: Array

    def __getitem__(self, index) -> "Sum":
        return Sum(self.coarse[index], self.fine[index])

    def reshape(self, *shape: int) -> "Sum":
        return Sum(self.coarse.reshape(shape), self.fine.reshape(shape))

    def since(self, earlier: "Sum") -> "Sum":
        """Return the sums from `earlier` on."""
        return Sum(self.coarse - earlier.coarse, self.fine - earlier.fine)

    def exp(self, where: Array | bool) -> Array:
        """Return the exponential, 0 elsewhere, of each part: adding the parts first would round the sum."""
        return jnp.exp(jnp.where(where, self.coarse, -jnp.inf)) * jnp.exp(self.fine)

    def rough_exp(self, where: Array) -> Array:
        """Return the exponential of small sums, 0 elsewhere: of both parts at once."""
        return jnp.exp(jnp.where(where, self.coarse + self.fine, -jnp.inf))


def running_sum(log_decay: Array, axis: int) -> Sum:
    """Return the sum up to each step, that step included."""
    coarse = coarse_part(log_decay)
    return Sum(jnp.cumsum(coarse, axis=axis), jnp.cumsum(log_decay - coarse, axis=axis))


def coarse_part(log_decay: Array) -> Array:
    """Return the nearest multiple of 1/256; no gradient flows through it."""
    return jax.lax.stop_gradient(jnp.round(log_decay * 256) / 256)


def sum_of_later(x: Array, axis: int) -> Array:
    """Return for each step the sum over the later steps.

    A difference of two running sums has the same value. But its gradient would be a difference of sums over the whole
    chunk, with the rounding of those.
    """
    return jax.lax.cumsum(x, axis=axis, reverse=True) - x


class Weights(NamedTuple):
    """The decays of one chunk. The last axis is 1, or K if each key channel has a gate."""

    cumulative: Sum  # [B J C 1|K], log-decay from the chunk's start to each step, that step's included
    fine: Float[Array, "B J C #K"]  # of each step, the fine part of its log-decay
    into: Float[Array, "B J C #K"]  # how much each step sees of the state before the chunk
    out: Float[Array, "B J C #K"]  # how much the state after the chunk keeps of each step
    seen: Bool[Array, "B 1 C C"]  # which steps each step sees: itself and earlier ones of its run


def weights(log_decay: Float[Array, "B J C #K"], runs: Int[Array, "B C"], run: Int[Array, " B"]) -> Weights:
    """Return the weights of a chunk; `run` is the run of the state before it. Exponents are never positive."""
    cumulative, fine = running_sum(log_decay, axis=2), log_decay - coarse_part(log_decay)
    after = Sum(cumulative.coarse[:, :, -1:] - cumulative.coarse, sum_of_later(fine, axis=2))
    alive, lasts = (x[:, None, :, None] for x in (runs == run[:, None], runs == runs[:, -1:]))
    seen = (runs[:, :, None] == runs[:, None, :]) & jnp.tril(jnp.ones((runs.shape[1],) * 2, bool))[None]
    return Weights(
        cumulative,
        fine,
        into=cumulative.exp(where=alive),
        out=after.exp(where=lasts),
        seen=seen[:, None],
    )


def pairwise_decay(w: Weights) -> Float[Array, "B J C C"]:
    """Return how much each step sees of each earlier one, for a scalar decay."""
    later, earlier = w.cumulative, jax.tree.map(lambda x: x.swapaxes(2, 3), w.cumulative)
    decay = jax.lax.stop_gradient(later.since(earlier).exp(where=w.seen))
    return of_steps_between(w.fine, decay[..., None])[..., 0]


@jax.custom_vjp
def of_steps_between(
    log_decay: Float[Array, "... C #K"], decay: Float[Array, "... C C #K"]
) -> Float[Array, "... C C #K"]:
    """Return `decay`, with the gradient of `log_decay` defined here.

    The gradient of a step's log-decay is the sum over all pairs of steps that the step lies between. Automatic
    differentiation of running sums would give it as a small difference of the sums over all pairs of later steps.
    """
    return decay


def _decay_forward(log_decay, decay):
    return decay, decay


def _decay_backward(decay, ddecay):
    before = jnp.triu(jnp.ones(decay.shape[-3:-1], decay.dtype), 1)  # [S T], whether step S is before T
    of_earlier = jnp.einsum("...CSK,ST->...CTK", ddecay * decay, before, precision="highest")
    until = jnp.expand_dims(jnp.tril(jnp.ones_like(before)), (*range(decay.ndim - 3), -1))  # [C T], T at most C
    return jnp.sum(until * of_earlier, axis=-3), None


of_steps_between.defvjp(_decay_forward, _decay_backward)


def product(equation: str, *operands: Array, dtype: jnp.dtype) -> Array:
    """Return an einsum of the operands in `dtype`, accumulated and returned in at least float32."""
    return jnp.einsum(equation, *(x.astype(dtype) for x in operands), preferred_element_type=accumulator(dtype))

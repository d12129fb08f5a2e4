"""The delta rule in Pallas for TPU: the state stays in the core's memory along the chunks of a sequence.

It has the same three kernels and grid as linear attention. Within a chunk, with T = I + beta tril(decay * K K^T, -1)
and R = beta (V - (into * K) S), the rows added to the state are U = T^-1 R (see xla.py). T is inverted in float32 by
forward substitution: inside sub-chunks of 16 steps row by row, for all sub-chunks at once; between sub-chunks by matrix
products. The backward pass inverts T again: dR = T^-T dU, dT = -dR U^T.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from jaxtrain_kernels.chunks import split
from jaxtrain_kernels.linear_attention.tpu_decay import SUB_CHUNK, ScalarDecay, column, index, row
from jaxtrain_kernels.tpu_chunks import (
    begin,
    call,
    dot,
    end,
    for_one_head_of_each_group,
    in_order,
    of_chunks,
    of_key_heads,
    steps_of,
    whole,
)

DTYPES = (jnp.float32, jnp.bfloat16)


def refuses(q: Float[Array, "B L H K"], *_: object) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    return () if q.dtype in DTYPES else (f"q, k and v are {q.dtype}, not float32 or bfloat16",)


def forward(q, k, v, beta, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py."""
    groups, L = q.shape[2] // k.shape[2], q.shape[1]
    gates, q, k, v, state = _lay_out(q, k, v, beta, log_decay, runs, state, chunk)
    (steps, at), all_of = in_order(q, chunk), whole(state)
    output, final = call(
        _forward_kernel,
        "delta_rule_forward",
        inputs=(q, k, v, *gates, state),
        in_specs=[steps(q), steps(k), steps(v), *_gate_specs(gates, at), all_of],
        outputs=[(v, steps(v)), (state, all_of)],
        chunk=chunk,
    )
    return output.swapaxes(1, 2)[:, :L], final[:, ::groups].swapaxes(2, 3)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, beta, log_decay, runs, state = residuals
    groups, L = q.shape[2] // k.shape[2], q.shape[1]
    dfinal, doutput = for_one_head_of_each_group(gradients[1], groups), steps_of(gradients[0], chunk)
    gates, q, k, v, state = _lay_out(q, k, v, beta, log_decay, runs, state, chunk)
    states = _states(gates, k, v, state, chunk)
    (steps, at), all_of = in_order(q, chunk, reverse=True), whole(state)
    like_gate = ScalarDecay.gradient_block(gates[:1], at)
    dq, dk, dv, dbeta, dgate, dstate = call(
        _backward_kernel,
        "delta_rule_backward",
        inputs=(q, k, v, doutput, *gates, states, dfinal),
        in_specs=[*map(steps, (q, k, v, doutput)), *_gate_specs(gates, at), of_chunks(states, at), all_of],
        outputs=[(q, steps(q)), (k, steps(k)), (v, steps(v)), like_gate, like_gate, (state, all_of)],
        chunk=chunk,
    )
    dk, dv, dbeta, dgate, dstate = (of_key_heads(x, groups) for x in (dk, dv, dbeta, dgate, dstate))
    dbeta, dlog_decay = dbeta.reshape(*dbeta.shape[:2], -1), ScalarDecay.gradient(dgate)[..., 0]
    dq, dk, dv, dbeta, dlog_decay = (x[:, :, :L].swapaxes(1, 2) for x in (dq, dk, dv, dbeta, dlog_decay))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dbeta, dlog_decay, None, dstate.swapaxes(2, 3)


def _states(gates, k, v, state, chunk: int) -> Float[Array, "B H N V K"]:
    """Return the state before every chunk."""
    steps, at = in_order(k, chunk)
    states = jax.ShapeDtypeStruct((*k.shape[:2], k.shape[2] // chunk, *state.shape[2:]), jnp.float32)
    return call(
        _states_kernel,
        "delta_rule_states",
        inputs=(k, v, *gates, state),
        in_specs=[steps(k), steps(v), *_gate_specs(gates, at), whole(state)],
        outputs=[(states, of_chunks(states, at))],
        chunk=chunk,
    )[0]


def _lay_out(q, k, v, beta, log_decay, runs, state, chunk: int):
    """Return the kernels' inputs: a key head a query head, [B, H, L', ...] in whole chunks, states transposed."""
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v, beta, log_decay = (jnp.repeat(x, groups, axis=2) for x in (k, v, beta, log_decay))
        state = jnp.repeat(state, groups, axis=1)
    beta_BHN1C = split(beta, chunk).transpose(1, 3, 0, 2)[:, :, :, None]
    gates = (*ScalarDecay.gates(log_decay[..., None], runs, chunk), beta_BHN1C)
    return gates, *(steps_of(x, chunk) for x in (q, k, v)), state.swapaxes(2, 3)


def _gate_specs(gates: tuple[Array, Array], at) -> list[pl.BlockSpec]:
    C = gates[1].shape[-1]
    own = pl.BlockSpec((None, None, None, 1, C), lambda b, h, n: (b, h, at(n), 0, 0))
    return [*ScalarDecay.specs(gates[:1], at), own]


def _forward_kernel(q_ref, k_ref, v_ref, rows_ref, beta_ref, first_ref, o_ref, final_ref, state):
    begin(state, first_ref)
    w, q, before = ScalarDecay.read(rows_ref), q_ref[...], state[...]
    c = _Chunk(w, k_ref[...], v_ref[...], beta_ref[...], before)
    output = dot(w.scores(q, c.k).astype(q.dtype), c.u, (1, 0))
    o_ref[...] = (output + dot((q * w.into).astype(q.dtype), c.state, (1, 1))).astype(o_ref.dtype)
    state[...] = c.state_after(before)
    end(state, final_ref)


def _states_kernel(k_ref, v_ref, rows_ref, beta_ref, first_ref, states_ref, state):
    begin(state, first_ref)
    states_ref[...] = before = state[...]
    state[...] = _Chunk(ScalarDecay.read(rows_ref), k_ref[...], v_ref[...], beta_ref[...], before).state_after(before)


def _backward_kernel(q_ref, k_ref, v_ref, do_ref, rows_ref, beta_ref, states_ref, dfinal_ref, *refs):
    dq_ref, dk_ref, dv_ref, dbeta_ref, dgate_ref, dfirst_ref, dstate = refs
    begin(dstate, dfinal_ref)
    w, before, after = ScalarDecay.read(rows_ref), states_ref[...], dstate[...]
    q, k, do, dtype = q_ref[...], k_ref[...], do_ref[...], q_ref.dtype
    c, dafter = _Chunk(w, k, v_ref[...], beta_ref[...], before), after.astype(dtype)
    scores = w.scores(q, k)
    du = dot(scores.astype(dtype), do, (0, 0)) + dot((k * w.out).astype(dtype), dafter, (1, 1))
    dright = dot(c.inverse.astype(dtype), du.astype(dtype), (0, 0))
    dv = c.beta * dright
    dlower = jnp.where(_earlier(w.pairs.shape), -dot(dright.astype(dtype), c.u, (1, 1)), 0.0)
    doverlap = (dlower * c.beta * w.pairs).astype(dtype)  # of the products k_i k_j

    dq_near, dk_near, dpairs = w.pull(q, k, scores, dot(do, c.u, (1, 1)))
    dq_into, dk_into = w.into * dot(do, c.state, (1, 0)), -w.into * dot(dv.astype(dtype), c.state, (1, 0))
    dk_out = w.out * dot(c.u, dafter, (1, 0))
    dk_later, dk_earlier = dot(doverlap, k, (1, 0)), dot(doverlap, k, (0, 0))
    dq_ref[...] = (dq_near + dq_into).astype(dtype)
    dk_ref[...] = (dk_near + dk_into + dk_out + dk_later + dk_earlier).astype(dtype)
    dv_ref[...] = dv.astype(dtype)
    dbeta = jnp.sum(dlower * c.overlap, axis=1, keepdims=True) + jnp.sum(dright * c.error, axis=1, keepdims=True)
    dbeta_ref[...] = row(dbeta)
    dpairs += dlower * c.beta * c.overlap
    dkeep = w.keep * jnp.sum(before * after, axis=0, keepdims=True)
    w.write_gradient(dgate_ref, dpairs, q * dq_into + k * dk_into, k * dk_out, dkeep)
    dstate[...] = (
        w.keep * after
        + dot(do, (q * w.into).astype(dtype), (0, 0))
        - dot(dv.astype(dtype), (k * w.into).astype(dtype), (0, 0))
    )
    end(dstate, dfirst_ref)


class _Chunk:
    """What one chunk adds to the state before it, with the parts that the gradient needs."""

    def __init__(self, w: ScalarDecay, k: Array, v: Array, beta_row: Float[Array, "1 C"], state: Float[Array, "V K"]):
        self.w, self.k, dtype = w, k, k.dtype
        self.state, self.beta = state.astype(dtype), column(beta_row)
        self.overlap = dot(k, k, (1, 1)) * w.pairs
        self.inverse = _inverse(jnp.where(_earlier(w.pairs.shape), self.beta * self.overlap, 0.0))
        self.error = v - dot((k * w.into).astype(dtype), self.state, (1, 1))
        right = (self.beta * self.error).astype(dtype)
        self.u = dot(self.inverse.astype(dtype), right, (1, 0)).astype(dtype)  # [C, V], the rows that are added

    def state_after(self, state: Float[Array, "V K"]) -> Float[Array, "V K"]:
        return self.w.keep * state + dot(self.u, (self.k * self.w.out).astype(self.k.dtype), (0, 0))


def _earlier(shape: tuple[int, ...]) -> Array:
    """Return which columns are of earlier steps than their row."""
    return index(shape, 0) > index(shape, 1)


def _inverse(lower: Float[Array, "C C"]) -> Float[Array, "C C"]:
    """Return the inverse of I + lower, where `lower` is zero on the diagonal and above."""
    C = lower.shape[0]
    same_sub_chunk = index((C, C), 0) // SUB_CHUNK == index((C, C), 1) // SUB_CHUNK
    near, far = jnp.where(same_sub_chunk, lower, 0.0), jnp.where(same_sub_chunk, 0.0, lower)
    inverse_NcC = (index((C, C), 0) == index((C, C), 1)).astype(jnp.float32).reshape(-1, SUB_CHUNK, C)
    for step in range(SUB_CHUNK - 1):  # subtract each row, which is final by now, from those below it
        on = index((C, C), 1) % SUB_CHUNK == step
        factors = jnp.sum(jnp.where(on, near, 0.0), axis=1, keepdims=True).reshape(-1, SUB_CHUNK, 1)
        inverse_NcC = inverse_NcC - factors * inverse_NcC[:, step : step + 1]
    of_blocks = inverse_NcC.reshape(C, C)
    rows = [of_blocks[:SUB_CHUNK]]
    for start in range(SUB_CHUNK, C, SUB_CHUNK):  # one sub-chunk after another, from the earlier ones
        own = slice(start, start + SUB_CHUNK)
        earlier = dot(far[own], _padded(rows, 0, C), (1, 0))
        rows.append(of_blocks[own] - dot(of_blocks[own], _padded([earlier], start, C), (1, 0)))
    return jnp.concatenate(rows)


def _padded(rows: list[Float[Array, "c C"]], start: int, C: int) -> Float[Array, "C C"]:
    """Return a square matrix with these rows from `start` on, and zeros."""
    behind = C - start - SUB_CHUNK * len(rows)
    above, below = (jnp.zeros((size, C), jnp.float32) for size in (start, behind))
    return jnp.concatenate([x for x in (above, *rows, below) if x.shape[0]])

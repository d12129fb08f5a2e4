"""Linear attention in Pallas for TPU: the state stays in the core's memory along the chunks of a sequence.

The grid is (batch, heads, chunks), with chunks one after another. The state is a scratch buffer, transposed, [V, K], so
that gates of key channels lie along the lanes. There are three kernels: the forward pass; the states before each chunk,
recomputed for the backward pass; and the backward pass, from the last chunk to the first. A class of tpu_decay.py is
the decay of a chunk.

The gradient of a log-decay is the sum over all pairs of steps that it lies between. The shorter formula, a running sum
of q_i dq_i - k_i dk_i (Yang et al., 2023, arXiv:2312.06635, appendix C), loses digits in float32. Query heads of a
group are computed separately, each with its own copy of the state.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxtrain_kernels.linear_attention.tpu_decay import ChannelDecay, ScalarDecay
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
LARGEST_CHANNEL_CHUNK = 128  # with gates of key channels in float32, 256 steps of 128 channels exceed a v5e's memory
Decay = type[ScalarDecay] | type[ChannelDecay]


def refuses(q: Float[Array, "B L H K"], *_: object) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    return () if q.dtype in DTYPES else (f"q, k and v are {q.dtype}, not float32 or bfloat16",)


def forward(q, k, v, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py."""
    groups, L, chunk = q.shape[2] // k.shape[2], q.shape[1], _chunk_size(chunk, log_decay)
    decay, gates, q, k, v, state = _lay_out(q, k, v, log_decay, runs, state, chunk)
    (steps, at), all_of = in_order(q, chunk), whole(state)
    output, final = call(
        functools.partial(_forward_kernel, decay),
        "linear_attention_forward",
        inputs=(q, k, v, *gates, state),
        in_specs=[steps(q), steps(k), steps(v), *decay.specs(gates, at), all_of],
        outputs=[(v, steps(v)), (state, all_of)],
        chunk=chunk,
    )
    return output.swapaxes(1, 2)[:, :L], final[:, ::groups].swapaxes(2, 3)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, log_decay, runs, state = residuals
    groups, L, chunk = q.shape[2] // k.shape[2], q.shape[1], _chunk_size(chunk, log_decay)
    dfinal = for_one_head_of_each_group(gradients[1], groups)
    doutput = steps_of(gradients[0], chunk)
    decay, gates, q, k, v, state = _lay_out(q, k, v, log_decay, runs, state, chunk)
    states = _states(decay, gates, k, v, state, chunk)
    (steps, at), all_of = in_order(q, chunk, reverse=True), whole(state)
    dq, dk, dv, dgate, dstate = call(
        functools.partial(_backward_kernel, decay),
        "linear_attention_backward",
        inputs=(q, k, v, doutput, *gates, states, dfinal),
        in_specs=[*map(steps, (q, k, v, doutput)), *decay.specs(gates, at), of_chunks(states, at), all_of],
        outputs=[(q, steps(q)), (k, steps(k)), (v, steps(v)), decay.gradient_block(gates, at), (state, all_of)],
        chunk=chunk,
    )
    dk, dv, dgate, dstate = (of_key_heads(x, groups) for x in (dk, dv, dgate, dstate))
    dq, dk, dv, dlog_decay = (x[:, :, :L].swapaxes(1, 2) for x in (dq, dk, dv, decay.gradient(dgate)))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dlog_decay, None, dstate.swapaxes(2, 3)


def _chunk_size(chunk: int, log_decay: Float[Array, "B L J #K"]) -> int:
    return chunk if log_decay.shape[-1] == 1 else min(chunk, LARGEST_CHANNEL_CHUNK)


def _states(decay: Decay, gates, k, v, state, chunk: int) -> Float[Array, "B H N V K"]:
    """Return the state before every chunk."""
    steps, at = in_order(k, chunk)
    states = jax.ShapeDtypeStruct((*k.shape[:2], k.shape[2] // chunk, *state.shape[2:]), jnp.float32)
    return call(
        functools.partial(_states_kernel, decay),
        "linear_attention_states",
        inputs=(k, v, *gates, state),
        in_specs=[steps(k), steps(v), *decay.specs(gates, at), whole(state)],
        outputs=[(states, of_chunks(states, at))],
        chunk=chunk,
    )[0]


def _forward_kernel(decay: Decay, q_ref, k_ref, v_ref, *refs):
    *gate_refs, first_ref, o_ref, final_ref, state = refs
    w, (q, k, v) = decay.read(*gate_refs), (ref[...] for ref in (q_ref, k_ref, v_ref))
    begin(state, first_ref)
    before = state[...]
    output = dot(w.scores(q, k).astype(v.dtype), v, (1, 0))
    o_ref[...] = (output + dot((q * w.into).astype(v.dtype), before.astype(v.dtype), (1, 1))).astype(o_ref.dtype)
    state[...] = w.keep * before + dot(v, (k * w.out).astype(v.dtype), (0, 0))
    end(state, final_ref)


def _states_kernel(decay: Decay, k_ref, v_ref, *refs):
    *gate_refs, first_ref, states_ref, state = refs
    w, (k, v) = decay.read(*gate_refs), (ref[...] for ref in (k_ref, v_ref))
    begin(state, first_ref)
    states_ref[...] = before = state[...]
    state[...] = w.keep * before + dot(v, (k * w.out).astype(v.dtype), (0, 0))


def _backward_kernel(decay: Decay, q_ref, k_ref, v_ref, do_ref, *refs):
    *gate_refs, states_ref, dfinal_ref, dq_ref, dk_ref, dv_ref, dgate_ref, dfirst_ref, dstate = refs
    w, (q, k, v, do) = decay.read(*gate_refs), (ref[...] for ref in (q_ref, k_ref, v_ref, do_ref))
    dtype = v.dtype
    begin(dstate, dfinal_ref)
    before, after = states_ref[...], dstate[...]
    scores = w.scores(q, k)
    dq_near, dk_near, dgate_near = w.pull(q, k, scores, dot(do, v, (1, 1)))
    dq_into = w.into * dot(do, before.astype(dtype), (1, 0))
    dk_out = w.out * dot(v, after.astype(dtype), (1, 0))
    dv = dot(scores.astype(dtype), do, (0, 0)) + dot((k * w.out).astype(dtype), after.astype(dtype), (1, 1))
    dq_ref[...] = (dq_near + dq_into).astype(dtype)
    dk_ref[...] = (dk_near + dk_out).astype(dtype)
    dv_ref[...] = dv.astype(dtype)
    dkeep = w.keep * jnp.sum(before * after, axis=0, keepdims=True)
    w.write_gradient(dgate_ref, dgate_near, q * dq_into, k * dk_out, dkeep)
    dstate[...] = w.keep * after + dot(do, (q * w.into).astype(dtype), (0, 0))
    end(dstate, dfirst_ref)


def _lay_out(q, k, v, log_decay, runs, state, chunk: int):
    """Return the kernels' inputs: a key head a query head, [B, H, L', ...] in whole chunks, states transposed."""
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v, log_decay = (jnp.repeat(x, groups, axis=2) for x in (k, v, log_decay))
        state = jnp.repeat(state, groups, axis=1)
    decay = ScalarDecay if log_decay.shape[-1] == 1 else ChannelDecay
    gates = decay.gates(log_decay, runs, chunk)
    return decay, gates, *(steps_of(x, chunk) for x in (q, k, v)), state.swapaxes(2, 3)

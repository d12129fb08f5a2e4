"""Linear attention in Pallas for TPU: the state stays in the core's memory along the chunks of a sequence.

The grid is (batch, heads, chunks), chunks one after another; the state is a scratch buffer, kept transposed, [V, K], so
that gates of key channels lie along the lanes. Three kernels: the forward pass; the states before each chunk, computed
again for the backward pass; and the backward pass, from the last chunk to the first. How a chunk decays is a class of
tpu_decay.py.

The gradient of a log-decay comes from those of queries and keys: with c the running sum of log-decays, dc_i = q_i dq_i
- k_i dk_i (Yang et al., 2023, arXiv:2312.06635, appendix C), summed from the end of the chunk, where what leaves it adds
S dS. Query heads of a group are computed apart, each with its own copy of the state.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from jaxtrain_kernels.linear_attention.tpu_decay import ChannelDecay, ScalarDecay, dot

DTYPES = (jnp.float32, jnp.bfloat16)
Decay = type[ScalarDecay] | type[ChannelDecay]


def refuses(q: Float[Array, "B L H K"], *_: object) -> Sequence[str]:
    """Return why the kernels cannot take the call."""
    return () if q.dtype in DTYPES else (f"q, k and v are {q.dtype}, not float32 or bfloat16",)


def forward(q, k, v, log_decay, runs, state, *, chunk: int):
    """Return the output of every step and the state after the last; shapes as in api.py."""
    groups, L = q.shape[2] // k.shape[2], q.shape[1]
    decay, gates, q, k, v, state = _lay_out(q, k, v, log_decay, runs, state, chunk)
    steps, at, whole = *_in_order(q, chunk), _whole(state)
    output, final = _call(
        functools.partial(_forward_kernel, decay),
        "linear_attention_forward",
        inputs=(q, k, v, *gates, state),
        in_specs=[steps(q), steps(k), steps(v), *decay.specs(gates, at), whole],
        outputs=[(v, steps(v)), (state, whole)],
        chunk=chunk,
    )
    return output.swapaxes(1, 2)[:, :L], final[:, ::groups].swapaxes(2, 3)


def backward(residuals, gradients, *, chunk: int):
    """Return the gradients of the inputs, from the inputs and the gradients of output and final state."""
    q, k, v, log_decay, runs, state = residuals
    groups, L = q.shape[2] // k.shape[2], q.shape[1]
    # One query head of each group hands the gradient of the final state on.
    first = (jnp.arange(q.shape[2]) % groups == 0)[None, :, None, None]
    dfinal = jnp.where(first, jnp.repeat(gradients[1], groups, axis=1), 0).swapaxes(2, 3)
    doutput = _steps(gradients[0], chunk)
    decay, gates, q, k, v, state = _lay_out(q, k, v, log_decay, runs, state, chunk)
    states = _states(decay, gates, k, v, state, chunk)
    steps, at, whole = *_in_order(q, chunk, reverse=True), _whole(state)
    dq, dk, dv, dgate, dstate = _call(
        functools.partial(_backward_kernel, decay),
        "linear_attention_backward",
        inputs=(q, k, v, doutput, *gates, states, dfinal),
        in_specs=[*map(steps, (q, k, v, doutput)), *decay.specs(gates, at), _of_chunks(states, at), whole],
        outputs=[(q, steps(q)), (k, steps(k)), (v, steps(v)), decay.gradient_block(gates, at), (state, whole)],
        chunk=chunk,
    )

    def of_key_heads(x: Array) -> Array:
        """Sum what the query heads of a group give their key head: [B, H, ...] to [B, J, ...]."""
        return x.astype(jnp.float32).reshape(x.shape[0], -1, groups, *x.shape[2:]).sum(axis=2)

    dlog_decay = decay.gradient(of_key_heads(dgate))
    dq, dk, dv, dlog_decay = (x[:, :, :L].swapaxes(1, 2) for x in (dq, of_key_heads(dk), of_key_heads(dv), dlog_decay))
    return dq, dk.astype(k.dtype), dv.astype(v.dtype), dlog_decay, None, of_key_heads(dstate).swapaxes(2, 3)


def _states(decay: Decay, gates, k, v, state, chunk: int) -> Float[Array, "B H N V K"]:
    """Return the state before every chunk."""
    steps, at = _in_order(k, chunk)
    states = jax.ShapeDtypeStruct((*k.shape[:2], k.shape[2] // chunk, *state.shape[2:]), jnp.float32)
    return _call(
        functools.partial(_states_kernel, decay),
        "linear_attention_states",
        inputs=(k, v, *gates, state),
        in_specs=[steps(k), steps(v), *decay.specs(gates, at), _whole(state)],
        outputs=[(states, _of_chunks(states, at))],
        chunk=chunk,
    )[0]


def _forward_kernel(decay: Decay, q_ref, k_ref, v_ref, *refs):
    *gate_refs, first_ref, o_ref, final_ref, state = refs
    w, (q, k, v) = decay.read(*gate_refs), (ref[...] for ref in (q_ref, k_ref, v_ref))
    _begin(state, first_ref)
    before = state[...]
    output = dot(w.scores(q, k).astype(v.dtype), v, (1, 0))
    o_ref[...] = (output + dot((q * w.into).astype(v.dtype), before.astype(v.dtype), (1, 1))).astype(o_ref.dtype)
    state[...] = w.keep * before + dot(v, (k * w.out).astype(v.dtype), (0, 0))
    _end(state, final_ref)


def _states_kernel(decay: Decay, k_ref, v_ref, *refs):
    *gate_refs, first_ref, states_ref, state = refs
    w, (k, v) = decay.read(*gate_refs), (ref[...] for ref in (k_ref, v_ref))
    _begin(state, first_ref)
    states_ref[...] = before = state[...]
    state[...] = w.keep * before + dot(v, (k * w.out).astype(v.dtype), (0, 0))


def _backward_kernel(decay: Decay, q_ref, k_ref, v_ref, do_ref, *refs):
    *gate_refs, states_ref, dfinal_ref, dq_ref, dk_ref, dv_ref, dgate_ref, dfirst_ref, dstate = refs
    w, (q, k, v, do) = decay.read(*gate_refs), (ref[...] for ref in (q_ref, k_ref, v_ref, do_ref))
    dtype = v.dtype
    _begin(dstate, dfinal_ref)
    before, after = states_ref[...], dstate[...]
    dq, dk = w.pull(q, k, dot(do, v, (1, 1)))
    dq += w.into * dot(do, before.astype(dtype), (1, 0))
    dk_out = w.out * dot(v, after.astype(dtype), (1, 0))
    dk += dk_out
    dv = dot(w.scores(q, k).astype(dtype), do, (0, 0)) + dot((k * w.out).astype(dtype), after.astype(dtype), (1, 1))
    dq_ref[...], dk_ref[...], dv_ref[...] = (x.astype(dtype) for x in (dq, dk, dv))
    leaves = w.keep * jnp.sum(before * after, axis=0, keepdims=True) + jnp.sum(k * dk_out, axis=0, keepdims=True)
    w.write_gradient(dgate_ref, q * dq - k * dk, leaves)
    dstate[...] = w.keep * after + dot(do, (q * w.into).astype(dtype), (0, 0))
    _end(dstate, dfirst_ref)


def _begin(scratch, ref) -> None:
    @pl.when(pl.program_id(2) == 0)
    def _():
        scratch[...] = ref[...]


def _end(scratch, ref) -> None:
    @pl.when(pl.program_id(2) == pl.num_programs(2) - 1)
    def _():
        ref[...] = scratch[...]


def _call(kernel, name: str, *, inputs, in_specs, outputs, chunk: int) -> list[Array]:
    B, H, L, _ = inputs[0].shape
    K, V = inputs[-1].shape[-1], inputs[-1].shape[-2]
    return pl.pallas_call(
        kernel,
        name=name,
        grid=(B, H, L // chunk),
        in_specs=in_specs,
        out_specs=[spec for _, spec in outputs],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x, _ in outputs],
        scratch_shapes=[pltpu.VMEM((V, K), jnp.float32)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
    )(*inputs)


def _lay_out(q, k, v, log_decay, runs, state, chunk: int):
    """Return the kernels' form: a key head for every query head, [B, H, L', ...] in whole chunks, states transposed."""
    groups = q.shape[2] // k.shape[2]
    if groups > 1:
        k, v, log_decay = (jnp.repeat(x, groups, axis=2) for x in (k, v, log_decay))
        state = jnp.repeat(state, groups, axis=1)
    decay = ScalarDecay if log_decay.shape[-1] == 1 else ChannelDecay
    gates = decay.gates(log_decay, runs, chunk)
    return decay, gates, *(_steps(x, chunk) for x in (q, k, v)), state.swapaxes(2, 3)


def _steps(x: Float[Array, "B L H K"], chunk: int) -> Float[Array, "B H L K"]:
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, -x.shape[1] % chunk), (0, 0)))


def _in_order(x: Float[Array, "B H L K"], chunk: int, *, reverse: bool = False):
    """Return the block of an array along the steps, and which chunk a step of the grid works on."""
    N = x.shape[2] // chunk

    def at(n):
        return N - 1 - n if reverse else n

    return lambda x: pl.BlockSpec((None, None, chunk, x.shape[3]), lambda b, h, n: (b, h, at(n), 0)), at


def _of_chunks(states: Float[Array, "B H N V K"], at) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, None, *states.shape[3:]), lambda b, h, n: (b, h, at(n), 0, 0))


def _whole(state: Float[Array, "B H V K"]) -> pl.BlockSpec:
    return pl.BlockSpec((None, None, *state.shape[2:]), lambda b, h, n: (b, h, 0, 0))

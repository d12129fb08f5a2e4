"""Softmax attention in memory linear in the length: the public functions.

    s_ij = softcap tanh(scale q_i k_j / softcap) - slope |i - j| + bias_ij    over the keys j that query i sees
    lse_i = log(exp(sink) + sum_j exp(s_ij))        o_i = sum_j exp(s_ij - lse_i) v_j

Dao et al. (2022), arXiv:2205.14135; Dao (2023), arXiv:2307.08691. Grouped heads, Ainslie et al. (2023),
arXiv:2305.13245; soft cap, Gemma 2 (2024), arXiv:2408.00118; sliding window, Beltagy et al. (2020), arXiv:2004.05150;
sinks, one learned logit a head (gpt-oss, 2025, arXiv:2508.10925); slopes (ALiBi), Press et al. (2021),
arXiv:2108.12409.

An implementation is a forward and a backward on `problem.Inputs`, without sinks. A sink is one more partial result,
whose value is zero and whose log-sum-exp is `sink`; the backward needs only the log-sum-exp of the whole. Left out:
dropout of weights; a block-sparse mask, which would be one more condition on the tiles that implementations skip; a
forward mode, which would need a custom_jvp around the pair, with sums for the tangents.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxtrain_kernels.choice import Implementation, choose
from jaxtrain_kernels.dtypes import check_dtypes
from jaxtrain_kernels.flash_attention import reference, xla
from jaxtrain_kernels.flash_attention.problem import LOWEST, Blocks, Inputs, Options, accumulator
from jaxtrain_kernels.varying import alike


class Gradients(NamedTuple):
    q: Float[Array, "B L H K"]
    k: Float[Array, "B S J K"]
    v: Float[Array, "B S J V"]
    bias: Float[Array, "#B #H #L #S"] | None
    sinks: Float[Array, " H"] | None


def flash_attention(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S J K"],
    v: Float[Array, "B S J V"],
    *,
    bias: Float[Array, "#B #H #L #S"] | None = None,
    sinks: Float[Array, " H"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    slopes: tuple[float, ...] | None = None,
    offset: int | Int[Array, ""] = 0,
    return_lse: bool = False,
    blocks: Blocks | None = None,
    implementation: str | None = None,
) -> Float[Array, "B L H V"] | tuple[Float[Array, "B L H V"], Float[Array, "B L H"]]:
    """Return what every query reads from the keys it sees, in the dtype of `v`; with `return_lse`, `lse` as well.

    Query i is at position `offset + i` on the keys' axis. The offset is the number of tokens before it in a cache, or
    the distance of two parts of a ring; it may be traced. A causal query sees keys up to its position. `window` counts
    the keys it sees back from there, its own included, and if not causal as many ahead. Segment ids must be equal
    (`key_segment_ids` are `segment_ids` by default). Each of the J key heads serves H/J query heads. `scale` is K**-0.5
    by default. `slopes`, a number for each head, lower a score by the distance of its key: no L x S bias is made.

    Scores and sums are in float32. A query that sees no key gives 0, with lse = -inf, or the sink if it has one. So
    does a query all of whose scores bias sets below -5e29. Both results are differentiable with respect to q, k, v,
    bias and sinks, so that partial results can be combined (`combine`).

        o = flash_attention(q, k, v, segment_ids=documents, window=4096)

    Raises:
        ValueError: shapes, dtypes or options do not fit each other.
        NotImplementedError: the implementation asked for does not take the call; with its reasons.
    """
    inputs, sinks = _inputs(q, k, v, bias, sinks, segment_ids, key_segment_ids, offset)
    options = _options(q, causal, window, softcap, scale, slopes, offset, blocks)
    run = choose("flash_attention", IMPLEMENTATIONS, implementation, inputs, options).run
    o, lse = run(options, inputs, sinks)
    return (o, lse.swapaxes(1, 2)) if return_lse else o


def flash_attention_backward(
    q: Float[Array, "B L H K"],
    k: Float[Array, "B S J K"],
    v: Float[Array, "B S J V"],
    o: Float[Array, "B L H V"],
    lse: Float[Array, "B L H"],
    do: Float[Array, "B L H V"],
    dlse: Float[Array, "B L H"] | None = None,
    *,
    bias: Float[Array, "#B #H #L #S"] | None = None,
    sinks: Float[Array, " H"] | None = None,
    segment_ids: Int[Array, "B L"] | None = None,
    key_segment_ids: Int[Array, "B S"] | None = None,
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    slopes: tuple[float, ...] | None = None,
    offset: int | Int[Array, ""] = 0,
    blocks: Blocks | None = None,
    implementation: str | None = None,
) -> Gradients:
    """Return the gradients of `flash_attention` from its results and their gradients, for code with its own backward.

    Given `o` and `lse` of a whole attention and some of its keys and values, return the part of the whole gradient that
    these keys have: what a ring needs.
    """
    inputs, sinks = _inputs(q, k, v, bias, sinks, segment_ids, key_segment_ids, offset)
    options = _options(q, causal, window, softcap, scale, slopes, offset, blocks)
    for name, x in {"o": o, "lse": lse, "do": do, "dlse": dlse}.items():
        shape = q.shape[:3] if "lse" in name else (*q.shape[:3], v.shape[3])
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}: with q {q.shape} and v {v.shape} it must be {shape}")
    run = choose("flash_attention_backward", BACKWARDS, implementation, inputs, options).run
    dlse = None if dlse is None else dlse.swapaxes(1, 2)
    return _gradients(run, options, inputs, sinks, o, lse.swapaxes(1, 2), do, dlse)


def combine(
    one: tuple[Float[Array, "B L H V"], Float[Array, "B L H"]],
    other: tuple[Float[Array, "B L H V"], Float[Array, "B L H"]],
) -> tuple[Float[Array, "B L H V"], Float[Array, "B L H"]]:
    """Return output and log-sum-exp over the keys of both results; differentiable even if a query saw no key."""
    (o1, lse1), (o2, lse2) = one, other
    top = jax.lax.stop_gradient(jnp.maximum(lse1, lse2))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    w1, w2 = (jnp.where(lse == -jnp.inf, 0.0, jnp.exp(lse - top)) for lse in (lse1, lse2))
    total = w1 + w2
    some = jnp.where(total == 0, 1.0, total)
    o = (w1 / some)[..., None] * o1 + (w2 / some)[..., None] * o2
    return o.astype(o1.dtype), jnp.where(total == 0, -jnp.inf, top + jnp.log(some))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _differentiable(forward: Callable, backward: Callable, options: Options, inputs: Inputs, sinks):
    """Run `forward`; the gradient is `backward` of the inputs, the output and the log-sum-exp."""
    o, lse = forward(inputs, options)
    return (o, lse) if sinks is None else _with_sinks(o, lse, sinks)


def _with_sinks(o, lse, sinks):
    total = jnp.logaddexp(lse, sinks.astype(lse.dtype)[None, :, None])
    none = lse == -jnp.inf  # of a sink of -inf, the total is too
    kept = jnp.where(none, 0.0, jnp.exp(lse - jnp.where(none, 0.0, total))).swapaxes(1, 2)[..., None]
    return (o * kept).astype(o.dtype), total


def _forward(forward: Callable, backward: Callable, options: Options, inputs: Inputs, sinks):
    o, lse = _differentiable(forward, backward, options, inputs, sinks)
    return (o, lse), (inputs, sinks, o, lse)


def _backward(forward: Callable, backward: Callable, options: Options, kept, gradients):
    d = _gradients(backward, options, *kept, *gradients)
    return Inputs(d.q, d.k, d.v, d.bias), d.sinks


_differentiable.defvjp(_forward, _backward)


def _gradients(backward: Callable, options: Options, inputs: Inputs, sinks, o, lse, do, dlse) -> Gradients:
    # Without the barrier XLA shares masks and casts with a recomputed forward pass, and keeps them all in between.
    inputs, o, lse, do = jax.lax.optimization_barrier((inputs, o, lse, do))
    # ds_ij = p_ij (do_i v_j - delta_i) holds for every key in the log-sum-exp. A sink is a key whose value is zero.
    delta = jnp.sum(do.astype(lse.dtype) * o.astype(lse.dtype), axis=-1).swapaxes(1, 2)
    delta = delta if dlse is None else delta - dlse
    empty = lse == -jnp.inf
    delta = jnp.where(empty, 0.0, delta)
    # Keys out of sight have finite scores of at most LOWEST. A row with lse below LOWEST must not give them weight.
    dq, dk, dv, dbias = backward(inputs, jnp.where(lse < LOWEST, jnp.inf, lse), delta, do, options)
    dsinks = None
    if sinks is not None:
        weights = jnp.exp(sinks.astype(lse.dtype)[None, :, None] - jnp.where(empty, jnp.inf, lse))
        dsinks = -jnp.sum(weights * delta, axis=(0, 2)).astype(sinks.dtype)
    return Gradients(dq, dk, dv, dbias, dsinks)


def _run_reference(options: Options, inputs: Inputs, sinks):
    dtype = accumulator(inputs.q.dtype)
    wide = inputs._replace(**{name: getattr(inputs, name).astype(dtype) for name in ("q", "k", "v")})
    o, lse = reference.flash_attention(wide, sinks, options)
    return o.astype(inputs.v.dtype), lse


def _tpu():
    from jaxtrain_kernels.flash_attention import tpu  # not at the top: importing Pallas takes a second or more

    return tpu


def _gpu():
    from jaxtrain_kernels.flash_attention import gpu

    return gpu


def _run_kernels(kernels: Callable, options: Options, inputs: Inputs, sinks):
    return _differentiable(kernels().forward, kernels().backward, options, inputs, sinks)


def _run_backward(kernels: Callable, *arguments):
    return kernels().backward(*arguments)


def _refuses(kernels: Callable, *arguments):
    return kernels().refuses(*arguments)


def _on_devices(run: Callable) -> tuple[Implementation, ...]:
    def of(name: str, kernels: Callable) -> Implementation:
        run_them, refuses = functools.partial(run, kernels), functools.partial(_refuses, kernels)
        return Implementation(name=name, run=run_them, refuses=refuses, proven=False)

    return of("tpu", _tpu), of("gpu", _gpu)


IMPLEMENTATIONS = (
    Implementation(name="xla", run=functools.partial(_differentiable, xla.forward, xla.backward)),
    Implementation(name="reference", run=_run_reference),
    *_on_devices(_run_kernels),
)
BACKWARDS = (Implementation(name="xla", run=xla.backward), *_on_devices(_run_backward))


def _options(q, causal, window, softcap, scale, slopes, offset, blocks) -> Options:
    if window is not None and not (isinstance(window, int) and window >= 1):
        raise ValueError(f"{window=}: must be a whole number of at least 1, or None for no window")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"{softcap=}: must be above 0, or None for no soft cap")
    if slopes is not None and len(slopes) != q.shape[2]:
        raise ValueError(f"{len(slopes)} slopes with {q.shape[2]} heads of q: give each head one")
    return Options(
        causal=causal,
        window=window,
        softcap=softcap,
        scale=q.shape[-1] ** -0.5 if scale is None else scale,
        slopes=slopes,
        offset=None if isinstance(offset, jax.Array) else operator.index(offset),
        blocks=blocks or Blocks(),
    )


def _inputs(q, k, v, bias, sinks, segment_ids, key_segment_ids, offset) -> tuple[Inputs, Array | None]:
    for name, x in {"q": q, "k": k, "v": v}.items():
        if x.ndim != 4:
            raise ValueError(f"{name} has shape {x.shape}: it must have four axes, batch, length, heads and head dim")
    (B, L, H, K), (_, S, J, _) = q.shape, k.shape
    if J < 1 or H % J:
        raise ValueError(f"k has {J} heads: they must divide the {H} heads of q")
    if 0 in (B, L, S):
        raise ValueError(f"q has {B} rows of {L} places and k of {S}: give at least one")
    if key_segment_ids is None and L == S:
        key_segment_ids = segment_ids
    if (segment_ids is None) != (key_segment_ids is None):
        raise ValueError(f"segment_ids and key_segment_ids: give both, or neither, with {L} queries and {S} keys")
    expected = {
        "k": (k, (B, S, J, K)),
        "v": (v, (B, S, J, v.shape[-1])),
        "sinks": (sinks, (H,)),
        "segment_ids": (segment_ids, (B, L)),
        "key_segment_ids": (key_segment_ids, (B, S)),
    }
    for name, (x, shape) in expected.items():
        if x is not None and x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}: with q {q.shape} and k {k.shape} it must be {shape}")
    if bias is not None and not _broadcasts(bias.shape, (B, H, L, S)):
        raise ValueError(f"bias has shape {bias.shape}: must be {(B, H, L, S)}, where any of these may be 1")
    if bias is not None and not jnp.issubdtype(bias.dtype, jnp.floating):
        raise ValueError(f"bias of dtype {bias.dtype}: give floats, which are added to the scores; -inf hides a key")
    check_dtypes(q, k, v)
    traced = offset if isinstance(offset, jax.Array) else None
    if traced is not None and (traced.ndim or not jnp.issubdtype(traced.dtype, jnp.integer)):
        raise ValueError(f"offset of shape {traced.shape} and dtype {traced.dtype}: give one integer for all rows")
    leaves, structure = jax.tree.flatten((Inputs(q, k, v, bias, segment_ids, key_segment_ids, traced), sinks))
    return jax.tree.unflatten(structure, alike(*leaves))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    return len(shape) == len(to) and all(n in (1, m) for n, m in zip(shape, to, strict=True))

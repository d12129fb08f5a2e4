"""What scripts/bench_kernels.py times: every operation of jaxtrain_kernels beside what one would use instead of it.

A contest is an operation with its inputs. An implementation is a function of those inputs, a command in another
environment, or the reason why it does not run on this device. Work is counted once, whatever an implementation does:
products of the definition (forward 1, backward 2; attention 2 and 5), bytes of every array that must be read or
written.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtrain_kernels import (
    adamw_8bit,
    block_quant,
    cross_entropy,
    delta_rule,
    flash_attention,
    grouped_matmul,
    linear_attention,
)
from jaxtrain_kernels.block_quant.dynamic_map import published
from jaxtrain_kernels.chunks import per_step


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    batch: int
    length: int
    heads: int
    head_dim: int
    vocabulary: int
    width: int
    elements: int


SIZES = {
    "small": Size(batch=1, length=128, heads=2, head_dim=64, vocabulary=512, width=64, elements=1 << 14),
    "medium": Size(batch=1, length=1024, heads=4, head_dim=64, vocabulary=32_768, width=256, elements=1 << 22),
    "large": Size(batch=2, length=8192, heads=16, head_dim=128, vocabulary=131_072, width=4096, elements=1 << 28),
}


@dataclass(frozen=True, slots=True)
class NotHere:
    """Why an implementation does not run on this device."""

    reason: str


@dataclass(frozen=True, slots=True)
class Peer:
    """A kernel of flash-linear-attention, timed by scripts/peers/fla_kernels.py."""

    kernel: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What a device must do at least: its time is the longer of the two."""

    bytes: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Contest:
    name: str
    shape: str
    inputs: Callable[[], tuple[Any, ...]]
    implementations: dict[str, Callable | NotHere | Peer]
    work: Work
    other_work: dict[str, Work]  # of implementations that must move more or less


def contests(size: Size) -> list[Contest]:
    """Return all contests for this device."""
    attention = [_attention(size, causal=True, backward=False)]
    attention += [_attention(size, causal=causal, backward=True) for causal in (True, False)]
    linear = [_linear(size, kind) for kind in ("none", "head", "step", "channel")]
    delta = [_delta(size, gated) for gated in (False, True)]
    grouped = [_grouped(size, backward=backward) for backward in (False, True)]
    others = _quantize(size), _dequantize(size), _adamw(size), _cross_entropy(size)
    return [*attention, *linear, *delta, *others, *grouped]


def _on(platform: str, run: Callable) -> Callable | NotHere:
    here = jax.default_backend()
    return run if here == platform else NotHere(f"written for {platform}, this is {here}")


def _ours(names: str, implementation: Callable[[str], Callable]) -> dict[str, Callable | NotHere]:
    """Return our implementations by name, from a function of an implementation's name."""
    found = {"jaxtrain xla": implementation("xla")}
    return found | {f"jaxtrain {name}": _on(name, implementation(name)) for name in names.split()}


def _forward(function: Callable, tensors: int) -> Callable:
    return lambda *arrays: function(*arrays[:tensors])


def _with_gradients(function: Callable, tensors: int) -> Callable:
    """Return output and gradients of a function of the first so many arrays, from that of its output, the last."""

    def run(*arrays):
        output, pull = jax.vjp(function, *arrays[:tensors])
        return output, pull(arrays[-1].astype(output.dtype))

    return run


def _normal(*shapes: tuple[int, ...], dtype=jnp.bfloat16) -> tuple[jax.Array, ...]:
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True))


def _written(size: Size) -> str:
    return f"{size.batch} x {size.length} x {size.heads} x {size.head_dim} bf16"


def _attention(size: Size, *, causal: bool, backward: bool) -> Contest:
    shape = size.batch, size.length, size.heads, size.head_dim
    of_tensors = functools.partial(_with_gradients if backward else _forward, tensors=3)
    plain = functools.partial(jax.nn.dot_product_attention, is_causal=causal)
    implementations = _ours(
        "tpu gpu", lambda name: functools.partial(flash_attention.flash_attention, causal=causal, implementation=name)
    )
    implementations |= {
        "jax.nn xla": functools.partial(plain, implementation="xla"),
        "jax.nn cuDNN": _on("gpu", functools.partial(plain, implementation="cudnn")),
        "jax's Pallas for TPU": _on("tpu", functools.partial(_pallas_for_tpu, causal)),
        "jax's Pallas for GPU": _on("gpu", functools.partial(_pallas_for_gpu, causal)),
    }
    product = 2 * math.prod(shape) * size.length * (0.5 if causal else 1)
    return Contest(
        name=f"flash_attention, {'causal' if causal else 'full'}, {'forward+backward' if backward else 'forward'}",
        shape=_written(size),
        inputs=lambda: _normal(*[shape] * 4),
        implementations={
            name: implementation if isinstance(implementation, NotHere) else of_tensors(implementation)
            for name, implementation in implementations.items()
        },
        work=Work(flops=product * (7 if backward else 2)),
        other_work={},
    )


def _pallas_for_tpu(causal: bool, q, k, v):
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention as pallas

    q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
    return pallas(q, k, v, causal=causal, sm_scale=q.shape[-1] ** -0.5).swapaxes(1, 2)


def _pallas_for_gpu(causal: bool, q, k, v):
    from jax.experimental.pallas.ops.gpu.attention_mgpu import TuningConfig, attention

    backward = {f"block_{name}": 64 for name in ("q_dkv", "kv_dkv", "q_dq", "kv_dq")}
    config = TuningConfig(block_q=64, block_kv=128, max_concurrent_steps=2, causal=causal, **backward)
    return attention(q * jnp.asarray(q.shape[-1] ** -0.5, q.dtype), k, v, config)


def _linear(size: Size, kind: str) -> Contest:
    steps = size.batch, size.length, size.heads
    gates = {"none": None, "head": (size.heads,), "step": steps, "channel": (*steps, size.head_dim)}
    tensors = 3 if kind == "none" else 4

    def inputs():
        q, k, v, do = _normal(*[(*steps, size.head_dim)] * 4)
        gate = () if kind == "none" else (jax.nn.log_sigmoid(_normal(gates[kind], dtype=jnp.float32)[0] + 4),)
        return q, k, v, *gate, do

    def ours(name):
        def run(*tensors):
            return linear_attention.linear_attention(*tensors, implementation=name)[0]

        return _with_gradients(run, tensors)

    implementations = _ours("tpu gpu", ours) | {"lax.associative_scan": _with_gradients(_associative_scan, tensors)}
    peers = {"none": "linear_attn", "head": "retention", "step": "simple_gla", "channel": "gla"}
    gate_bytes = 4 * math.prod(gates[kind] or (0,))
    return Contest(
        name=f"linear_attention, decay {kind}, forward+backward",
        shape=_written(size),
        inputs=inputs,
        implementations=implementations | {"fla (Triton)": _on_gpu(Peer(f"chunk_{peers[kind]}"))},
        work=Work(bytes=_traffic(size) + 3 * gate_bytes),
        other_work={},
    )


def _on_gpu(peer: Peer) -> Peer | NotHere:
    return peer if jax.default_backend() == "gpu" else NotHere("its kernels need CUDA")


def _traffic(size: Size) -> float:
    """Return the bytes of q, k, v: twice read, their gradients written; and of o and do: each written or read once."""
    return (3 * 3 + 2) * 2 * size.batch * size.length * size.heads * size.head_dim


def _associative_scan(q, k, v, log_decay=None):
    """The recurrence as a scan over prefixes, which holds the state of every step."""

    def join(earlier, later):
        return earlier[0] * later[0], earlier[1] * later[0][..., None] + later[1]

    decay = jnp.exp(per_step(log_decay, k))
    added = k.astype(jnp.float32)[..., None] * v.astype(jnp.float32)[..., None, :]
    _, states = jax.lax.associative_scan(join, (decay, added), axis=1)
    return jnp.einsum("BLHK,BLHKV->BLHV", q.astype(jnp.float32), states).astype(v.dtype)


def _delta(size: Size, gated: bool) -> Contest:
    steps = size.batch, size.length, size.heads
    tensors = 5 if gated else 4

    def inputs():
        q, k, v, do = _normal(*[(*steps, size.head_dim)] * 4)
        scalars = _normal(steps, steps, dtype=jnp.float32)
        gates = (jax.nn.sigmoid(scalars[0]), jax.nn.log_sigmoid(scalars[1] + 4))
        k = (k / jnp.linalg.norm(k.astype(jnp.float32), axis=-1, keepdims=True)).astype(k.dtype)
        return q, k, v, *gates[: tensors - 3], do

    def ours(name):
        def run(*tensors):
            return delta_rule.delta_rule(*tensors, implementation=name)[0]

        return _with_gradients(run, tensors)

    kernels = " ".join(one.name for one in delta_rule.api.IMPLEMENTATIONS if one.name in ("tpu", "gpu"))
    peer = Peer("chunk_gated_delta_rule" if gated else "chunk_delta_rule")
    return Contest(
        name=f"delta_rule, {'gated' if gated else 'plain'}, forward+backward",
        shape=_written(size),
        inputs=inputs,
        implementations=_ours(kernels, ours)
        | {"lax.scan over steps": ours("reference"), "fla (Triton)": _on_gpu(peer)},
        work=Work(bytes=_traffic(size) + 3 * 4 * math.prod(steps) * (tensors - 3)),
        other_work={},
    )


def _matrix(size: Size) -> tuple[int, int]:
    columns = min(size.elements, 1 << 14) // 4
    return size.elements // columns, columns


def _search(x):
    """Quantize by a search in the table, as one would without a kernel."""
    values = jnp.asarray(published(True))
    blocks = x.reshape(-1, 256)
    scales = jnp.max(jnp.abs(blocks), axis=-1, keepdims=True)
    codes = jnp.searchsorted((values[1:] + values[:-1]) / 2, blocks / scales).astype(jnp.uint8)
    return codes.reshape(x.shape), scales


def _quantize(size: Size) -> Contest:
    format = block_quant.DynamicMap()
    implementations = _ours(
        "tpu gpu", lambda name: lambda x: block_quant.quantize(x, format=format, implementation=name)
    )
    return Contest(
        name="block_quant, quantize to the dynamic map, block 256",
        shape=f"{size.elements:,} f32",
        inputs=lambda: _normal(_matrix(size), dtype=jnp.float32),
        implementations=implementations | {"jnp.searchsorted": _search},
        work=Work(bytes=size.elements * (4 + 1 + 4 / 256)),
        other_work={},
    )


def _dequantize(size: Size) -> Contest:
    implementations = _ours("tpu gpu", lambda name: lambda q: block_quant.dequantize(q, implementation=name))

    def look_up(q):
        blocks = jnp.asarray(published(True))[q.codes.astype(jnp.int32)].reshape(-1, 256)
        return (blocks * q.scales.reshape(-1, 1)).reshape(q.codes.shape)

    def inputs():
        return (block_quant.quantize(*_normal(_matrix(size), dtype=jnp.float32), format=block_quant.DynamicMap()),)

    return Contest(
        name="block_quant, dequantize from the dynamic map, block 256",
        shape=f"{size.elements:,} f32",
        inputs=inputs,
        implementations=implementations | {"a table's look-up": look_up},
        work=Work(bytes=size.elements * (4 + 1 + 4 / 256)),
        other_work={},
    )


def _adamw(size: Size) -> Contest:
    rule = adamw_8bit.AdamW(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1)
    whole = optax.adamw(1e-3, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1)

    def inputs():
        w, dw = _normal(_matrix(size), _matrix(size), dtype=jnp.float32)
        formats = block_quant.DynamicMap(), block_quant.DynamicMap(signed=False)
        m, v = (block_quant.quantize(jnp.zeros_like(w), format=format) for format in formats)
        return w, dw, m, v, whole.init(w)

    def ours(name):
        def run(w, dw, m, v, _):
            return adamw_8bit.adamw_8bit(w, dw, m, v, rule=rule, learning_rate=1e-3, step=1, implementation=name)

        return run

    return Contest(
        name="adamw_8bit, dynamic map, block 256",
        shape=f"{size.elements:,} f32",
        inputs=inputs,
        implementations=_ours("tpu gpu", ours) | {"optax.adamw": lambda w, dw, m, v, state: whole.update(dw, state, w)},
        work=Work(bytes=size.elements * (12 + 4 * (1 + 4 / 256))),
        other_work={"optax.adamw": Work(bytes=size.elements * (12 + 4 * 4))},
    )


def _cross_entropy(size: Size) -> Contest:
    tokens = size.length

    def inputs():
        x, head = _normal((tokens, size.width), (size.vocabulary, size.width))
        targets = np.random.default_rng(0).integers(0, size.vocabulary, tokens).astype(np.int32)
        return x, head / 8, jnp.asarray(targets)

    def ours(x, head, targets):
        return jnp.sum(cross_entropy.cross_entropy(x, head, targets).nll)

    def plain(x, head, targets):
        logits = jnp.einsum("TD,WD->TW", x, head, preferred_element_type=jnp.float32)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, targets))

    implementations = {"jaxtrain xla": ours, "optax over all logits": plain}
    return Contest(
        name="cross_entropy, forward+backward",
        shape=f"{tokens} x {size.width} x {size.vocabulary:,} bf16",
        inputs=inputs,
        implementations={
            name: jax.value_and_grad(implementation, argnums=(0, 1)) for name, implementation in implementations.items()
        },
        work=Work(flops=3 * 2 * tokens * size.width * size.vocabulary),
        other_work={},
    )


def _grouped(size: Size, *, backward: bool) -> Contest:
    """Two of 64 experts a token, the feed-forward width twice the width; experts differ in their load."""
    rows, hidden, experts = 2 * size.batch * size.length, 2 * size.width, 64
    of_tensors = functools.partial(_with_gradients if backward else _forward, tensors=2)

    def inputs():
        x, weights, dy = _normal((rows, size.width), (experts, size.width, hidden), (rows, hidden))
        random = np.random.default_rng(0)
        sizes = random.multinomial(rows, random.dirichlet(np.full(experts, 4.0))).astype(np.int32)
        return x, weights, jnp.asarray(sizes), dy

    def of_sizes(product: Callable) -> Callable:
        def run(x, weights, sizes, dy):
            return of_tensors(lambda x, weights: product(x, weights, sizes))(x, weights, dy)

        return run

    def ours(name):
        return of_sizes(functools.partial(grouped_matmul.grouped_matmul, implementation=name))

    return Contest(
        name=f"grouped_matmul, {experts} experts, {'forward+backward' if backward else 'forward'}",
        shape=f"{rows} x {size.width} x {hidden} bf16",
        inputs=inputs,
        implementations=_ours("tpu gpu", ours) | {"lax.ragged_dot": of_sizes(jax.lax.ragged_dot)},
        work=Work(flops=2 * rows * size.width * hidden * (3 if backward else 1)),
        other_work={},
    )

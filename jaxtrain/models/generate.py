"""Sampling from a decoder, one token at a time, with cached states.

By temperature, top-k (Fan et al., 2018, arXiv:1805.04833) and top-p, nucleus sampling (Holtzman et al., 2020,
arXiv:1904.09751). Prompts of a batch may differ in length: short ones are padded on the right. The padding is a
document of its own, so no token attends to it.
"""

import functools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from jaxtrain.models.decoder import Decoder, DecoderConfig
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.param import merge
from jaxtrain.ranges import LEAST_FLOAT32
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import constrain


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """Temperature 0 takes the likeliest token; so does one below 1.2e-38, by which float32 cannot divide.

    With `top_k` or `top_p`, only the likeliest tokens can be drawn.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self):
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature={self.temperature}: must be at least 0, which takes the likeliest token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k}: must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p}: must be in (0, 1]")

    def draw(self, logits: Float[Array, "B W"], keys: Key[Array, " B"]) -> Int[Array, " B"]:
        """Return a token for each row, from the smallest set of likeliest tokens whose probability reaches top_p."""
        if self.temperature < LEAST_FLOAT32:
            return jnp.argmax(logits, axis=-1)
        # The maximum becomes 0, so that at low temperatures only logits of unlikely tokens overflow, to -inf.
        logits = (logits - jnp.max(logits, axis=-1, keepdims=True)) / self.temperature
        if self.top_k is not None:
            smallest = jax.lax.top_k(logits, min(self.top_k, logits.shape[-1]))[0][:, -1:]
            logits = jnp.where(logits < smallest, -jnp.inf, logits)
        if self.top_p is not None:
            order = jnp.argsort(-logits, axis=-1)
            sorted_p = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
            # A token stays if those before it do not reach top_p yet: the likeliest always does.
            stays = jnp.cumsum(sorted_p, axis=-1) - sorted_p < self.top_p
            kept = jnp.zeros_like(stays).at[jnp.arange(logits.shape[0])[:, None], order].set(stays)
            logits = jnp.where(kept, logits, -jnp.inf)
        return jax.vmap(jax.random.categorical)(keys, logits)


def generate(
    graph: nnx.GraphDef,
    model: ModelState,
    prompts: Sequence[Sequence[int]],
    *,
    tokens: int,
    sampling: Sampling,
    key: Key[Array, ""],
    stop_token: int | None = None,
) -> list[list[int]]:
    """Return the continuation of each prompt: up to `tokens` tokens, up to but without the first `stop_token`.

    The draws of a prompt depend on its index in the batch and on `key`, not on the other prompts.

    Raises:
        ValueError: a prompt is empty, prompt and continuation exceed the model's max_length, or the rotary embeddings
            of a prompt and of its continuation differ.
    """
    padded, lengths = prepared(merge(graph, model).config, prompts, tokens)
    drawn = np.asarray(_generate(graph, model, padded, lengths, keys_of(key, len(prompts)), tokens, sampling))
    return [_until(row.tolist(), stop_token) for row in drawn]


def stream(
    graph: nnx.GraphDef,
    model: ModelState,
    prompt: Sequence[int],
    *,
    tokens: int,
    sampling: Sampling,
    key: Key[Array, ""],
    stop_tokens: Collection[int] = (),
) -> Iterator[int]:
    """Yield the tokens that `generate` returns for one prompt, each as soon as it is drawn.

    Raises:
        ValueError: as `generate` does.
    """
    padded, lengths = prepared(merge(graph, model).config, [prompt], tokens)
    keys, slots = keys_of(key, 1), padded.shape[1] + tokens
    token, states = _first_alone(graph, model, padded, lengths, keys, slots, sampling)
    for t in range(1, tokens + 1):
        drawn = int(token[0])
        if drawn in stop_tokens:
            return
        yield drawn
        if t < tokens:
            token, states = _next_alone(graph, model, token, states, lengths, keys, t, padded.shape[1], slots, sampling)


def keys_of(key: Key[Array, ""], prompts: int) -> Key[Array, " B"]:
    """Return a key for the draws of each prompt."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(prompts))


def prepared(config: DecoderConfig, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the prompts as rows of one length, and their lengths. Raise ValueError where one cannot be continued."""
    for prompt in prompts:
        if not prompt:
            raise ValueError("prompt is empty: give at least one token to continue from")
        room = config.max_length - len(prompt)
        if tokens > room:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens and {tokens} more exceed the model's context of "
                f"{config.max_length}: {_remedy(room, config.max_length - tokens)}"
            )
    lengths = np.array([len(prompt) for prompt in prompts])
    padded = np.zeros((len(prompts), _padded(int(lengths.max()), config.max_length)), np.int32)
    check_decoding(config, shortest=int(lengths.min()), longest=int(lengths.max()), tokens=tokens)
    for row, prompt in zip(padded, prompts, strict=True):
        row[: len(prompt)] = prompt
    return padded, lengths


def check_decoding(config: DecoderConfig, *, shortest: int, longest: int, tokens: int) -> None:
    """Raise ValueError where a mixer cannot decode rows that grow by so many tokens, from prompts of these lengths."""
    for block in config.named_blocks.values():
        block.mlp.check_decoding()
        block.mixer.check_decoding(shortest, _padded(longest, config.max_length) + tokens)


def _remedy(room: int, prompt_room: int) -> str:
    """Return what to change: ask for at most `room` tokens, or shorten the prompt to `prompt_room` tokens."""
    to = f" to at most {prompt_room} tokens" if prompt_room > 0 else ""
    if room < 1:
        return f"shorten the prompt{to}; more of it fits where fewer tokens are asked for (--tokens)"
    fewer = f"ask for at most {room} tokens (--tokens {room})"
    return f"shorten the prompt{to} or {fewer}" if to else fewer


def _padded(length: int, max_length: int) -> int:
    """Return a prompt length rounded up to a power of two, so that few lengths are compiled."""
    return min(1 << (length - 1).bit_length(), max_length)


def _until(tokens: list[int], stop_token: int | None) -> list[int]:
    return tokens[: tokens.index(stop_token)] if stop_token in tokens else tokens


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _generate(graph, arrays: ModelState, prompts, lengths, keys, tokens: int, sampling: Sampling) -> Int[Array, "B T"]:
    L = prompts.shape[1]
    first = _first(graph, arrays, prompts, lengths, keys, L + tokens, sampling)

    def advance(carry, t):
        return _next(graph, arrays, *carry, lengths, keys, t, L, L + tokens, sampling), carry[0]

    (final, _), drawn = jax.lax.scan(advance, first, jnp.arange(1, tokens))
    # Replicated, because every process reads all rows.
    return constrain(jnp.concatenate([drawn, final[None]]).swapaxes(0, 1), None, None)


def _first(graph, arrays: ModelState, prompts, lengths, keys, slots: int, sampling: Sampling):
    """Return the first token behind each prompt, and the states of a cache of `slots` tokens."""
    logits, states = first_logits(graph, arrays, prompts, lengths, slots)
    return draw(logits, keys, 0, sampling), states


def _next(graph, arrays: ModelState, tokens, states, lengths, keys, t, L: int, slots: int, sampling: Sampling):
    """Return the token number `t` behind each prompt of up to `L` tokens, from token `t - 1`, and the states."""
    logits, states = next_logits(graph, arrays, tokens, states, lengths, t, L, slots)
    return draw(logits, keys, t, sampling), states


def first_logits(graph, arrays: ModelState, prompts, lengths, slots: int):
    """Return the logits of the first token behind each prompt, and the states of a cache of `slots` tokens."""
    model: Decoder = merge(graph, arrays)
    states = model.initial_states(len(prompts), slots)
    hidden, states = _run(model, prompts, states, lengths, jnp.zeros((), jnp.int32), prompts.shape[1], slots)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)
    return model.head.logits(last)[:, 0], states


def next_logits(graph, arrays: ModelState, tokens, states, lengths, t, L: int, slots: int):
    """Return the logits of the token number `t` behind each prompt of up to `L` tokens, and the states."""
    model: Decoder = merge(graph, arrays)
    hidden, states = _run(model, tokens[:, None], states, lengths, L + t - 1, L, slots)
    return model.head.logits(hidden)[:, 0], states


_first_alone = jax.jit(_first, static_argnums=(0, 5, 6))
_next_alone = jax.jit(_next, static_argnums=(0, 7, 8, 9), donate_argnums=3)


def _run(model: Decoder, chunk, states, lengths, start, L: int, slots: int):
    """Return the hidden states of the tokens in the slots from `start` on, and the states of the cache.

    Slot s < L holds prompt token s (document 1) or padding (document 0); slot L + t holds generated token t. A slot not
    written yet has a later position than any query, so the causal mask hides it.
    """
    B, length = chunk.shape
    slot = jnp.broadcast_to(jnp.arange(slots)[None], (B, slots))
    positions = jnp.where(slot < L, slot, slot - L + lengths[:, None])
    segment_ids = ((slot < lengths[:, None]) | (slot >= L)).astype(jnp.int32)
    context = TokenContext(
        positions=jax.lax.dynamic_slice_in_dim(positions, start, length, axis=1),
        segment_ids=jax.lax.dynamic_slice_in_dim(segment_ids, start, length, axis=1),
        key_positions=positions,
        key_segment_ids=segment_ids,
        cache_index=start,
    )
    return model.run_blocks(model.embed(chunk, context), context, states)[:2]


def draw(logits: Float[Array, "B W"], keys: Key[Array, " B"], t, sampling: Sampling) -> Int[Array, " B"]:
    """Return the token number `t` behind each prompt."""
    step_keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, t)
    return sampling.draw(logits, step_keys).astype(jnp.int32)

"""A decoder with all that families differ in decodes as it trains, and keeps documents apart."""

import functools

import jax
import numpy as np
from every_option import ALL, HEADS
from flax import nnx
from messages import refused
from tiny import packed_batch, random_params, variant
from tolerances import EXACT, SAME_LOGITS, assert_close

from jaxtrain.data.tokenizers.byte import ByteTokenizer
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.positions import Rotary
from jaxtrain.nn.rope import DynamicScaling
from jaxtrain.shapes import ModelState
from jaxtrain.train.hooks.sample import Sample


@functools.cache
def _forward():
    """Compile one program for batches of one shape."""
    graph = abstract_model(ALL).graph
    return jax.jit(lambda params, batch: nnx.merge(graph, params)(batch))


def test_cached_generation_is_uncached_generation():
    graph, _, _ = abstract_model(ALL)
    params = random_params(ALL, seed=1)
    prompts = [[5, 9, 11, 3, 60, 2, 7, 8, 21], [4, 33, 6]]
    drawn = generate(
        graph, ModelState(params), prompts, tokens=6, sampling=Sampling(temperature=0.0), key=jax.random.key(0)
    )
    sequences = [prompt + tokens for prompt, tokens in zip(prompts, drawn, strict=True)]
    batch = packed_batch([[len(sequence)] for sequence in sequences], 16, vocab_size=64)
    for row, sequence in zip(batch.tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    likeliest = np.argmax(_forward()(params, batch), axis=-1)
    for row, prompt, tokens in zip(likeliest, prompts, drawn, strict=True):
        assert tokens == row[len(prompt) - 1 : len(prompt) + 5].tolist()
        assert len(set(tokens)) > 1


def test_packing_independence():
    packed = packed_batch([[7, 9], [9]], 16, vocab_size=64)
    packed.tokens[1, :9] = packed.tokens[0, 7:]
    logits = _forward()(random_params(ALL), packed)
    assert_close(logits[0, 7:], logits[1, :9], SAME_LOGITS)


def test_a_row_is_not_decoded_across_the_length_at_which_its_positions_change():
    rope = Rotary(scaling=DynamicScaling(factor=2.0, original_length=12))
    config = variant(pattern=(BlockConfig(mixer=AttentionConfig(**HEADS, positions=rope), mlp=MLPConfig(hidden=8)),))
    graph, _, _ = abstract_model(config)
    model = ModelState(random_params(config))

    def draw(tokens):
        return generate(
            graph, model, [[1, 2, 3, 4]], tokens=tokens, sampling=Sampling(temperature=0.0), key=jax.random.key(0)
        )

    assert len(draw(8)[0]) == 8
    with refused(ValueError, "positions.scaling=DynamicScaling", 4, 13, "original_length"):
        draw(9)


def test_a_sink_of_minus_infinity_is_none():
    with_sinks = variant(
        pattern=(BlockConfig(mixer=AttentionConfig(**HEADS, scores=Scores(sinks=True)), mlp=MLPConfig(hidden=8)),)
    )
    without = variant(pattern=(BlockConfig(mixer=AttentionConfig(**HEADS), mlp=MLPConfig(hidden=8)),))
    batch = packed_batch([[16]], 16, vocab_size=64)
    params = random_params(with_sinks)
    mixer = params["stacks"]["blocks"]["blocks"][0]["mixer"]
    sinks = mixer.pop("sinks")
    logits = jax.jit(lambda config, params: nnx.merge(abstract_model(config).graph, params)(batch), static_argnums=0)
    expected = logits(without, params)
    mixer["sinks"] = np.full_like(sinks, -np.inf)
    assert_close(logits(with_sinks, params), expected, EXACT)


def test_a_run_whose_samples_cross_that_length_is_refused_before_it_begins():
    rope = Rotary(scaling=DynamicScaling(factor=2.0, original_length=12))
    config = variant(pattern=(BlockConfig(mixer=AttentionConfig(**HEADS, positions=rope), mlp=MLPConfig(hidden=8)),))
    Sample(every_steps=1, prompt="abcd", tokens=8).check("hooks[0]", config, ByteTokenizer())
    with refused(ValueError, "hooks[0].tokens=9", 4, "DynamicScaling", "original_length"):
        Sample(every_steps=1, prompt="abcd", tokens=9).check("hooks[0]", config, ByteTokenizer())

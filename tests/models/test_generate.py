"""Generation with a cache is generation without one; and what each way of sampling may draw."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import DECODER, PRESETS, packed_batch, random_params

from jaxtrain.mesh import MeshConfig
from jaxtrain.models import generate as generation
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.generate import Sampling, generate, stream
from jaxtrain.shapes import ModelState

GREEDY = Sampling(temperature=0.0)
TOKENS = 6
SEED = 1  # of models none of which writes one token over and over


def _prompts() -> list[list[int]]:
    random = np.random.default_rng(3)
    return [random.integers(0, 320, size).tolist() for size in (35, 3)]  # one longer than the windows of the presets


def _generate(name: str, prompts, sampling=GREEDY, **options):
    config = PRESETS[name]
    graph, _, _ = abstract_model(config)
    return generate(
        graph, ModelState(random_params(config, SEED)), prompts, tokens=TOKENS, sampling=sampling, **options
    )


def _likeliest_without_cache(name: str, sequences: list[list[int]]) -> np.ndarray:
    """Return the likeliest next token after every token of every sequence."""
    length = max(map(len, sequences))
    batch = packed_batch([[len(sequence)] for sequence in sequences], length, vocab_size=320)
    for row, sequence in zip(batch.tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    graph, _, _ = abstract_model(PRESETS[name])
    forward = jax.jit(lambda params: jnp.argmax(nnx.merge(graph, params)(batch), axis=-1))
    return np.asarray(forward(random_params(PRESETS[name], SEED)))


@pytest.mark.parametrize("name", PRESETS)
def test_cached_generation_is_uncached_generation(name):
    prompts = _prompts()
    continued = _generate(name, prompts, key=jax.random.key(0))
    likeliest = _likeliest_without_cache(name, [p + c for p, c in zip(prompts, continued, strict=True)])
    for row, prompt, tokens in zip(likeliest, prompts, continued, strict=True):
        assert tokens == row[len(prompt) - 1 : len(prompt) - 1 + TOKENS].tolist()
        assert len(set(tokens)) > 1  # not one token over and over


def test_what_a_prompt_draws_does_not_depend_on_the_others():
    prompts, sampling = _prompts(), Sampling(temperature=1.0, top_k=50)
    together = _generate("gpt2", prompts, sampling, key=jax.random.key(1))
    assert _generate("gpt2", prompts[:1], sampling, key=jax.random.key(1)) == together[:1]
    assert _generate("gpt2", prompts, sampling, key=jax.random.key(2)) != together


def test_every_process_can_read_all_that_is_drawn():
    """On a mesh the rows of a batch are split, and none but its own processes have a row."""
    graph, _, _ = abstract_model(DECODER)
    prompts, lengths = np.ones((8, 4), np.int32), np.full(8, 4)
    with jax.set_mesh(MeshConfig().build()):
        keys = jax.random.split(jax.random.key(0), 8)
        drawn = generation._generate(graph, ModelState(random_params(DECODER)), prompts, lengths, keys, 2, GREEDY)
    assert drawn.sharding.is_fully_replicated


def test_a_continuation_ends_before_the_stop_token_and_is_what_a_stream_yields_one_by_one():
    config, prompts, key = PRESETS["llama3"], _prompts(), jax.random.key(0)
    whole = _generate("llama3", prompts, key=key)[0]
    stop = whole[3]
    ended = _generate("llama3", prompts, key=key, stop_token=stop)[0]
    assert ended == whole[: whole.index(stop)]
    graph, params = abstract_model(config).graph, ModelState(random_params(config, SEED))
    options = {"tokens": TOKENS, "sampling": GREEDY, "key": key}
    assert list(stream(graph, params, prompts[0], **options)) == whole
    assert list(stream(graph, params, prompts[0], **options, stop_tokens=[999, stop])) == ended


PROBABILITIES = np.array([0.05, 0.4, 0.05, 0.3, 0.2])


def _draws(sampling: Sampling, count: int = 4000) -> np.ndarray:
    """Return the share of each token in many draws from one distribution."""
    logits = np.broadcast_to(np.log(PROBABILITIES).astype(np.float32), (count, 5))
    drawn = jax.jit(sampling.draw)(logits, jax.random.split(jax.random.key(0), count))
    return np.bincount(drawn, minlength=5) / count


@pytest.mark.parametrize(
    ("sampling", "desired"),
    [
        (Sampling(), PROBABILITIES),
        (Sampling(temperature=0.0), [0, 1, 0, 0, 0]),
        (Sampling(temperature=0.5), PROBABILITIES**2 / (PROBABILITIES**2).sum()),
        (Sampling(top_k=2), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_k=99), PROBABILITIES),
        (Sampling(top_p=0.6), [0, 4 / 7, 0, 3 / 7, 0]),
        (Sampling(top_p=0.71), [0, 4 / 9, 0, 3 / 9, 2 / 9]),
        (Sampling(top_p=0.01), [0, 1, 0, 0, 0]),
        (Sampling(top_k=3, top_p=0.5), [0, 4 / 7, 0, 3 / 7, 0]),
    ],
)
def test_tokens_are_drawn_with_their_share(sampling, desired):
    shares = _draws(sampling)
    assert shares == pytest.approx(np.array(desired), abs=0.04)
    assert not shares[np.array(desired) == 0].any()


@pytest.mark.parametrize("temperature", [5e-324, 1e-50, 1e-44, 1e-39, 1.2e-38, 1e-37, 1e-30, 1e-6])
@pytest.mark.parametrize("cut", [{}, {"top_k": 3}, {"top_p": 0.9}], ids=["all", "top_k", "top_p"])
def test_a_temperature_that_float32_can_hardly_divide_by_takes_the_likeliest_token(temperature, cut):
    logits = np.tile(np.float32([1.0, -5.0, 9.0, 3.0]), (16, 1))
    drawn = jax.jit(Sampling(temperature=temperature, **cut).draw)(logits, jax.random.split(jax.random.key(0), 16))
    assert drawn.tolist() == 16 * [2]


@pytest.mark.parametrize(
    ("field", "value"),
    [("temperature", -1.0), ("temperature", math.nan), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5)],
)
def test_impossible_sampling_is_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        Sampling(**{field: value})


def test_prompts_that_are_empty_or_exceed_the_context_are_refused_with_the_lengths():
    with pytest.raises(ValueError, match="empty"):
        _generate("gpt2", [[]], key=jax.random.key(0))
    for length, remedy in {252: "--tokens 4", 300: "--tokens"}.items():
        with refused(ValueError, length, 6, 256, 250, remedy):
            _generate("gpt2", [[1] * length], key=jax.random.key(0))

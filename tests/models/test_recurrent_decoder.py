"""Decoders with recurrent mixers, and hybrids of them with attention: generation, counts and meshes."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jaxpr_flops import matmul_flops
from tiny import packed_batch, random_params, size_of, training_batch
from tolerances import SAME_GRADIENT, SAME_LOSS_ON_ANY_MESH, assert_close, error_of_norm

from jaxtrain.axes import Axes
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.generate import Sampling, generate
from jaxtrain.nn.block import BlockConfig, MixerConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.decay import ChannelDecay, FixedDecay, NoDecay, StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.optim.muon import takes
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train.feed import Layout
from jaxtrain.train.gradients import Loss

# With a norm's usual epsilon one rounding of the weights moves gradients by 1e-4, for some outputs are near zero.
NORM = RMSNormConfig(epsilon=1.0)
SHAPE = dict(heads=4, kv_heads=2, head_dim=8, value_dim=12, chunk_size=16, norm=NORM)
GATED = LinearAttentionConfig(**SHAPE, decay=ChannelDecay(rank=4))
STEPPED = LinearAttentionConfig(**SHAPE, decay=StepDecay())
DELTA = DeltaRuleConfig(**SHAPE, decay=StepDecay())
ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=8)


def _decoder(*mixers: MixerConfig) -> DecoderConfig:
    pattern = tuple(BlockConfig(mixer=mixer, mlp=GatedMLPConfig(hidden=64)) for mixer in mixers)
    return DecoderConfig(vocab_size=64, d_model=32, repeats=2, pattern=pattern, max_length=64)


MIXERS = (GATED, DELTA, ATTENTION)
HYBRID = _decoder(*MIXERS)
RECURRENT = _decoder(
    LinearAttentionConfig(**SHAPE, decay=FixedDecay()),
    LinearAttentionConfig(**SHAPE, decay=NoDecay()),
    STEPPED,
    DeltaRuleConfig(**SHAPE),
)
DECODERS = {"hybrid": HYBRID, "recurrent": RECURRENT}
TOKENS = 6


@pytest.mark.parametrize("name", DECODERS)
def test_generation_with_carried_states_is_generation_without(name):
    config, random = DECODERS[name], np.random.default_rng(3)
    prompts = [random.integers(0, 64, size).tolist() for size in (19, 3)]
    graph, _, _ = abstract_model(config)
    params, greedy = random_params(config), Sampling(temperature=0.0)
    continued = generate(graph, ModelState(params), prompts, tokens=TOKENS, sampling=greedy, key=jax.random.key(0))
    sequences = [p + c for p, c in zip(prompts, continued, strict=True)]
    batch = packed_batch([[len(sequence)] for sequence in sequences], 19 + TOKENS, vocab_size=64)
    for row, sequence in zip(batch.tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    likeliest = jax.jit(lambda params: jnp.argmax(nnx.merge(graph, params)(batch), axis=-1))(params)
    for row, prompt, tokens in zip(np.asarray(likeliest), prompts, continued, strict=True):
        assert tokens == row[len(prompt) - 1 : len(prompt) - 1 + TOKENS].tolist()


@pytest.mark.parametrize("name", DECODERS)
def test_parameters_are_counted_and_named_and_told_apart(name):
    config = DECODERS[name]
    _, (shapes, *_), (axes, *_) = abstract_model(config)
    assert size_of(shapes) == config.parameter_count
    jax.tree.map(lambda own, leaf: _check_axes(own, leaf.shape), axes, shapes)


def _check_axes(axes: Axes, shape: tuple) -> None:
    names = axes.names
    assert len(names) == len(shape) and all(names)
    assert takes(axes) == (names[0] == "repeats" and "embed" in names)


def test_biases_and_rates_of_decays_are_not_decayed_themselves():
    _, _, (axes, *_) = abstract_model(_decoder(STEPPED, GATED))
    step, channel = (axes["stacks"]["blocks"]["blocks"][place]["mixer"]["decay"] for place in (0, 1))
    assert step["step"]["kernel"].decays and not step["bias"].decays and not step["log_rate"].decays
    assert channel["down"]["kernel"].decays and channel["up"]["kernel"].decays and not channel["bias"].decays


@pytest.mark.parametrize("mixer", [GATED, STEPPED], ids=["channel", "step"])
def test_the_forward_pass_multiplies_its_weights_and_its_chunks(mixer):
    config, rows, length, C = _decoder(mixer), 2, 64, mixer.chunk_size
    graph, _, _ = abstract_model(config)
    batch = packed_batch([[length]] * rows, length, vocab_size=64)
    counted = matmul_flops(
        lambda params: NextToken()(nnx.merge(graph, params), batch, None).minimised["nll"], random_params(config)
    )
    H, J, K, V = mixer.shape
    weights = (config.flops_per_token(length) - config.repeats * mixer.mixing_flops(length)) / 3
    near = H * 16 * K if mixer is GATED else 0  # the pairs of a sub-chunk, one key channel after another
    scores_and_values = H * C * (K + V) + near
    states = (H + J) * K * V
    assert counted == rows * length * (weights + 2 * config.repeats * (scores_and_values + states))
    assert mixer.mixing_flops(length) == 3 * 2 * states


def _by_name(mixer: MixerConfig) -> MixerConfig:
    return dataclasses.replace(mixer, implementation="xla")


COPIED = MeshConfig(fsdp=1, context=2, tensor=4)  # more devices than there are key-value heads
MESHES = {
    "data 2 x fsdp 2 x tensor 2": (MeshConfig(data=2, fsdp=2, tensor=2), HYBRID),
    "context 2 x tensor 4": (COPIED, HYBRID),
    "operations asked for by name, which each device runs for itself": (COPIED, _decoder(*map(_by_name, MIXERS))),
}


BATCH = training_batch(8, 32, vocab_size=64)


def _loss_and_gradient(mesh_config: MeshConfig, devices, model: DecoderConfig) -> Callable[[Batch], tuple]:
    mesh = mesh_config.build(devices)
    graph, (shapes, *_), (axes, *_) = abstract_model(model)
    params = jax.tree.map(jax.device_put, random_params(model), shardings(axes, shapes, mesh))
    layout = Layout(8, 32, mesh)

    @jax.jit
    @jax.value_and_grad
    def run(params, batch):
        return Loss.of_batch(graph, NextToken(), ModelState(params), batch)(params, batch, None)[0]

    def of_batch(batch):
        with jax.set_mesh(mesh):
            return run(params, layout.globalise(jax.tree.map(lambda leaf: leaf[list(layout.rows)], batch)))

    return of_batch


@pytest.fixture(scope="module")
def one_device() -> Callable[[Batch], tuple]:
    return _loss_and_gradient(MeshConfig(), jax.devices()[:1], HYBRID)


@pytest.mark.parametrize("name", MESHES)
def test_the_hybrid_has_the_loss_and_gradient_of_one_device_on_any_mesh(name, one_device):
    mesh, model = MESHES[name]
    (own_loss, own_gradient), (loss, gradient) = _loss_and_gradient(mesh, None, model)(BATCH), one_device(BATCH)
    assert_close(own_loss, loss, SAME_LOSS_ON_ANY_MESH)
    assert_close(own_gradient, gradient, SAME_GRADIENT)


def _with_one_sign_turned(gradient: np.ndarray) -> np.ndarray:
    """Turn the sign of the element of median size."""
    turned = np.array(gradient)
    turned.flat[np.argsort(np.abs(gradient), axis=None)[gradient.size // 2]] *= -1
    return turned


def _with_one_head_off(gradient: np.ndarray) -> np.ndarray:
    """Put the last of the heads, [layers, embed, heads, key dim], off by a thousandth."""
    return np.concatenate([gradient[:, :, :-1], gradient[:, :, -1:] * np.float32(1.001)], axis=2)


def test_the_bound_on_gradients_notices_one_sign_one_head_and_one_token(one_device):
    """In every leaf, whatever nearly cancels there."""
    gradient, weights = one_device(BATCH)[1], BATCH.weights.copy()
    weights[0, np.flatnonzero(weights[0])[0]] = 0
    queries = [
        mixer.get("heads", mixer)["query"]["kernel"]
        for mixer in (b["mixer"] for b in gradient["stacks"]["blocks"]["blocks"].values())
    ]
    faults = {
        "sign": (jax.tree.map(_with_one_sign_turned, gradient), gradient),
        "head": (list(map(_with_one_head_off, queries)), queries),
        "token": (one_device(BATCH._replace(weights=weights))[1], gradient),
    }
    for fault, trees in faults.items():
        errors = jax.tree_util.tree_leaves_with_path(jax.tree.map(error_of_norm, *trees))
        assert [path for path, error in errors if error <= 2 * SAME_GRADIENT.relative] == [], fault


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("kv_heads=3: must divide heads=4", lambda: dataclasses.replace(GATED, kv_heads=3)),
        ("value_dim=0: must be at least 1", lambda: dataclasses.replace(DELTA, value_dim=0)),
        (
            "implementation='cuda': flash_attention has xla",
            lambda: dataclasses.replace(ATTENTION, implementation="cuda"),
        ),
        ("rank=0: must be at least 1", lambda: ChannelDecay(rank=0)),
        ("temperature=-1.0: must be above 0", lambda: ChannelDecay(temperature=-1.0)),
    ],
)
def test_impossible_mixers_are_refused(message, wrong):
    with pytest.raises(ValueError, match=message):
        wrong()

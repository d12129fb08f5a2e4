"""Published config.json files of the families without presets, and what these families refuse."""

import dataclasses
import math

import jax
import pytest
from messages import refused
from published_mixtures import DEEPSEEK_V3, MIXTRAL_8X7B, MIXTURES, OLMOE_1B_7B, QWEN3_30B_A3B
from published_settings import (
    COMMAND_R7B,
    GEMMA3_1B,
    OLMO2_7B,
    PHI3_MINI,
    PUBLISHED,
    PYTHIA_160M,
    QWEN25_7B,
    SMOLLM3_3B,
)

from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.presets import llama3_tiny
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.nn.moe.routers import Sigmoid
from jaxtrain.nn.positions import InterleavedRotary, NoPositions, Rotary
from jaxtrain.nn.rope import DynamicScaling, LinearScaling, LongRopeScaling, YarnScaling
from jaxtrain.surgery.huggingface import FAMILIES
from jaxtrain.surgery.huggingface.families import family_of

OF_ALL = PUBLISHED | MIXTURES
OF_MIXTURES = [settings["model_type"] for settings, _ in MIXTURES.values()]
OF_FAMILY = {settings["model_type"]: settings for settings, _ in OF_ALL.values()}


def read(settings):
    return FAMILIES[settings["model_type"]].read(settings)


def mixers(config):
    return [block.mixer for block in config.pattern * config.repeats]


def window(mixer):
    return mixer.mask.span.window


@pytest.mark.parametrize("settings, parameters", OF_ALL.values(), ids=OF_ALL)
def test_published_settings_give_a_decoder_of_the_published_size(settings, parameters):
    assert read(settings).parameter_count == parameters


@pytest.mark.parametrize("settings, _", OF_ALL.values(), ids=OF_ALL)
def test_a_decoder_comes_back_from_its_config_json(settings, _):
    config, family = read(settings), FAMILIES[settings["model_type"]]
    assert family.read(family.write(config)) == config


@pytest.mark.parametrize(
    "family", ["qwen2", "gemma", "gemma3_text", "olmo2", "smollm3", "starcoder2", "granite", *OF_MIXTURES]
)
def test_the_family_is_found_from_the_decoder(family):
    assert family_of(read(OF_FAMILY[family])).model_type == family


def test_deepseek_v3_has_the_published_size_and_the_biases_of_its_choice():
    """671,026,419,200 is the size of the published tensors, without the layer that predicts further tokens."""
    config = read(DEEPSEEK_V3)
    biases = sum(leaf.size for leaf in jax.tree.leaves(abstract_model(config).shapes.buffers))
    assert config.parameter_count + biases == 671_026_419_200
    assert 37.4e9 < config.active_parameter_count < 37.7e9
    positions = config.pattern[0].mixer.positions
    assert positions.scaling.amplitude() == 1.0  # the factor of YaRN is in the scale of the scores
    assert config.pattern[0].mixer.scale == pytest.approx(192**-0.5 * (0.1 * math.log(40) + 1) ** 2)


def test_the_balance_loss_of_a_mixture_is_that_of_transformers_where_loads_are_alike():
    """Their loss of 32 layers is 0.02 * 2 there, over means of all layers; ours is the sum of 32 losses."""
    (block,), layers = read(MIXTRAL_8X7B).pattern, 32
    assert sum(balance.coefficient for balance in block.mlp.balances) * layers == pytest.approx(0.02 * 2)
    assert FAMILIES["mixtral"].write(read(MIXTRAL_8X7B))["router_aux_loss_coef"] == pytest.approx(0.02)


@pytest.mark.parametrize(
    "changes", [{"balances": (RouterBias(rate=0.1),)}, {"scale": 2.5}, {"router": Sigmoid()}], ids=str
)
def test_what_a_family_of_mixtures_does_not_have_is_not_exported(changes):
    config = read(MIXTRAL_8X7B)
    block = dataclasses.replace(config.pattern[0], mlp=dataclasses.replace(config.pattern[0].mlp, **changes))
    with refused(ValueError, "no family", next(iter(changes))):
        family_of(dataclasses.replace(config, pattern=(block,)))


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        (QWEN3_30B_A3B | {"mlp_only_layers": [0]}, ("mlp_only_layers",)),
        (QWEN3_30B_A3B | {"decoder_sparse_step": 2}, ("decoder_sparse_step",)),
        (QWEN3_30B_A3B | {"num_local_experts": 64}, ("num_local_experts", "128", "64")),
        (OLMOE_1B_7B | {"clip_qkv": 8.0}, ("clip_qkv",)),
        (DEEPSEEK_V3 | {"first_k_dense_replace": 61}, ("first_k_dense_replace=61", "num_hidden_layers=61")),
        (DEEPSEEK_V3 | {"scoring_func": "softmax"}, ("scoring_func='softmax'", "'sigmoid'")),
    ],
    ids=["some layers", "every other layer", "two numbers", "clipping", "dense layers alone", "another router"],
)
def test_mixtures_that_are_not_understood_are_refused(settings, facts):
    with refused(ValueError, *facts):
        read(settings)


def test_gemma3_has_two_bases_and_a_window_in_five_layers_of_six():
    config = read(GEMMA3_1B)
    windows = [window(mixer) for mixer in mixers(config)]
    assert windows == ([512] * 5 + [None]) * 4 + [512] * 2
    assert {(window(m), m.positions.theta) for m in mixers(config)} == {(512, 10_000.0), (None, 1_000_000.0)}


def test_the_scaling_of_gemma3_is_of_the_layers_without_a_window():
    config = read(GEMMA3_1B | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    scalings = {bool(window(m)): m.positions.scaling for m in mixers(config)}
    assert scalings == {True: None, False: LinearScaling(factor=8.0)}
    assert FAMILIES["gemma3_text"].read(FAMILIES["gemma3_text"].write(config)) == config


def test_smollm3_has_no_positions_in_every_fourth_layer():
    listed = read(SMOLLM3_3B)
    assert [m.positions == NoPositions() for m in mixers(listed)] == [False, False, False, True] * 9
    assert read({k: v for k, v in SMOLLM3_3B.items() if k != "no_rope_layers"}) == listed


def test_command_r_has_positions_where_it_has_windows():
    config = read(COMMAND_R7B)
    assert config.repeats == 8
    assert [(window(m), m.positions == NoPositions()) for m in mixers(config)[:4]] == [(4096, False)] * 3 + [
        (None, True)
    ]
    assert config.pattern[0].mixer.positions == InterleavedRotary(theta=50_000.0)


def test_the_activation_of_gpt_neox_20b_is_the_tanh_form():
    assert read(PYTHIA_160M | {"hidden_act": "gelu_fast"}).pattern[0].mlp.activation == "gelu_tanh"


def test_pythia_rotates_a_quarter_of_each_head():
    config = read(PYTHIA_160M)
    assert config.pattern[0].mixer.positions.rotated(64) == 16
    newer = {"rope_theta": 10_000, "partial_rotary_factor": 0.25, "hidden_dropout": 0.0, "attention_bias": True}
    assert read(PYTHIA_160M | newer) == config


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
LONG_ROPE = {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}
LONG_PHI3 = {"max_position_embeddings": 131072, "rope_scaling": LONG_ROPE}
SCALINGS = {
    "yarn": (QWEN25_7B | {"rope_scaling": YARN}, YarnScaling(factor=4.0, original_length=32768)),
    "yarn in the older form": (
        QWEN25_7B | {"rope_scaling": {"type": "yarn", **{k: v for k, v in YARN.items() if k != "rope_type"}}},
        YarnScaling(factor=4.0, original_length=32768),
    ),
    "dynamic": (
        OLMO2_7B | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        DynamicScaling(factor=2.0, original_length=4096),
    ),
    "longrope": (
        PHI3_MINI | LONG_PHI3,
        LongRopeScaling(
            short=(1.0,) * 48, long=(2.0,) * 48, original_length=4096, attention_factor=1.1902380714238083
        ),  # the factor of the published code for 32 times the length
    ),
}


@pytest.mark.parametrize("settings, scaling", SCALINGS.values(), ids=SCALINGS)
def test_scaled_positions_are_read_and_written(settings, scaling):
    config, family = read(settings), FAMILIES[settings["model_type"]]
    assert config.pattern[0].mixer.positions.scaling == scaling
    assert family.read(family.write(config)) == config


def with_rope(**scaling):
    return {"rope_scaling": scaling}


REFUSED = {
    "unknown rope": ("qwen2", with_rope(type="ntk", factor=2.0), ("rope_type='ntk'", "yarn, longrope, llama3")),
    "yarn without its length": ("qwen2", with_rope(type="yarn", factor=2.0), ("original_max_position_embeddings",)),
    "yarn with a number of another type": ("qwen2", with_rope(**YARN, low_freq_factor=1.0), ("low_freq_factor=1.0",)),
    "yarn that shrinks": ("qwen2", with_rope(**YARN | {"factor": 0.5}), ("factor=0.5", 1)),
    "yarn of no ramp": ("qwen2", with_rope(**YARN, beta_fast=1.0), ("fast=1.0", "slow=1.0")),
    "a rope that Phi-3 lacks": ("phi3", with_rope(**YARN), ("rope_type='yarn'", "default, longrope")),
    "longrope of too few factors": (
        "phi3",
        {"rope_scaling": LONG_ROPE | {"short_factor": [1.0] * 47, "long_factor": [1.0] * 47}},
        ("LongRopeScaling", 47, 48),
    ),
    "longrope of a text": ("phi3", {"rope_scaling": LONG_ROPE | {"short_factor": ["1"] * 48}}, ("factor='1'",)),
    "longrope of two lengths": (
        "phi3",
        {"rope_scaling": LONG_ROPE | {"original_max_position_embeddings": 2048}},
        ("original_max_position_embeddings=2048", 4096),
    ),
    "code of its own": ("phi3", {"auto_map": {"AutoModel": "modeling.My"}}, ("auto_map", "modeling.My")),
    "dropout of Phi-3": ("phi3", {"resid_pdrop": 0.1}, ("resid_pdrop=0.1", "--set")),
    "multimodal positions": ("qwen2", {"use_mrope": True}, ("use_mrope=True", False)),
    "another activation of Gemma": ("gemma", {"hidden_act": "silu"}, ("hidden_act='silu'", "gelu_pytorch_tanh")),
    "two activations of Gemma": ("gemma", {"hidden_activation": "gelu"}, ("hidden_activation='gelu'",)),
    "windows of no period": ("gemma3_text", {"sliding_window_pattern": 0}, ("sliding_window_pattern=0", 1)),
    "rope of one layer type alone": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": 1}},
        ("rope_parameters.full_attention=1", "object"),
    ),
    "rope of a third layer type": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e6}, "third": {}}},
        ("rope_parameters", "full_attention", "sliding_attention"),
    ),
    "no layer types": ("cohere2", {"layer_types": []}, ("layer_types=[]", 32)),
    "one layer too few": ("smollm3", {"no_rope_layers": [1] * 35}, ("no_rope_layers", 36)),
    "layers of something else": ("smollm3", {"no_rope_layers": [2] * 36}, ("no_rope_layers", 36)),
    "no interval": (
        "smollm3",
        {"no_rope_layers": None, "no_rope_layer_interval": 0},
        ("no_rope_layer_interval=0", 1),
    ),
    "another layer": ("starcoder2", {"mlp_type": "gated"}, ("mlp_type='gated'", "default")),
    "two bases": ("gpt_neox", {"rope_theta": 500.0}, ("rope_theta=500.0", "rotary_emb_base=10000")),
    "keys of fewer heads": ("gpt_neox", {"num_key_value_heads": 4}, ("num_key_value_heads=4", 12)),
    "an odd number rotated": ("gpt_neox", {"rotary_pct": 0.24}, ("fraction=0.24", 64, 15)),
    "nothing rotated": ("gpt_neox", {"rotary_pct": 0.0}, ("fraction=0.0",)),
    "logits divided by zero": ("granite", {"logits_scaling": 0.0}, ("logits_scaling=0.0", "above 0")),
    "norms of queries": ("cohere2", {"use_qk_norm": True}, ("use_qk_norm=True", False)),
    "head dim of its own": ("cohere2", {"head_dim": 64}, ("head_dim=64", 128)),
    "no windows": ("cohere2", {"sliding_window": None}, ("sliding_window=None",)),
}


@pytest.mark.parametrize("family, change, facts", REFUSED.values(), ids=REFUSED)
def test_settings_that_the_decoder_lacks_are_refused(family, change, facts):
    with refused(ValueError, *facts):
        read(OF_FAMILY[family] | change)


def with_mixer(config, **changes):
    blocks = (dataclasses.replace(b, mixer=dataclasses.replace(b.mixer, **changes)) for b in config.pattern)
    return dataclasses.replace(config, pattern=tuple(blocks))


INEXPRESSIBLE = {
    "sinks": (with_mixer(llama3_tiny(), scores=Scores(sinks=True)), "pattern[0].mixer.scores=Scores("),
    "interleaved pairs": (
        with_mixer(llama3_tiny(), positions=InterleavedRotary()),
        "pattern[0].mixer.positions=InterleavedRotary(",
    ),
    "dynamic scaling of a longer model": (
        with_mixer(llama3_tiny(), positions=Rotary(scaling=DynamicScaling(factor=2.0, original_length=64))),
        "original_length=64",
    ),
}


@pytest.mark.parametrize("config, fact", INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_no_config_json_says_is_not_exported(config, fact):
    with refused(ValueError, fact):
        family_of(config)

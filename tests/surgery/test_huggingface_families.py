"""Published config.json files of the families without presets, and what these families refuse."""

import dataclasses

import pytest
from messages import refused

from jaxtrain.models.presets import llama3_tiny
from jaxtrain.nn.rope import DynamicScaling, LinearScaling, LongRopeScaling, RopeConfig, YarnScaling
from jaxtrain.surgery.huggingface import FAMILIES
from jaxtrain.surgery.huggingface.families import family_of

# What the released files say, without the names and tokens that all families have.
COMMON = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "rope_scaling": None}
QWEN25_7B = {
    **COMMON,
    "model_type": "qwen2",
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 131072,
    "max_window_layers": 28,
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 131072,
    "tie_word_embeddings": False,
    "use_mrope": False,
    "use_sliding_window": False,
    "vocab_size": 152064,
}
GEMMA_2B = {
    **COMMON,
    "model_type": "gemma",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "head_dim": 256,
    "hidden_act": "gelu",
    "hidden_activation": None,
    "hidden_size": 2048,
    "intermediate_size": 16384,
    "max_position_embeddings": 8192,
    "num_attention_heads": 8,
    "num_hidden_layers": 18,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-06,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
}
GEMMA3_1B = {
    **COMMON,
    "model_type": "gemma3_text",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "attn_logit_softcapping": None,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
PHI3_MINI = {
    **COMMON,
    "model_type": "phi3",
    "auto_map": {
        "AutoConfig": "configuration_phi3.Phi3Config",
        "AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM",
    },
    "attention_bias": False,
    "attention_dropout": 0.0,
    "embd_pdrop": 0.0,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "original_max_position_embeddings": 4096,
    "resid_pdrop": 0.0,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 2047,
    "tie_word_embeddings": False,
    "vocab_size": 32064,
}
OLMO2_7B = {
    **COMMON,
    "model_type": "olmo2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "rms_norm_eps": 1e-06,
    "rope_theta": 500000,
    "tie_word_embeddings": False,
    "vocab_size": 100352,
}
SMOLLM3_3B = {
    **COMMON,
    "model_type": "smollm3",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": ["full_attention"] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "pretraining_tp": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
STARCODER2_3B = {
    **COMMON,
    "model_type": "starcoder2",
    "activation_function": "gelu",
    "attention_dropout": 0.1,
    "attention_softmax_in_fp32": True,
    "embedding_dropout": 0.1,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "layer_norm_epsilon": 1e-05,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 24,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "residual_dropout": 0.1,
    "rope_theta": 999999.4420358813,
    "scale_attention_softmax_in_fp32": True,
    "scale_attn_weights": True,
    "sliding_window": 4096,
    "use_bias": True,
    "vocab_size": 49152,
}
PYTHIA_160M = {
    **COMMON,
    "model_type": "gpt_neox",
    "classifier_dropout": 0.1,
    "hidden_act": "gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.25,
    "tie_word_embeddings": False,
    "use_parallel_residual": True,
    "vocab_size": 50304,
}
GRANITE_2B = {
    **COMMON,
    "model_type": "granite",
    "attention_bias": False,
    "attention_dropout": 0.1,
    "attention_multiplier": 0.015625,
    "embedding_multiplier": 12.0,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "logits_scaling": 8.0,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "residual_multiplier": 0.22,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "vocab_size": 49155,
}
COMMAND_R7B = {
    **COMMON,
    "model_type": "cohere2",
    "attention_bias": False,
    "attention_dropout": 0.0,
    "cache_implementation": "hybrid",
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "layer_norm_eps": 1e-05,
    "layer_switch": 4,
    "logit_scale": 0.25,
    "max_position_embeddings": 8192,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "order_of_interleaved_layers": "local_attn_first",
    "position_embedding_type": "rope_gptj",
    "rope_theta": 50000,
    "rotary_pct": 1.0,
    "sliding_window": 4096,
    "sliding_window_pattern": 4,
    "use_embedding_sharing": True,
    "use_gated_activation": True,
    "use_parallel_block": True,
    "use_parallel_embedding": True,
    "use_qk_norm": False,
    "vocab_size": 256000,
}
PUBLISHED = {  # and the number of parameters that transformers gives the model
    "Qwen2.5-7B": (QWEN25_7B, 7_615_616_512),
    "gemma-2b": (GEMMA_2B, 2_506_172_416),
    "gemma-3-1b-pt": (GEMMA3_1B, 999_885_952),
    "Phi-3-mini-4k-instruct": (PHI3_MINI, 3_821_079_552),
    "OLMo-2-1124-7B": (OLMO2_7B, 7_298_617_344),
    "SmolLM3-3B": (SMOLLM3_3B, 3_075_098_624),
    "starcoder2-3b": (STARCODER2_3B, 3_030_371_328),
    "pythia-160m": (PYTHIA_160M, 162_322_944),
    "granite-3.0-2b-base": (GRANITE_2B, 2_533_531_648),
    "c4ai-command-r7b-12-2024": (COMMAND_R7B, 8_028_033_024),
}
OF_FAMILY = {settings["model_type"]: settings for settings, _ in PUBLISHED.values()}


def read(settings):
    return FAMILIES[settings["model_type"]].read(settings)


def mixers(config):
    return [block.mixer for block in config.pattern * config.repeats]


@pytest.mark.parametrize("settings, parameters", PUBLISHED.values(), ids=PUBLISHED)
def test_published_settings_give_a_decoder_of_the_published_size(settings, parameters):
    assert read(settings).parameter_count == parameters


@pytest.mark.parametrize("settings, _", PUBLISHED.values(), ids=PUBLISHED)
def test_a_decoder_comes_back_from_its_config_json(settings, _):
    config, family = read(settings), FAMILIES[settings["model_type"]]
    assert family.read(family.write(config)) == config


@pytest.mark.parametrize("family", ["qwen2", "gemma", "gemma3_text", "olmo2", "smollm3", "starcoder2", "granite"])
def test_the_family_is_found_from_the_decoder(family):
    assert family_of(read(OF_FAMILY[family])).model_type == family


def test_gemma3_has_two_bases_and_a_window_in_five_layers_of_six():
    config = read(GEMMA3_1B)
    windows = [mixer.window for mixer in mixers(config)]
    assert windows == ([512] * 5 + [None]) * 4 + [512] * 2
    assert {(m.window, m.rope.theta) for m in mixers(config)} == {(512, 10_000.0), (None, 1_000_000.0)}


def test_the_scaling_of_gemma3_is_of_the_layers_without_a_window():
    config = read(GEMMA3_1B | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}})
    scalings = {bool(m.window): m.rope.scaling for m in mixers(config)}
    assert scalings == {True: None, False: LinearScaling(factor=8.0)}
    assert FAMILIES["gemma3_text"].read(FAMILIES["gemma3_text"].write(config)) == config


def test_smollm3_has_no_positions_in_every_fourth_layer():
    listed = read(SMOLLM3_3B)
    assert [m.rope is None for m in mixers(listed)] == [False, False, False, True] * 9
    assert read({k: v for k, v in SMOLLM3_3B.items() if k != "no_rope_layers"}) == listed


def test_command_r_has_positions_where_it_has_windows():
    config = read(COMMAND_R7B)
    assert config.repeats == 8
    assert [(m.window, m.rope is None) for m in mixers(config)[:4]] == [(4096, False)] * 3 + [(None, True)]
    assert config.pattern[0].mixer.rope == RopeConfig(theta=50_000.0, interleaved=True)


def test_pythia_rotates_a_quarter_of_each_head():
    config = read(PYTHIA_160M)
    assert config.pattern[0].mixer.rope.rotated(64) == 16
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
    assert config.pattern[0].mixer.rope.scaling == scaling
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
    "an odd number rotated": ("gpt_neox", {"rotary_pct": 0.24}, ("rope.fraction=0.24", 64, 15)),
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
    "sinks": (with_mixer(llama3_tiny(), sinks=True), "pattern[0].mixer.sinks=True"),
    "interleaved pairs": (
        with_mixer(llama3_tiny(), rope=RopeConfig(interleaved=True)),
        "pattern[0].mixer.rope.interleaved=True",
    ),
    "dynamic scaling of a longer model": (
        with_mixer(llama3_tiny(), rope=RopeConfig(scaling=DynamicScaling(factor=2.0, original_length=64))),
        "original_length=64",
    ),
}


@pytest.mark.parametrize("config, fact", INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_no_config_json_says_is_not_exported(config, fact):
    with refused(ValueError, fact):
        family_of(config)


def test_biases_said_twice_are_the_same_model():
    twice = with_mixer(llama3_tiny(), bias=True, output_bias=True)
    assert family_of(twice).model_type == family_of(with_mixer(twice, output_bias=None)).model_type == "llama"

"""Published config.json files read as the presets, and every decoder of a family comes back from its config.json."""

import dataclasses

import pytest

from jaxtrain.models import presets
from jaxtrain.nn.rope import LinearScaling
from jaxtrain.surgery.huggingface import FAMILIES
from jaxtrain.surgery.huggingface.families import family_of

# What the released files say of the architecture, in the form of transformers 4.
PUBLISHED = {
    "llama2_7b": {
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "max_position_embeddings": 4096,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 32,
        "pretraining_tp": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "llama31_8b": {
        "model_type": "llama",
        "attention_bias": False,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "mlp_bias": False,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_scaling": {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "vocab_size": 128256,
    },
    "mistral_7b": {
        "model_type": "mistral",
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 32768,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "tie_word_embeddings": False,
        "vocab_size": 32000,
    },
    "qwen3_8b": {
        "model_type": "qwen3",
        "attention_bias": False,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "max_position_embeddings": 40960,
        "max_window_layers": 36,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_sliding_window": False,
        "vocab_size": 151936,
    },
    "gemma2_2b": {
        "model_type": "gemma2",
        "attention_bias": False,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
        "head_dim": 256,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "max_position_embeddings": 8192,
        "num_attention_heads": 8,
        "num_hidden_layers": 26,
        "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256,
        "rms_norm_eps": 1e-06,
        "rope_theta": 10000.0,
        "sliding_window": 4096,
        "vocab_size": 256000,
    },
    "gpt2_small": {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.1,
        "layer_norm_epsilon": 1e-05,
        "n_ctx": 1024,
        "n_embd": 768,
        "n_head": 12,
        "n_layer": 12,
        "n_positions": 1024,
        "resid_pdrop": 0.0,
        "vocab_size": 50257,
    },
}
PRESETS = {name: getattr(presets, name)() for name in PUBLISHED} | {
    "llama3_tiny": presets.llama3_tiny(),
    "mistral_tiny": presets.mistral_tiny(),
    "qwen3_tiny": presets.qwen3_tiny(),
    "gemma2_tiny": presets.gemma2_tiny(),
    "gpt2_tiny": presets.gpt2_tiny(),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_settings_read_as_the_preset(name):
    settings = PUBLISHED[name]
    assert FAMILIES[settings["model_type"]].read(settings) == PRESETS[name]


def with_mixer(config, **changes):
    blocks = (dataclasses.replace(b, mixer=dataclasses.replace(b.mixer, **changes)) for b in config.pattern)
    return dataclasses.replace(config, pattern=tuple(blocks))


def qwen3_with_windows_above_the_first_layer():
    config = presets.qwen3_tiny()
    (block,) = config.pattern
    local = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, window=8))
    return dataclasses.replace(config, pattern=(block, local, local), repeats=1)


VARIANTS = PRESETS | {
    "llama with biases": with_mixer(PRESETS["llama3_tiny"], bias=True),
    "llama with stretched positions": with_mixer(
        PRESETS["llama3_tiny"],
        rope=dataclasses.replace(PRESETS["llama3_tiny"].pattern[0].mixer.rope, scaling=LinearScaling(factor=2.0)),
    ),
    "tied llama": dataclasses.replace(PRESETS["llama3_tiny"], tied_embeddings=True),
    "qwen3 with windows": qwen3_with_windows_above_the_first_layer(),
    "gemma2 with a scale": with_mixer(PRESETS["gemma2_tiny"], scale=144**-0.5),
    "untied gpt2": dataclasses.replace(PRESETS["gpt2_tiny"], tied_embeddings=False, dropout=0.2),
    "gpt2 without scale": with_mixer(PRESETS["gpt2_tiny"], scale=1.0),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_a_decoder_comes_back_from_its_config_json(config):
    family = family_of(config)
    assert family.read(family.write(config)) == config


@pytest.mark.parametrize("name", PRESETS)
def test_the_family_is_found_from_the_decoder(name):
    expected = {"llama2": "llama", "llama31": "llama", "llama3": "llama"}.get(name.split("_")[0], name.split("_")[0])
    assert family_of(PRESETS[name]).model_type == expected


def test_how_a_model_is_computed_does_not_matter():
    config = dataclasses.replace(PRESETS["qwen3_tiny"], compute_dtype="bfloat16", dropout=0.1, scan=False)
    assert family_of(config).model_type == "qwen3"


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_tensors_hold_exactly_the_parameters(config):
    stored = sum(_size(tensor.shape) for tensor in family_of(config).tensors(config))
    assert stored == config.parameter_count


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


REFUSED = {
    "biases of the gated layer": ("llama", {"mlp_bias": True}, "mlp_bias=True is not supported"),
    "unknown activation": ("llama", {"hidden_act": "relu2"}, "hidden_act='relu2' is not one of silu"),
    "unknown rope": ("llama", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not one of"),
    "rope without its numbers": ("llama", {"rope_scaling": {"rope_type": "llama3"}}, "have no 'factor'"),
    "part of a head rotated": ("llama", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    "scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    "odd layer types": ("qwen3", {"layer_types": ["full_attention"]}, "layer_types"),
}


@pytest.mark.parametrize("family, change, message", REFUSED.values(), ids=REFUSED)
def test_settings_that_the_decoder_lacks_are_refused(family, change, message):
    settings = next(s for s in PUBLISHED.values() if s["model_type"] == family)
    with pytest.raises(ValueError, match=message):
        FAMILIES[family].read(settings | change)


def test_a_missing_setting_is_named():
    settings = {key: value for key, value in PUBLISHED["llama31_8b"].items() if key != "hidden_size"}
    with pytest.raises(ValueError, match="config.json has no 'hidden_size'"):
        FAMILIES["llama"].read(settings)

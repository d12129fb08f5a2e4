"""Published config.json files read as the presets, and every decoder of a family comes back from its config.json."""

import dataclasses
import json

import huggingface_goldens as goldens
import pytest
from messages import refused

from jaxtrain.models import presets
from jaxtrain.nn.heads import LinearHead, TiedHead
from jaxtrain.nn.linear.low_rank import LowRank
from jaxtrain.nn.masks import SlidingWindow
from jaxtrain.nn.mixers.attention import LINEARS
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.rope import LinearScaling
from jaxtrain.surgery.huggingface import FAMILIES
from jaxtrain.surgery.huggingface.families import family_of

# What the released files say, in the form of transformers 4.
NAMES = {"torch_dtype": "bfloat16", "transformers_version": "4.43.0", "use_cache": True, "initializer_range": 0.02}
DENSE = {"attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SUMMARY = {
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
}
GPT2_FILE = {
    **SUMMARY,
    "architectures": ["GPT2LMHeadModel"],
    "bos_token_id": 50256,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
PUBLISHED = {
    "llama2_7b": {
        **NAMES,
        "_name_or_path": "meta-llama/Llama-2-7b-hf",
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
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
        **NAMES,
        **DENSE,
        "architectures": ["LlamaForCausalLM"],
        "eos_token_id": [128001, 128008, 128009],
        "pretraining_tp": 1,
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
        **NAMES,
        "architectures": ["MistralForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
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
        **NAMES,
        **DENSE,
        "architectures": ["Qwen3ForCausalLM"],
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
        **NAMES,
        **DENSE,
        "architectures": ["Gemma2ForCausalLM"],
        "cache_implementation": "hybrid",
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
        **GPT2_FILE,
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
ALSO_PUBLISHED = {  # whose presets there are not
    "TinyLlama": PUBLISHED["llama2_7b"] | {"num_key_value_heads": 4, "num_hidden_layers": 22, "attention_bias": False},
    "Llama-1": {"max_sequence_length": 2048, **PUBLISHED["llama2_7b"]},
    "Llama-3.2-1B": PUBLISHED["llama31_8b"] | {"head_dim": 64, "tie_word_embeddings": True, "hidden_size": 2048},
    "SmolLM2": PUBLISHED["llama2_7b"]
    | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
    "Mistral-7B-v0.3": PUBLISHED["mistral_7b"] | {"sliding_window": None, "rope_theta": 1e6, "vocab_size": 32768},
    "Qwen3-0.6B": PUBLISHED["qwen3_8b"] | {"tie_word_embeddings": True, "max_window_layers": 28, "hidden_size": 1024},
    "gemma-2-27b": PUBLISHED["gemma2_2b"] | {"query_pre_attn_scalar": 144, "sliding_window_size": 4096},
    "distilgpt2": PUBLISHED["gpt2_small"]
    | {"_num_labels": 1, "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "n_layer": 6},
    "gpt2-medium": PUBLISHED["gpt2_small"] | {"n_special": 0, "predict_special_tokens": True, "n_layer": 24},
    "gpt2-xl": PUBLISHED["gpt2_small"] | {"output_past": True, "n_layer": 48},
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


@pytest.mark.parametrize("name", ALSO_PUBLISHED)
def test_other_published_settings_are_all_understood(name):
    settings = ALSO_PUBLISHED[name]
    read = FAMILIES[settings["model_type"]].read(settings)
    assert read.layers == settings.get("num_hidden_layers", settings.get("n_layer"))


@pytest.mark.parametrize("family", goldens.NAMES)
def test_all_that_transformers_5_writes_is_understood(family):
    settings = json.loads((goldens.GOLDENS / family / "config.json").read_text())
    assert FAMILIES[family].read(settings).layers in (2, 3, 4)  # of the goldens


def with_mixer(config, **changes):
    blocks = (dataclasses.replace(b, mixer=dataclasses.replace(b.mixer, **changes)) for b in config.pattern)
    return dataclasses.replace(config, pattern=tuple(blocks))


def with_mlp(config, **changes):
    blocks = (dataclasses.replace(b, mlp=dataclasses.replace(b.mlp, **changes)) for b in config.pattern)
    return dataclasses.replace(config, pattern=tuple(blocks))


def qwen3_with_windows_above_the_first_layer():
    config = presets.qwen3_tiny()
    (block,) = config.pattern
    local = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, mask=SlidingWindow(window=8)))
    return dataclasses.replace(config, pattern=(block, local, local), repeats=1)


VARIANTS = PRESETS | {
    "llama with biases": with_mixer(PRESETS["llama3_tiny"], biases=LINEARS),
    "llama with biases everywhere": with_mlp(with_mixer(PRESETS["llama3_tiny"], biases=LINEARS), bias=True),
    "llama with stretched positions": with_mixer(
        PRESETS["llama3_tiny"],
        positions=dataclasses.replace(
            PRESETS["llama3_tiny"].pattern[0].mixer.positions, scaling=LinearScaling(factor=2.0)
        ),
    ),
    "tied llama": dataclasses.replace(PRESETS["llama3_tiny"], head=TiedHead()),
    "qwen3 with windows": qwen3_with_windows_above_the_first_layer(),
    "gemma2 with a scale": with_mixer(PRESETS["gemma2_tiny"], scores=Scores(softcap=50.0, scale=144**-0.5)),
    "untied gpt2": dataclasses.replace(PRESETS["gpt2_tiny"], head=LinearHead(), dropout=0.2),
    "gpt2 without scale": with_mixer(PRESETS["gpt2_tiny"], scores=Scores(scale=1.0)),
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


def test_weights_in_another_form_are_refused_by_the_key_that_names_it():
    config = with_mixer(PRESETS["llama3_tiny"], linear=LowRank(rank=8))
    with refused(ValueError, "llama", "pattern[0].mixer.linear=LowRank(rank=8)", "Dense"):
        family_of(config)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_tensors_hold_exactly_the_parameters(config):
    stored = sum(_size(tensor.shape) for tensor in family_of(config).tensors(config))
    assert stored == config.parameter_count


def _size(shape):
    size = 1
    for n in shape:
        size *= n
    return size


LLAMA3 = PUBLISHED["llama31_8b"]["rope_scaling"]
REFUSED = {
    "biases of the gated layer": ("mistral", {"mlp_bias": True}, ("mlp_bias=True", False)),
    "unknown activation": ("llama", {"hidden_act": "relu2"}, ("hidden_act='relu2'", "silu")),
    "unknown rope": ("llama", {"rope_scaling": {"type": "xpos", "factor": 2.0}}, ("rope_type='xpos'", "llama3")),
    "rope without its numbers": ("llama", {"rope_scaling": {"rope_type": "llama3"}}, ("'factor'",)),
    "rope without a type": (
        "llama",
        {"rope_scaling": {"factor": 8.0}},
        ("rope_scaling={'factor': 8.0}", "rope_type", "default, linear, dynamic, yarn, longrope, llama3"),
    ),
    "theta without a type": ("qwen3", {"rope_parameters": {"rope_theta": 1e6}}, ("rope_type",)),
    "rope of two types": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "type": "default", "factor": 8.0}},
        ("rope_type='linear'", "type='default'"),
    ),
    "rope with a number of another type": (
        "llama",
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0, "attention_factor": 2.0}},
        ("attention_factor=2.0", "rope_type='linear'"),
    ),
    "rope of each layer type": (
        "qwen3",
        {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
        ("rope_parameters", "rope_type"),
    ),
    "two ropes": (
        "llama",
        {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
        ("rope_scaling", "None in rope_parameters"),
    ),
    "rope of no theta": ("llama", {"rope_parameters": {"rope_type": "default"}}, ("rope_parameters", "rope_theta")),
    "two thetas": (
        "llama",
        {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        ("rope_theta", "10000.0 in config.json", "500000.0 in rope_parameters"),
    ),
    "part of a head rotated": (
        "llama",
        {"rope_parameters": {"partial_rotary_factor": 0.5}},
        ("partial_rotary_factor",),
    ),
    "part of a head rotated, beside": ("llama", {"partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
    "scale by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, ("scale_attn_by_inverse_layer_idx",)),
    "odd layer types": ("qwen3", {"layer_types": ["full_attention"]}, ("layer_types",)),
    "windows of a llama": ("llama", {"layer_types": ["sliding_attention"] * 32}, ("full_attention",)),
    "one window less": (
        "mistral",
        {"layer_types": ["sliding_attention"] * 31 + ["full_attention"]},
        ("sliding_attention",),
    ),
    "windows that are off": (
        "qwen3",
        {"layer_types": ["sliding_attention"] * 36, "sliding_window": 4096},
        ("use_sliding_window=False",),
    ),
    "windows of no length": ("gemma2", {"sliding_window": None}, ("sliding_window=None",)),
    "window of a llama": ("llama", {"sliding_window": 4096}, ("sliding_window=4096",)),
    "two activations": ("gemma2", {"hidden_act": "gelu"}, ("hidden_act='gelu'", "hidden_activation")),
    "two lengths": ("gpt2", {"n_ctx": 2048}, ("n_ctx=2048", "n_positions=1024")),
    "rope of a GPT-2": ("gpt2", {"rope_theta": 1e4}, ("rope_theta=10000.0",)),
    "a multiplier": (
        "llama",
        {"attention_multiplier": 0.5},
        ("attention_multiplier=0.5",),
    ),
    "code of its own": ("llama", {"auto_map": {"AutoModel": "modeling.My"}}, ("auto_map",)),
    "dropout of attention": ("llama", {"attention_dropout": 0.1}, ("attention_dropout=0.1", 0.0)),
    "product in parts": ("llama", {"pretraining_tp": 2}, ("pretraining_tp=2", 1)),
    "attention to what comes": ("gemma2", {"use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
    "no heads for keys": ("llama", {"num_key_value_heads": 0}, ("kv_heads=0", 1)),
    "size beyond all indices": ("llama", {"vocab_size": 10**12}, ("vocab_size=1000000000000", 2147483647)),
    "number beyond all floats": ("llama", {"rms_norm_eps": 10**400}, ("rms_norm_eps", "float32")),
    "number that is none": ("llama", {"rope_theta": float("nan")}, ("rope_theta=nan", "float32")),
}


@pytest.mark.parametrize("family, change, facts", REFUSED.values(), ids=REFUSED)
def test_settings_that_the_decoder_lacks_are_refused(family, change, facts):
    settings = next(s for s in PUBLISHED.values() if s["model_type"] == family)
    with refused(ValueError, *facts):
        FAMILIES[family].read(settings | change)


NEUTRAL = {
    "dropout at 0": ("llama", {"attention_dropout": 0.0, "pruned_heads": {}, "pretraining_tp": 1, "mlp_bias": False}),
    "what is not set": ("llama", {"attention_multiplier": None, "sliding_window": None, "layer_types": None}),
    "all of a head rotated": ("llama", {"partial_rotary_factor": 1.0}),
    "layers said to be full": ("llama", {"layer_types": ["full_attention"] * 32}),
    "layers said to slide": ("mistral", {"layer_types": ["sliding_attention"] * 32}),
    "window that is off": ("qwen3", {"sliding_window": 4096}),
    "the same rope twice": ("llama", {"rope_scaling": LLAMA3, "rope_parameters": LLAMA3, "rope_theta": 10_000.0}),
}


@pytest.mark.parametrize("family, change", NEUTRAL.values(), ids=NEUTRAL)
def test_settings_at_the_value_that_changes_nothing_are_read(family, change):
    settings = next(s for s in PUBLISHED.values() if s["model_type"] == family)
    expected = settings if "rope_scaling" not in change else settings | {"rope_scaling": change["rope_scaling"]}
    assert FAMILIES[family].read(settings | change) == FAMILIES[family].read(expected)


def test_a_missing_setting_is_named():
    settings = {key: value for key, value in PUBLISHED["llama31_8b"].items() if key != "hidden_size"}
    with refused(ValueError, "config.json", "'hidden_size'"):
        FAMILIES["llama"].read(settings)

"""A folder that cannot be imported is refused in one line that names what is wrong."""

import json

import huggingface_goldens as goldens
import numpy as np
import pytest

from jaxtrain.surgery.huggingface import open_folder


def change_config(folder, **changes):
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | changes))


def change_tensors(folder, change):
    arrays = goldens.tensors(folder)
    change(arrays)
    goldens.save(arrays, folder)


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def wrong_shape(arrays):
    arrays["model.norm.weight"] = np.ones(31, np.float32)


def wider_dtype(arrays):
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(np.float64)


def half_of_the_layers(arrays):
    name = "model.layers.1.mlp.up_proj.weight"
    arrays[name] = arrays[name].astype(np.float16)


FOLDERS = {
    "unknown family": (
        "qwen3",
        lambda f: change_config(f, model_type="mamba"),
        "model_type='mamba' is not a family .* knows llama, mistral, qwen3, gemma2, gpt2",
    ),
    "no config": ("qwen3", lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config is not JSON": ("qwen3", lambda f: (f / "config.json").write_text("{"), "config.json is not JSON"),
    "family is a list": ("qwen3", lambda f: change_config(f, model_type=["qwen3"]), r"model_type=\['qwen3'\] is not a"),
    "size is a text": (
        "qwen3",
        lambda f: change_config(f, hidden_size="32"),
        "hidden_size='32' must be a whole number$",
    ),
    "size is missing": ("qwen3", lambda f: change_config(f, hidden_size=None), "hidden_size=None must be a whole"),
    "size is broken": (
        "qwen3",
        lambda f: change_config(f, vocab_size=96.0),
        r"vocab_size=96\.0 must be a whole",
    ),
    "heads are a text": ("llama", lambda f: change_config(f, num_attention_heads="4"), "heads='4' must be a whole"),
    "no heads": ("llama", lambda f: change_config(f, num_attention_heads=0, head_dim=None), "heads=0: must be at"),
    "no heads of GPT-2": ("gpt2", lambda f: change_config(f, n_head=0), "heads=0: must be at least 1"),
    "flag is a number": (
        "llama",
        lambda f: change_config(f, tie_word_embeddings=1),
        "tie_word_embeddings=1 must be true or false",
    ),
    "rope is a list": (
        "llama",
        lambda f: change_config(f, rope_parameters=[1]),
        r"rope_parameters=\[1\] must be an object or null",
    ),
    "rope is a text": (
        "llama",
        lambda f: change_config(f, rope_parameters={"rope_theta": "1e4"}),
        "rope_theta='1e4' must be a number",
    ),
    "activation is a list": ("llama", lambda f: change_config(f, hidden_act=["silu"]), "hidden_act=.* must be a text"),
    "layer types are lists": (
        "qwen3",
        lambda f: change_config(f, layer_types=[["full_attention"]] * 3),
        "layer_types=.* must give sliding_attention or full_attention",
    ),
    "scale of nothing": (
        "gemma2",
        lambda f: change_config(f, query_pre_attn_scalar=0),
        "query_pre_attn_scalar=0 must be above 0",
    ),
    "biases that the architecture lacks": (
        "mistral",
        lambda f: change_config(f, attention_bias=True),
        "attention_bias=True is not supported, only False: attention of MistralForCausalLM has no biases",
    ),
    "list of weights": (
        "llama",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}'),
        r"index\.json: weight_map does not name a file for each tensor",
    ),
    "quantized": ("qwen3", lambda f: change_config(f, quantization_config={"bits": 4}), "quantization_config"),
    "no weights": ("qwen3", lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "missing shard": (
        "llama",
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        "lacks model-00002-of-00002.safetensors, 1 of the 2 shards",
    ),
    "cut short": ("qwen3", truncate, "model.safetensors is damaged or cut short"),
    "missing tensor": (
        "qwen3",
        lambda f: change_tensors(f, lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.weight")),
        r"lacks tensors that config.json asks for: model\.layers\.1\.mlp\.up_proj\.weight",
    ),
    "tensor left over": (
        "qwen3",
        lambda f: change_config(f, num_hidden_layers=2, layer_types=None),
        r"does not ask for: model\.layers\.2\..* and 6 more",
    ),
    "wrong shape": (
        "qwen3",
        lambda f: change_tensors(f, wrong_shape),
        r"model\.norm\.weight has shape \(31,\), config.json asks for \(32,\)",
    ),
    "unread dtype": ("qwen3", lambda f: change_tensors(f, wider_dtype), "is F64, convert reads F32, F16, BF16"),
    "two dtypes": (
        "qwen3",
        lambda f: change_tensors(f, half_of_the_layers),
        r"0\.mlp\.up are of several dtypes, F16, F32",
    ),
}


@pytest.mark.parametrize("family, spoil, message", FOLDERS.values(), ids=FOLDERS)
def test_is_refused_by_name(family, spoil, message, tmp_path):
    folder = goldens.copy(family, tmp_path)
    spoil(folder)
    with pytest.raises(ValueError, match=message) as refusal:
        open_folder(folder)
    assert "\n" not in str(refusal.value)

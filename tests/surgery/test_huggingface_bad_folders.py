"""A folder that cannot be imported is refused in one line that names what is wrong."""

import json

import huggingface_goldens as goldens
import numpy as np
import pytest
from messages import refused
from safetensors.numpy import load_file, save_file

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


def fused(arrays):
    """Put the experts of a layer into one tensor, as other programs do."""
    for name in ("w1", "w2", "w3"):
        experts = [arrays.pop(f"model.layers.0.block_sparse_moe.experts.{e}.{name}.weight") for e in range(4)]
        arrays[f"model.layers.0.mlp.experts.{name}"] = np.stack(experts)


def in_blocks(arrays):
    name = "model.layers.0.mlp.experts.down_proj"
    whole = arrays.pop(name)
    arrays[f"{name}_blocks"], arrays[f"{name}_scales"] = whole.astype(np.uint8), whole[0].astype(np.uint8)


INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def change_index(folder, change):
    index = json.loads((folder / INDEX).read_text())
    change(index["weight_map"])
    (folder / INDEX).write_text(json.dumps(index))


def add_to_second_shard(folder, name):
    arrays = load_file(folder / SHARDS[1])
    save_file(arrays | {name: np.ones(32, np.float32)}, folder / SHARDS[1])


def single_file(folder, change):
    arrays = goldens.tensors(folder)
    change(arrays)
    save_file(arrays, folder / "model.safetensors")


def norm_of_ones(arrays):
    arrays["model.norm.weight"] = np.ones(32, np.float32)


def add_tokenizer(folder, **changes):
    tokenizer = {
        "version": "1.0",
        "added_tokens": [{"id": 2, "content": "<eos>", "special": True}],
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "<eos>": 2}, "unk_token": "a"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer | changes))


def add_json(folder, name, content):
    add_tokenizer(folder)
    (folder / name).write_text(json.dumps(content))


FOLDERS = {
    "unknown family": (
        "qwen3",
        lambda f: change_config(f, model_type="mamba"),
        ("model_type='mamba'", "llama, mistral, qwen2, qwen3, gemma"),
    ),
    "no config": ("qwen3", lambda f: (f / "config.json").unlink(), ("config.json",)),
    "config is not JSON": ("qwen3", lambda f: (f / "config.json").write_text("{"), ("config.json", "JSON")),
    "family is a list": ("qwen3", lambda f: change_config(f, model_type=["qwen3"]), ("model_type=['qwen3']",)),
    "size is a text": ("qwen3", lambda f: change_config(f, hidden_size="32"), ("hidden_size='32'",)),
    "size is missing": ("qwen3", lambda f: change_config(f, hidden_size=None), ("hidden_size=None",)),
    "size is broken": ("qwen3", lambda f: change_config(f, vocab_size=96.0), ("vocab_size=96.0",)),
    "heads are a text": ("llama", lambda f: change_config(f, num_attention_heads="4"), ("num_attention_heads='4'",)),
    "no heads": ("llama", lambda f: change_config(f, num_attention_heads=0, head_dim=None), ("heads=0", 1)),
    "no heads of GPT-2": ("gpt2", lambda f: change_config(f, n_head=0), ("heads=0", 1)),
    "flag is a number": (
        "llama",
        lambda f: change_config(f, tie_word_embeddings=1),
        ("tie_word_embeddings=1", "true or false"),
    ),
    "rope is a list": ("llama", lambda f: change_config(f, rope_parameters=[1]), ("rope_parameters=[1]",)),
    "rope is a text": (
        "llama",
        lambda f: change_config(f, rope_parameters={"rope_type": "default", "rope_theta": "1e4"}),
        ("rope_theta='1e4'",),
    ),
    "activation is a list": ("llama", lambda f: change_config(f, hidden_act=["silu"]), ("hidden_act=['silu']",)),
    "layer types are lists": (
        "qwen3",
        lambda f: change_config(f, layer_types=[["full_attention"]] * 3),
        ("layer_types", "sliding_attention", "full_attention"),
    ),
    "scale of nothing": (
        "gemma2",
        lambda f: change_config(f, query_pre_attn_scalar=0),
        ("query_pre_attn_scalar=0", "above 0"),
    ),
    "biases that the architecture lacks": (
        "mistral",
        lambda f: change_config(f, attention_bias=True),
        ("attention_bias=True", False, "MistralForCausalLM"),
    ),
    "list of weights": (
        "llama",
        lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}'),
        ("index.json", "weight_map"),
    ),
    "shard outside": (
        "llama",
        lambda f: change_index(f, lambda map: map.update({"model.norm.weight": "../model.safetensors"})),
        ("index.json", "weight_map", "../model.safetensors"),
    ),
    "shard in a folder": (
        "llama",
        lambda f: change_index(f, lambda map: map.update({"model.norm.weight": "shards/model.safetensors"})),
        ("weight_map", "shards/model.safetensors"),
    ),
    "name in two shards": (
        "llama",
        lambda f: add_to_second_shard(f, "model.layers.0.input_layernorm.weight"),
        (
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.layers.0.input_layernorm.weight",
        ),
    ),
    "name that the index lacks": (
        "llama",
        lambda f: change_index(f, lambda map: map.pop("model.norm.weight")),
        ("index.json", "model.norm.weight"),
    ),
    "name in another shard than the index says": (
        "llama",
        lambda f: change_index(f, lambda map: map.update({"model.embed_tokens.weight": SHARDS[1]})),
        ("index.json", "model.embed_tokens.weight"),
    ),
    "single file of other values": (
        "llama",
        lambda f: single_file(f, norm_of_ones),
        ("llama/model.safetensors", "index.json"),
    ),
    "single file of fewer tensors": (
        "llama",
        lambda f: single_file(f, lambda arrays: arrays.pop("model.norm.weight")),
        ("model.safetensors", "index.json"),
    ),
    "adapter": ("qwen3", lambda f: (f / "adapter_config.json").write_text("{}"), ("adapter_config.json",)),
    "key twice": (
        "qwen3",
        lambda f: (f / "config.json").write_text('{"head_dim": 12, "head_dim": 24}'),
        ("config.json", "head_dim"),
    ),
    "number that no float holds": (
        "qwen3",
        lambda f: (f / "config.json").write_text('{"rms_norm_eps": 1e999}'),
        ("config.json", "1e999"),
    ),
    "half a surrogate pair": (
        "qwen3",
        lambda f: (f / "config.json").write_text('{"model_type": "\\ud800"}'),
        ("config.json", "utf-8"),
    ),
    "deeply nested": ("qwen3", lambda f: (f / "config.json").write_text('{"a":' * 100_000), ("config.json",)),
    "a trillion layers": (
        "qwen3",
        lambda f: change_config(f, num_hidden_layers=10**12),
        ("config.json", "num_hidden_layers=1000000000000", 35),
    ),
    "a trillion layers of GPT-2": (
        "gpt2",
        lambda f: change_config(f, n_layer=10**12),
        ("config.json", "n_layer=1000000000000"),
    ),
    "token id is a text": (
        "qwen3",
        lambda f: change_config(f, eos_token_id="</s>"),
        ("config.json", "eos_token_id=</s>"),
    ),
    "one id for two tokens": (
        "qwen3",
        lambda f: add_tokenizer(f, added_tokens=[{"id": 1, "content": "<eos>"}]),
        ("tokenizer.json", "id 1", "'b'", "'<eos>'"),
    ),
    "one id for two tokens of a vocabulary": (
        "qwen3",
        lambda f: add_tokenizer(f, model={"type": "WordLevel", "vocab": {"a": 0, "b": 0}}),
        ("tokenizer.json", "id 0", "'a'", "'b'"),
    ),
    "two ids for one token": (
        "qwen3",
        lambda f: add_tokenizer(f, added_tokens=[{"id": 3, "content": "<eos>"}]),
        ("tokenizer.json", "'<eos>'", "ids, 2 and 3"),
    ),
    "one id for two pieces": (
        "qwen3",
        lambda f: add_tokenizer(f, model={"type": "Unigram", "vocab": [["a", -1.0], ["b", -2.0], ["c", -3.0]]}),
        ("tokenizer.json", "id 2", "'c'", "'<eos>'"),
    ),
    "one id for two tokens of two files": (
        "qwen3",
        lambda f: add_json(f, "added_tokens.json", {"<pad>": 2}),
        ("added_tokens.json", "id 2", "'<eos>'", "'<pad>'"),
    ),
    "one id for two tokens of the tokenizer's configuration": (
        "qwen3",
        lambda f: add_json(f, "tokenizer_config.json", {"added_tokens_decoder": {"2": {"content": "<pad>"}}}),
        ("tokenizer_config.json", "id 2", "'<eos>'", "'<pad>'"),
    ),
    "tokens of another shape": (
        "qwen3",
        lambda f: add_json(f, "added_tokens.json", {"<pad>": [2]}),
        ("added_tokens.json",),
    ),
    "quantized": ("qwen3", lambda f: change_config(f, quantization_config={"bits": 4}), ("quantization_config",)),
    "quantized to MXFP4": (
        "gpt_oss",
        lambda f: change_config(f, quantization_config={"quant_method": "mxfp4"}),
        ("quantization_config", "mxfp4", "Mxfp4Config(dequantize=True)"),
    ),
    "experts in the layout of MXFP4": (
        "gpt_oss",
        lambda f: change_tensors(f, in_blocks),
        ("down_proj_blocks", "gpt_oss"),
    ),
    "experts in one tensor": (
        "mixtral",
        lambda f: change_tensors(f, fused),
        ("model.layers.0.mlp.experts.w2", "model.layers.0.block_sparse_moe.experts.0.w2.weight", "mixtral"),
    ),
    "no weights": ("qwen3", lambda f: (f / "model.safetensors").unlink(), ("neither model.safetensors nor",)),
    "missing shard": (
        "llama",
        lambda f: (f / "model-00002-of-00002.safetensors").unlink(),
        ("model-00002-of-00002.safetensors", "1 of the 2"),
    ),
    "cut short": ("qwen3", truncate, ("model.safetensors", "damaged")),
    "missing tensor": (
        "qwen3",
        lambda f: change_tensors(f, lambda arrays: arrays.pop("model.layers.1.mlp.up_proj.weight")),
        ("config.json", "model.layers.1.mlp.up_proj.weight"),
    ),
    "tensor left over": (
        "qwen3",
        lambda f: change_config(f, num_hidden_layers=2, layer_types=None),
        ("model.layers.2", 6),
    ),
    "wrong shape": (
        "qwen3",
        lambda f: change_tensors(f, wrong_shape),
        ("model.norm.weight", "(31,)", "config.json", "(32,)"),
    ),
    "unread dtype": ("qwen3", lambda f: change_tensors(f, wider_dtype), ("model.norm.weight", "F64", "F32, F16, BF16")),
    "two dtypes": (
        "qwen3",
        lambda f: change_tensors(f, half_of_the_layers),
        ("stacks.blocks.blocks.0.mlp.up.kernel", "F16, F32"),
    ),
}


LIBRARY = {  # what others say of a file
    "config is not JSON": {"<json>": r"(?<=JSON )\(.*\)"},
    "cut short": {"<safetensors>": r"(?<=cut short )\(.*\)"},
    "half a surrogate pair": {"<python>": "(?<=config.json: ).*"},
    "deeply nested": {"<python>": "(?<=config.json: ).*"},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_is_refused_by_name(name, tmp_path):
    family, spoil, facts = FOLDERS[name]
    folder = goldens.copy(family, tmp_path)
    spoil(folder)
    with refused(ValueError, *facts, varies=LIBRARY.get(name)) as refusal:
        open_folder(folder)
    assert "\n" not in str(refusal.value)


def test_a_single_file_that_agrees_with_the_index_is_no_second_model(tmp_path):
    folder = goldens.copy("llama", tmp_path)
    single_file(folder, lambda arrays: None)
    assert open_folder(folder)[0] == open_folder(goldens.GOLDENS / "llama")[0]


def test_links_into_the_blob_cache_are_files(tmp_path):
    """The Hugging Face cache is nothing but links."""
    cache = tmp_path / "models--some--model"
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, file in enumerate(sorted(goldens.copy("llama", tmp_path).iterdir())):
        file.rename(cache / "blobs" / str(i))
        (snapshot / file.name).symlink_to(f"../../blobs/{i}")
    assert open_folder(snapshot)[0] == open_folder(goldens.GOLDENS / "llama")[0]


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused(name, tmp_path):
    folder = goldens.copy("qwen3", tmp_path)
    add_tokenizer(folder)
    (folder / "generation_config.json").write_text("{}")
    (folder / name).rename(tmp_path / "secret")
    (folder / name).symlink_to("../secret")
    with refused(ValueError, folder / name, tmp_path / "secret"):
        open_folder(folder)
    (tmp_path / "secret").unlink()
    with pytest.raises(ValueError, match=f"{name} is a link to nothing|has no config.json"):
        open_folder(folder)

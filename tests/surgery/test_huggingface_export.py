"""Exported folders hold the same bits under the same names, whole or not at all."""

import dataclasses
import json

import huggingface_goldens as goldens
import ml_dtypes
import numpy as np
import pytest
from messages import refused

from jaxtrain.models.presets import gemma2_tiny, llama3_tiny, qwen3_tiny
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import CappedHead
from jaxtrain.nn.mixers.attention import LINEARS
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.positions import NoPositions
from jaxtrain.surgery.huggingface import FAMILIES, export_folder, import_folder, open_folder


@pytest.mark.parametrize("family", goldens.NAMES)
def test_import_then_export_is_bit_identical(family, tmp_path):
    config, params = import_folder(goldens.GOLDENS / family)
    export_folder(config, params, tmp_path / "out", family=family)
    assert goldens.bits(tmp_path / "out") == goldens.bits(goldens.GOLDENS / family)
    assert open_folder(tmp_path / "out")[0] == config


@pytest.mark.parametrize("family", [name for name in goldens.NAMES if name not in ("llama", "bert")])
def test_the_file_itself_is_the_peers(family, tmp_path):
    """Llama's golden is in shards, and BERT's token types come back as zeros."""
    export_folder(*import_folder(goldens.GOLDENS / family), tmp_path / "out")
    ours, theirs = (folder / "model.safetensors" for folder in (tmp_path / "out", goldens.GOLDENS / family))
    assert ours.read_bytes() == theirs.read_bytes()


def test_biases_that_an_architecture_lacks_are_refused(tmp_path):
    config, params = import_folder(goldens.GOLDENS / "mistral")
    block = config.pattern[0]
    biased = dataclasses.replace(block, mixer=dataclasses.replace(block.mixer, biases=LINEARS))
    with refused(ValueError, "mistral", "mixer.biases", "()"):
        export_folder(dataclasses.replace(config, pattern=(biased,)), params, tmp_path / "out", family="mistral")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", goldens.NAMES)
def test_bfloat16_bits_come_back(family, tmp_path):
    folder = goldens.copy(family, tmp_path)
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in goldens.tensors(folder).items()}
    goldens.save(narrow, folder)
    export_folder(*import_folder(folder), tmp_path / "out")
    assert goldens.bits(tmp_path / "out") == goldens.bits(folder)


def test_another_dtype_is_rounded_to_on_request(tmp_path):
    config, params = import_folder(goldens.GOLDENS / "qwen3")
    export_folder(config, params, tmp_path / "out", dtype="bfloat16")
    expected = {n: a.astype(ml_dtypes.bfloat16) for n, a in goldens.tensors(goldens.GOLDENS / "qwen3").items()}
    for name, array in goldens.tensors(tmp_path / "out").items():
        np.testing.assert_array_equal(array.view(np.uint16), expected[name].view(np.uint16), err_msg=name)


def test_shards_stay_under_their_limit_and_the_index_names_every_tensor(tmp_path):
    config, params = import_folder(goldens.GOLDENS / "llama")
    export_folder(config, params, tmp_path / "out", max_shard_bytes=40_000)
    files = sorted(file.name for file in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert all((tmp_path / "out" / file).stat().st_size < 42_000 for file in files)  # 40 kB and the header
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    original = json.loads((goldens.GOLDENS / "llama" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == original["weight_map"].keys()
    assert index["metadata"] == original["metadata"]
    assert goldens.bits(tmp_path / "out") == goldens.bits(goldens.GOLDENS / "llama")


@pytest.mark.parametrize("family", goldens.NAMES)
def test_parts_cover_every_tensor_once(family):
    config, _ = open_folder(goldens.GOLDENS / family)
    for tensor in FAMILIES[family].tensors(config):
        count = np.zeros(tensor.shape, np.int32)
        for part in tensor.parts:
            if not part.added:
                part.view(count)[...] += 1
        assert (count == 1).all() or tensor.name == goldens.TYPES, tensor.name


def test_an_unfinished_export_leaves_no_folder(tmp_path):
    config, params = import_folder(goldens.GOLDENS / "qwen3")
    params["embedding"]["table"] = params["embedding"]["table"][:-1]
    with pytest.raises(ValueError):
        export_folder(config, params, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists: name a new folder"):
        export_folder(*import_folder(goldens.GOLDENS / "qwen3"), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def with_block(config, **changes):
    return dataclasses.replace(config, pattern=(dataclasses.replace(config.pattern[0], **changes),))


INEXPRESSIBLE = {
    "plain feed-forward": (with_block(llama3_tiny(), mlp=MLPConfig(hidden=160)), ("llama", "pattern[0].mlp=MLPConfig")),
    "cap on a llama": (
        dataclasses.replace(llama3_tiny(), head=CappedHead(cap=5.0)),
        ("llama", "head=CappedHead(cap=5.0"),
    ),
    "odd scale": (
        with_block(qwen3_tiny(), mixer=dataclasses.replace(qwen3_tiny().pattern[0].mixer, scores=Scores(scale=0.3))),
        ("qwen3", "mixer.scores=Scores(scale=0.3"),
    ),
    "two widths": (
        dataclasses.replace(llama3_tiny(), pattern=(llama3_tiny().pattern[0], gemma2_tiny().pattern[0])),
        ("llama", "repeats=2", "family 4"),
    ),
    "no rotary positions": (
        with_block(qwen3_tiny(), mixer=dataclasses.replace(qwen3_tiny().pattern[0].mixer, positions=NoPositions())),
        ("llama", "mixer.positions=NoPositions()"),
    ),
}


@pytest.mark.parametrize("family", [None, "llama"])
def test_a_mixer_that_is_not_attention_is_refused_in_one_clear_line(family, tmp_path):
    mixer = LinearAttentionConfig(heads=4, kv_heads=2, head_dim=16, value_dim=16)
    blocks = (*llama3_tiny().pattern, *with_block(llama3_tiny(), mixer=mixer).pattern)
    config = dataclasses.replace(llama3_tiny(), pattern=blocks)
    with refused(ValueError, "pattern[1].mixer", "LinearAttentionConfig", "llama"):
        export_folder(config, {}, tmp_path / "out", family=family)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("config, facts", INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_a_decoder_of_no_family_is_refused_with_the_reasons(config, facts, tmp_path):
    with refused(ValueError, *facts):
        export_folder(config, {}, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_family_named_must_express_the_decoder(tmp_path):
    config, params = import_folder(goldens.GOLDENS / "mistral")
    with refused(ValueError, "llama", "mixer.mask=SlidingWindow(window=6)"):
        export_folder(config, params, tmp_path / "out", family="llama")

"""Imported models compute what `transformers` recorded, and weights are read as they lie, a leaf at a time."""

import dataclasses
import functools
import json
import math
import tracemalloc

import chex
import huggingface_goldens as goldens
import jax
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from messages import refused

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.presets import llama
from jaxtrain.models.trees import together
from jaxtrain.nn.embeddings import TokenEmbedding
from jaxtrain.nn.heads import LinearHead, TiedHead
from jaxtrain.nn.joins import PreNorm
from jaxtrain.nn.masks import Causal, SlidingWindow
from jaxtrain.nn.moe.selections import TopK
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions import Rotary, RotaryEmbedding
from jaxtrain.nn.qk_norms import AllHeads
from jaxtrain.surgery.huggingface import export_folder, import_folder, open_folder

TOLERANCE = 1e-4  # float32 logits of the peer


@functools.cache
def imported(family):
    return import_folder(goldens.GOLDENS / family)


def largest_error(family, config, params):
    tokens, expected = goldens.golden(family)
    return np.abs(goldens.logits(config, params, tokens) - expected).max()


@pytest.mark.parametrize("family", goldens.NAMES)
def test_logits_are_those_of_transformers(family):
    assert largest_error(family, *imported(family)) < TOLERANCE


def with_mixer(config, **changes):
    blocks = (dataclasses.replace(b, mixer=dataclasses.replace(b.mixer, **changes)) for b in config.pattern)
    return dataclasses.replace(config, pattern=tuple(blocks))


def with_mlp(config, **changes):
    return with_block(config, mlp=dataclasses.replace(config.pattern[0].mlp, **changes))


def with_expert(config, **changes):
    return with_mlp(config, expert=dataclasses.replace(config.pattern[0].mlp.expert, **changes))


def with_block(config, **changes):
    return dataclasses.replace(config, pattern=tuple(dataclasses.replace(b, **changes) for b in config.pattern))


def with_plain_head(config):
    return dataclasses.replace(config, head=TiedHead() if config.head.tied else LinearHead())


def with_positions(config, change):
    """Return the decoder with changed rotary embeddings in the layers that have any."""

    def changed(mixer):
        rotates = isinstance(mixer.positions, RotaryEmbedding)
        return dataclasses.replace(mixer, positions=change(mixer.positions)) if rotates else mixer

    return dataclasses.replace(
        config, pattern=tuple(dataclasses.replace(b, mixer=changed(b.mixer)) for b in config.pattern)
    )


def with_rope(config, **changes):
    return with_positions(config, lambda rope: dataclasses.replace(rope, **changes))


def with_plain_rope(config):
    return with_positions(config, lambda rope: Rotary(theta=rope.theta))


def with_scores(config, **changes):
    return with_mixer(config, scores=dataclasses.replace(config.pattern[0].mixer.scores, **changes))


WITHOUT = {
    "llama rope scaling": ("llama", lambda c: with_rope(c, scaling=None)),
    "llama norm epsilon": ("llama", lambda c: dataclasses.replace(c, norm=dataclasses.replace(c.norm, epsilon=1e-3))),
    "qwen3 rope theta": ("qwen3", lambda c: with_rope(c, theta=10_000.0)),
    "gemma2 window": ("gemma2", lambda c: with_mixer(c, mask=Causal())),
    "gemma2 attention soft cap": ("gemma2", lambda c: with_scores(c, softcap=None)),
    "gemma2 logit soft cap": ("gemma2", lambda c: dataclasses.replace(c, head=TiedHead())),
    "gemma2 scale of queries": ("gemma2", lambda c: with_scores(c, scale=None)),
    "gemma2 embedding scale": ("gemma2", lambda c: dataclasses.replace(c, embedding=TokenEmbedding())),
    "qwen2 window": ("qwen2", lambda c: with_mixer(c, mask=Causal())),
    "phi3 window": ("phi3", lambda c: with_mixer(c, mask=Causal())),
    "starcoder2 window": ("starcoder2", lambda c: with_mixer(c, mask=Causal())),
    "qwen2 rope scaling": ("qwen2", lambda c: with_rope(c, scaling=None)),
    "qwen2 attention factor": (
        "qwen2",
        lambda c: with_rope(c, scaling=dataclasses.replace(c.pattern[0].mixer.positions.scaling, attention_factor=1.0)),
    ),
    "gemma embedding scale": ("gemma", lambda c: dataclasses.replace(c, embedding=TokenEmbedding())),
    "gemma3 base of full layers": ("gemma3_text", lambda c: with_rope(c, theta=50.0)),
    "gemma3 scaling of full layers": ("gemma3_text", lambda c: with_rope(c, scaling=None)),
    "phi3 part of a head": ("phi3", with_plain_rope),
    "phi3 long factors": (
        "phi3",
        lambda c: with_rope(c, scaling=dataclasses.replace(c.pattern[0].mixer.positions.scaling, original_length=64)),
    ),
    "olmo2 norms of queries": ("olmo2", lambda c: with_mixer(c, qk_norm=AllHeads(norm=RMSNormConfig(epsilon=0.1)))),
    "smollm3 layers without positions": ("smollm3", lambda c: with_mixer(c, positions=c.pattern[0].mixer.positions)),
    "gpt_neox parallel layers": ("gpt_neox", lambda c: with_block(c, join=PreNorm())),
    "gpt_neox part of a head": ("gpt_neox", with_plain_rope),
    "granite scale of embeddings": ("granite", lambda c: dataclasses.replace(c, embedding=TokenEmbedding())),
    "granite scale of logits": ("granite", with_plain_head),
    "granite scale of scores": ("granite", lambda c: with_mixer(c, scores=None)),
    "granite scale of layers": ("granite", lambda c: with_block(c, join=PreNorm())),
    "cohere2 pairs of neighbours": ("cohere2", with_plain_rope),
    "cohere2 scale of logits": ("cohere2", with_plain_head),
    "gpt_oss limit of activations": ("gpt_oss", lambda c: with_expert(c, limit=7.0)),
    "gpt_oss slope of activations": ("gpt_oss", lambda c: with_expert(c, alpha=1.702)),
    "gpt_oss window": ("gpt_oss", lambda c: with_mixer(c, mask=Causal())),
    "deepseek_v2 scale of scores": ("deepseek_v2", lambda c: with_mixer(c, scale=None)),
    "deepseek_v2 groups": ("deepseek_v2", lambda c: with_mlp(c, selection=TopK())),
    "deepseek_v3 scale of experts": ("deepseek_v3", lambda c: with_mlp(c, scale=1.0)),
    "deepseek_v3 pairs of neighbours": ("deepseek_v3", with_plain_rope),
    "deepseek_v3 bias in the choice": ("deepseek_v3", lambda c: with_mlp(c, balances=())),
    "mistral window": ("mistral", lambda c: with_mixer(c, mask=Causal())),
    "mistral window off by one": ("mistral", lambda c: with_mixer(c, mask=SlidingWindow(window=7))),
}


@pytest.mark.parametrize("family, change", WITHOUT.values(), ids=WITHOUT)
def test_goldens_notice_every_setting(family, change):
    config, params = imported(family)
    assert largest_error(family, change(config), params) > 5 * TOLERANCE


@pytest.mark.parametrize("family", goldens.NAMES)
def test_tree_is_the_decoders_own(family):
    config, params = imported(family)
    shapes = jax.tree.map(lambda leaf: leaf.shape, together(abstract_model(config).shapes))
    assert jax.tree.map(lambda leaf: leaf.shape, params) == shapes


def test_bfloat16_weights_stay_bfloat16(tmp_path):
    folder = goldens.copy("llama", tmp_path)
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in goldens.tensors(folder).items()}
    goldens.save(narrow, folder)
    _, params = import_folder(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"bfloat16"}
    table = np.asarray(params["embedding"]["table"])
    assert table.tobytes() == narrow["model.embed_tokens.weight"].tobytes()


def test_every_device_is_given_its_shard_alone():
    mesh = MeshConfig(data=2, fsdp=2, tensor=2).build()
    _, whole = imported("llama")
    _, params = import_folder(goldens.GOLDENS / "llama", mesh)
    mixer = params["stacks"]["blocks"]["blocks"][0]["mixer"]
    query = mixer["query"]["kernel"]  # [R, D, H, K]: fsdp splits D, tensor splits H
    assert {shard.data.shape for shard in query.addressable_shards} == {(2, 16, 2, 12)}
    chex.assert_trees_all_equal(params, whole)


def test_files_of_the_base_model_and_their_causal_masks_are_read(tmp_path):
    """The published GPT-2 files have no `transformer.` before their names, and carry the masks of attention."""
    folder = goldens.copy("gpt2", tmp_path)
    bare = {name.removeprefix("transformer."): array for name, array in goldens.tensors(folder).items()}
    masks = {f"h.{layer}.attn.bias": np.tril(np.ones((1, 1, 32, 32), np.uint8)) for layer in range(2)}
    goldens.save(bare | masks, folder)
    chex.assert_trees_all_equal(import_folder(folder)[1], imported("gpt2")[1])


def test_a_copy_of_the_tied_head_is_passed_over(tmp_path):
    folder = goldens.copy("qwen3", tmp_path)
    arrays = goldens.tensors(folder)
    goldens.save(arrays | {"lm_head.weight": arrays["model.embed_tokens.weight"]}, folder)
    chex.assert_trees_all_equal(import_folder(folder)[1], imported("qwen3")[1])


def test_a_tied_head_of_other_values_is_imported_untied(tmp_path, caplog):
    """As in transformers 5, whose logits with a doubled head were the double of the golden ones to 1.1e-5."""
    folder = goldens.copy("qwen3", tmp_path)
    arrays = goldens.tensors(folder)
    goldens.save(arrays | {"lm_head.weight": 2 * arrays["model.embed_tokens.weight"]}, folder)
    config, params = import_folder(folder)
    assert not config.head.tied
    assert "qwen3 ties the head to the embeddings, but lm_head.weight has other values: it is kept" in caplog.text
    tokens, expected = goldens.golden("qwen3")
    assert np.abs(goldens.logits(config, params, tokens) - 2 * expected).max() < 2 * TOLERANCE
    export_folder(config, params, tmp_path / "back")
    assert goldens.bits(tmp_path / "back") == goldens.bits(folder)


def test_a_copy_of_the_tied_head_in_another_dtype_is_passed_over(tmp_path):
    folder = goldens.copy("qwen3", tmp_path)
    arrays = goldens.tensors(folder)
    narrow = arrays["model.embed_tokens.weight"].astype(np.float16)
    goldens.save(arrays | {"model.embed_tokens.weight": narrow.astype(np.float32), "lm_head.weight": narrow}, folder)
    assert open_folder(folder)[0].head.tied


def test_a_tied_head_of_another_shape_is_refused(tmp_path):
    folder = goldens.copy("qwen3", tmp_path)
    goldens.save(goldens.tensors(folder) | {"lm_head.weight": np.ones((97, 32), np.float32)}, folder)
    with refused(ValueError, "lm_head.weight", (97, 32), "config.json", (96, 32)):
        open_folder(folder)


@pytest.fixture(scope="module")
def larger_folder(tmp_path_factory):
    """8 MB in 40 layers, with tensors of at most 64 kB: a parameter stacked over the layers has 2.6 MB."""
    config = llama(vocab_size=128, d_model=64, layers=40, heads=4, kv_heads=4, hidden=256, max_length=64)
    state = nnx.state(nnx.eval_shape(lambda: config.build(jax.random.key(0))), nnx.Param)
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), nnx.to_pure_dict(state))
    folder = tmp_path_factory.mktemp("larger") / "model"
    export_folder(config, params, folder, max_shard_bytes=3_000_000)
    return folder


def peak_bytes(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def two_largest(sizes):
    return sum(sorted(sizes)[-2:])


BOOKKEEPING_BYTES = 500_000  # headers and names of 362 tensors, asked of fifteen families; 456 kB was seen, at any size


def test_importing_holds_no_more_than_the_two_largest_parameters(larger_folder):
    _, leaves = open_folder(larger_folder)
    leaves = jax.tree.leaves(leaves)
    limit = two_largest(leaf.dtype.itemsize * math.prod(leaf.shape) for leaf in leaves)

    def read_each():
        for leaf in leaves:
            leaf.read()

    assert peak_bytes(read_each) < limit


def test_exporting_holds_no_more_than_the_two_largest_tensors(larger_folder, tmp_path):
    config, leaves = open_folder(larger_folder)
    limit = two_largest(array.nbytes for array in goldens.tensors(larger_folder).values())
    peak = peak_bytes(lambda: export_folder(config, leaves, tmp_path / "again"))
    assert peak < limit + BOOKKEEPING_BYTES
    assert goldens.bits(tmp_path / "again") == goldens.bits(larger_folder)


def test_layers_that_predict_further_tokens_are_passed_over(tmp_path):
    """The published DeepSeek-V3 has one behind its last layer."""
    folder = goldens.copy("deepseek_v3", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"num_nextn_predict_layers": 1}))
    further = {"model.layers.3.eh_proj.weight": np.ones((32, 64), np.float32)}
    goldens.save(goldens.tensors(folder) | further, folder)
    assert open_folder(folder)[0] == imported("deepseek_v3")[0]


def test_settings_left_out_take_the_familys_default(tmp_path):
    folder = goldens.copy("gemma2", tmp_path)
    settings = json.loads((folder / "config.json").read_text())
    for key in ("layer_types", "rms_norm_eps", "tie_word_embeddings", "hidden_activation", "rope_parameters"):
        del settings[key]
    (folder / "config.json").write_text(json.dumps(settings))
    assert open_folder(folder)[0] == imported("gemma2")[0]

"""Encoders: BERT's older files, and an imported encoder that is evaluated, trained on, and asked for a text."""

import json

import chex
import huggingface_goldens as goldens
import jax
import numpy as np
import pytest
import tokenizers
from messages import refused
from published_settings import BERT_BASE, MODERNBERT_BASE

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.data.examples import MaskedTokens
from jaxtrain.nn.heads import TransformedHead
from jaxtrain.nn.joins import FeedForwardNorm, PostNorm, PreNorm
from jaxtrain.surgery.huggingface import FAMILIES, import_folder
from jaxtrain.train.metrics import read_metrics


def read(settings):
    return FAMILIES[settings["model_type"]].read(settings)


def test_modernbert_has_windows_and_a_base_of_their_own_in_two_layers_of_three():
    blocks = read(MODERNBERT_BASE).pattern
    assert [block.mixer.mask.span.window for block in blocks] == ([None, 65, 65] * 8)[:22]
    assert {(b.mixer.mask.span.window, b.mixer.positions.theta) for b in blocks} == {(None, 160_000.0), (65, 10_000.0)}
    assert [block.join for block in blocks] == [FeedForwardNorm()] + [PreNorm()] * 21


def test_bert_has_no_norm_but_behind_its_layers_and_in_its_head():
    config, params = import_folder(goldens.GOLDENS / "bert")
    assert {block.join for block in config.pattern} == {PostNorm()} and config.head == TransformedHead()
    assert "final_norm" not in params and "embedding_norm" in params
    assert not config.causal and config.dropout == 0.1


def _older(folder, **more):
    """Write the weights with the names that TensorFlow's and older PyTorch's files have."""
    arrays = goldens.tensors(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    named = {}
    for name, array in arrays.items():
        for new, before in old.items():
            name = name.replace(new, before)
        named[name] = array
    width = arrays[goldens.TYPES].shape[1]
    named |= {
        "bert.pooler.dense.weight": np.ones((width, width), np.float32),
        "bert.pooler.dense.bias": np.ones(width, np.float32),
        "cls.seq_relationship.weight": np.ones((2, width), np.float32),
        "bert.embeddings.position_ids": np.arange(32)[None],
        "cls.predictions.decoder.weight": arrays["bert.embeddings.word_embeddings.weight"],
        "cls.predictions.decoder.bias": arrays["cls.predictions.bias"],
    }
    goldens.save(named | more, folder)


def test_older_files_and_those_with_a_pooler_are_read_alike(tmp_path):
    folder = goldens.copy("bert", tmp_path)
    _older(folder)
    chex.assert_trees_all_equal(import_folder(folder)[1], import_folder(goldens.GOLDENS / "bert")[1])


REFUSED = {
    "a bias of two values": ({"cls.predictions.decoder.bias": np.ones(64, np.float32)}, ("cls.predictions.bias",)),
    "a head of its own": (
        {"cls.predictions.decoder.weight": np.ones((64, 32), np.float32)},
        ("cls.predictions.decoder.weight", "tied"),
    ),
    "a norm of two names": (
        {"bert.embeddings.LayerNorm.weight": np.ones(32, np.float32)},
        ("bert.embeddings.LayerNorm.weight",),
    ),
}


@pytest.mark.parametrize("tensors, facts", REFUSED.values(), ids=REFUSED)
def test_tensors_at_odds_are_refused(tensors, facts, tmp_path):
    folder = goldens.copy("bert", tmp_path)
    _older(folder, **tensors)
    with refused(ValueError, *facts):
        import_folder(folder)


SETTINGS = {
    "a decoder": (BERT_BASE | {"is_decoder": True}, ("is_decoder=True", False)),
    "other positions": (
        BERT_BASE | {"position_embedding_type": "relative_key"},
        ("position_embedding_type='relative_key'", "absolute"),
    ),
    "another number of token types": (BERT_BASE | {"type_vocab_size": 3}, ("type_vocab_size=3", 2)),
    "biases": (MODERNBERT_BASE | {"attention_bias": True}, ("attention_bias=True", False)),
    "dropout": (MODERNBERT_BASE | {"mlp_dropout": 0.1}, ("mlp_dropout=0.1", "--set")),
    "windows of no period": (MODERNBERT_BASE | {"global_attn_every_n_layers": 0}, ("global_attn_every_n_layers=0", 1)),
}


@pytest.mark.parametrize("settings, facts", SETTINGS.values(), ids=SETTINGS)
def test_settings_of_other_encoders_are_refused(settings, facts):
    with refused(ValueError, *facts):
        read(settings)


WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the recorded BERT, with a tokenizer as BERT's, and a text to train it on."""
    folder = tmp_path_factory.mktemp("encoder")
    source = goldens.copy("bert", folder)
    settings = json.loads((source / "config.json").read_text()) | {"bos_token_id": None, "eos_token_id": None}
    (source / "config.json").write_text(json.dumps(settings))  # as published
    model = tokenizers.Tokenizer(tokenizers.models.WordLevel(dict(zip(WORDS, range(13), strict=True)), "[UNK]"))
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    model.add_special_tokens(list(WORDS[:5]))
    special = [("[CLS]", 2), ("[SEP]", 3)]
    model.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=special)
    model.save(str(source / "tokenizer.json"))
    named = {"mask_token": "[MASK]", "sep_token": "[SEP]", "cls_token": {"content": "[CLS]"}}
    (source / "tokenizer_config.json").write_text(json.dumps(named))
    for i in range(4):
        (folder / f"{i}.txt").write_text(" ".join("abcdefgh"[i:] * 9))
    small = [f"data.source=@TextFiles(glob='{folder}/*.txt')", "data.validation_fraction=0.3"]
    small += ["phases[0].steps=2", "phases[0].batch_size=8", "phases[0].sequence_length=16"]
    small += ["optimizer.learning_rate.warmup_steps=0", "hooks[0].every_steps=2"]
    sets = [word for text in small for word in ("--set", text)]
    assert main(["convert", str(source), str(folder / "run"), *sets]) == 0
    return folder / "run"


def test_an_imported_encoder_asks_for_masked_tokens(run):
    data = load(run).config.data
    assert data.examples == MaskedTokens(mask=4)
    assert (data.tokenizer.beginning, data.tokenizer.end_of_document_id) == ((2,), 3)


def test_an_imported_encoder_is_evaluated_and_generates_nothing(run, capsys):
    assert main(["eval", str(run), "--batches", "1"]) == 0
    assert "nats a token" in capsys.readouterr().out
    assert main(["generate", str(run), "--prompt", "a", "--tokens", "3"]) == 2
    assert "mask=Bidirectional" in capsys.readouterr().err


def test_a_run_begins_with_an_imported_encoder(run, tmp_path):
    config = load(run, [f"initial=@FromRun(path={str(run)!r})"]).config
    config.trainer(tmp_path, devices=jax.devices()[:1]).train()
    losses = [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl") if "loss" in record]
    assert len(losses) == 2
    assert losses[0] > np.log(64) + 0.5, "of the imported weights: new ones guess evenly"

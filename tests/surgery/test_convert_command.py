"""`jaxtrain convert` there and back: same bits, tokenizer and token ids carried along."""

import contextlib
import dataclasses
import json
from pathlib import Path

import huggingface_goldens as goldens
import jax
import ml_dtypes
import numpy as np
import pytest
import sentencepiece
import tokenizers
from messages import check, refusal
from tokenizer_files import BEGINS, add_chat, add_special_tokens, add_tokenizer

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.data import ByteTokenizer, HuggingFaceTokenizer, SentencePiece, TextFiles
from jaxtrain.models import presets
from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.schedules import Constant
from jaxtrain.surgery.huggingface import open_folder
from jaxtrain.train.checkpoint import Checkpoints
from jaxtrain.train.hooks import Checkpoint
from jaxtrain.train.phases import Phase


@pytest.mark.parametrize("family", goldens.NAMES)
def test_there_and_back_is_bit_identical(family, tmp_path, capsys):
    source, run, back = goldens.copy(family, tmp_path), tmp_path / "run", tmp_path / "back"
    if family == "qwen3":
        narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in goldens.tensors(source).items()}
        goldens.save(narrow, source)
    assert main(["convert", str(source), str(run)]) == 0
    assert main(["convert", str(run), str(back)]) == 0
    assert goldens.bits(back) == goldens.bits(source)
    assert open_folder(back)[0] == open_folder(source)[0]
    original, settings = (json.loads((folder / "config.json").read_text()) for folder in (source, back))
    for key in ("model_type", "architectures", "bos_token_id", "eos_token_id"):
        assert settings[key] == original[key]


def test_an_imported_run_has_a_configuration_and_a_valid_checkpoint(tiny_folder, tmp_path):
    assert main(["convert", str(tiny_folder), str(tmp_path / "run")]) == 0
    config = load(tmp_path / "run").config
    assert config.model == presets.qwen3_tiny()
    assert config.data.tokenizer == ByteTokenizer()
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints")
    assert checkpoints.latest_valid() == 0
    shapes = abstract_model(config.model).shapes
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), shapes)
    table = checkpoints.restore_model(0, target).params["embedding"]["table"]
    np.testing.assert_array_equal(table, goldens.tensors(tiny_folder)["model.embed_tokens.weight"])


def test_an_imported_run_generates(tiny_folder, tmp_path, capsys):
    assert main(["convert", str(tiny_folder), str(tmp_path / "run")]) == 0
    assert main(["generate", str(tmp_path / "run"), "--prompt", "def ", "--tokens", "3", "--temperature", "0"]) == 0
    assert "def " in capsys.readouterr().out


def test_the_tokenizer_comes_along_and_goes_back(tiny_folder, tmp_path, monkeypatch):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_tokenizer(source)
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "source", "run"]) == 0
    tokenizer = load("run").config.data.tokenizer
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.end_of_document_id == 1
    assert tokenizer.encode("def").tolist() == [0]
    assert main(["convert", "run", "back"]) == 0
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def json_of(folder, name):
    return json.loads((folder / name).read_text())


def test_token_ids_sampling_and_chat_templates_come_along_and_go_back(tiny_folder, tmp_path):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_tokenizer(source)
    add_chat(source)
    settings = json_of(source, "config.json") | {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2}
    (source / "config.json").write_text(json.dumps(settings))
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    back = json_of(tmp_path / "back", "config.json")
    assert (back["bos_token_id"], back["eos_token_id"], back["pad_token_id"]) == (0, [1, 2], 2)
    expected = {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2, "temperature": 0.6}
    assert json_of(tmp_path / "back", "generation_config.json") == expected
    for name in ("chat_template.jinja", "additional_chat_templates/tools.jinja", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (source / name).read_bytes()


def test_token_ids_that_nobody_has_are_null_and_not_those_that_transformers_assumes(tiny_folder, tmp_path):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    settings = json_of(source, "config.json")
    (source / "config.json").write_text(json.dumps({k: v for k, v in settings.items() if not k.endswith("token_id")}))
    (source / "generation_config.json").unlink()
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    ids = {"bos_token_id": None, "eos_token_id": ByteTokenizer().end_of_document_id, "pad_token_id": None}
    assert json_of(tmp_path / "back", "generation_config.json") == ids
    assert json_of(tmp_path / "back", "config.json").items() >= ids.items()


def test_what_belongs_to_another_tokenizer_is_left_out(tiny_folder, tmp_path, capsys):
    """The imported one ends texts with token 1; the run's own ends them with token 4 and begins them with token 2."""
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_tokenizer(source)
    add_chat(source)
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    words = {"a": 0, "b": 1, "c": 2, "<unk>": 3, "<end>": 4}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    other.add_special_tokens(["<end>"])
    other.post_processor = tokenizers.processors.TemplateProcessing(single="c $A", special_tokens=[("c", 2)])
    other.save(str(tmp_path / "other.json"))
    text = f"@HuggingFaceTokenizer(path={str(tmp_path / 'other.json')!r},end_of_document='<end>')"
    arguments = ["convert", str(tmp_path / "run"), str(tmp_path / "back"), "--set", f"data.tokenizer={text}"]
    assert main(arguments) == 0
    assert "the run has another tokenizer than was imported with it" in capsys.readouterr().out
    back = tmp_path / "back"
    assert (back / "tokenizer.json").read_bytes() == (tmp_path / "other.json").read_bytes()
    assert not (back / "chat_template.jinja").exists() and not (back / "additional_chat_templates").exists()
    ids = {"bos_token_id": 2, "eos_token_id": 4, "pad_token_id": None}
    assert json_of(back, "generation_config.json") == {**ids, "temperature": 0.6}
    assert json_of(back, "config.json").items() >= ids.items()
    written = json_of(back, "tokenizer_config.json")
    assert (written["bos_token"], written["eos_token"]) == ("c", "<end>")


def test_folders_in_folders_of_any_name_are_converted(tiny_folder, tmp_path):
    parent = tmp_path.joinpath("lr[3e-4]", "back\\slash", "a#b?c%20d", "two words", "веса", "star*")
    places = [parent / kind for kind in ("source", "run", "back")]
    source, run, back = places
    goldens.shutil.copytree(tiny_folder, source)
    add_tokenizer(source)
    assert main(["convert", str(source), str(run)]) == 0
    assert load(run).config.data.tokenizer.end_of_document_id == 1
    assert main(["convert", str(run), str(back)]) == 0
    assert goldens.bits(back) == goldens.bits(source)
    assert sorted(parent.iterdir()) == sorted(places)


def test_weights_are_rounded_on_request(tiny_folder, tmp_path):
    assert main(["convert", str(tiny_folder), str(tmp_path / "run")]) == 0
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back"), "--dtype", "bfloat16"]) == 0
    assert {tensor.dtype for tensor in goldens.bits(tmp_path / "back").values()} == {"bfloat16"}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_an_imported_run_trains_on_from_the_weights_and_goes_back(tiny_folder, tmp_path):
    """Files of bfloat16 become float32 master weights. Worth its seconds: the way of everyone who fine-tunes."""
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    narrow = {name: array.astype(ml_dtypes.bfloat16) for name, array in goldens.tensors(source).items()}
    goldens.save(narrow, source)
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    (tmp_path / "words.txt").write_text("some words to train on " * 100)
    loaded = load(tmp_path / "run").config
    data = dataclasses.replace(loaded.data, source=TextFiles(glob=str(tmp_path / "*.txt")), validation_fraction=0.0)
    phases = (Phase(steps=1, batch_size=2, sequence_length=16),)
    optimizer = dataclasses.replace(loaded.optimizer, learning_rate=Constant(peak=1e-7))
    run = {"data": data, "phases": phases, "optimizer": optimizer, "writers": (), "hooks": (Checkpoint(every_steps=1),)}
    config = dataclasses.replace(loaded, **run)
    result = config.trainer(tmp_path / "run", devices=jax.devices()[:1]).train()
    table = np.asarray(result.state.params["embedding"]["table"])
    assert result.step == 1 and table.dtype == np.float32
    np.testing.assert_allclose(table, narrow["model.embed_tokens.weight"].astype(np.float32), atol=1e-5, rtol=0)
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    np.testing.assert_array_equal(goldens.tensors(tmp_path / "back")["model.embed_tokens.weight"], table)
    mixer = result.state.params["stacks"]["blocks"]["blocks"][0]["mixer"]
    query = np.asarray(mixer["query"]["kernel"])[1].reshape(64, -1)
    np.testing.assert_array_equal(goldens.tensors(tmp_path / "back")["model.layers.1.self_attn.q_proj.weight"], query.T)


def no_end(folder):
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')


def many_tokens(folder):
    words = {"<eos>": 0} | {f"w{i}": i for i in range(1, 400)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<eos>")).save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(
    "spoil, facts",
    [(no_end, ("end_of_document='</s>'", "tokenizer.json")), (many_tokens, (400, 320))],
    ids=["no end", "many tokens"],
)
def test_a_tokenizer_that_does_not_fit_leaves_the_model_alone(tiny_folder, tmp_path, capsys, spoil, facts):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_tokenizer(source)
    spoil(source)
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    check(capsys.readouterr().out, "model.gin", "config.gin", *facts)
    assert (tmp_path / "run" / "model.gin").exists() and not (tmp_path / "run" / "config.gin").exists()
    check(refusal(capsys, "convert", source, tmp_path / "other", "--set", "seed=1"), "--set")


def test_a_sentence_piece_model_comes_along_and_goes_back(tiny_folder, tmp_path):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    (tmp_path / "text.txt").write_text("some words to make a tokenizer of " * 20)
    with contextlib.chdir(tmp_path):
        sentencepiece.SentencePieceTrainer.train(
            input="text.txt", model_prefix="pieces", vocab_size=40, minloglevel=2, hard_vocab_limit=False
        )
    goldens.shutil.copy(tmp_path / "pieces.model", source / "tokenizer.model")
    assert main(["convert", str(source), str(tmp_path / "run"), "--set", "phases[0].steps=700"]) == 0
    config = load(tmp_path / "run").config
    tokenizer = config.data.tokenizer
    assert isinstance(tokenizer, SentencePiece) and Path(tokenizer.path).parent == tmp_path / "run" / "kept_files"
    assert config.phases[0].steps == 700, "changes of --set are the run's"
    assert main(["convert", str(tmp_path / "run"), str(tmp_path / "back")]) == 0
    assert (tmp_path / "back" / "tokenizer.model").read_bytes() == (tmp_path / "pieces.model").read_bytes()


@pytest.mark.parametrize(
    "processor, told, prompt",
    [
        (BEGINS, {}, [1, 3]),
        (BEGINS, {"add_bos_token": True}, [1, 3]),
        (BEGINS, {"add_bos_token": False}, [3]),
        (None, {}, [3]),
        (None, {"add_bos_token": True}, [1, 3]),
        (None, {"add_bos_token": False, "bos_token": None}, [3]),
    ],
)
def test_an_imported_run_begins_prompts_and_documents_as_it_was_told(
    tiny_folder, tmp_path, capsys, processor, told, prompt
):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_special_tokens(source, processor, told)
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    disagree = told.get("add_bos_token", bool(processor)) != bool(processor)
    assert ("tokenizer.json does not do so: the run does" in capsys.readouterr().out) == disagree
    tokenizer = load(tmp_path / "run").config.data.tokenizer
    assert tokenizer.encode_prompt("def") == prompt
    assert [ids.tolist() for ids in tokenizer.encode_documents([("def def",)])[0]] == [[*prompt, 3, 2]]


@pytest.mark.parametrize("options, told, begins", [({}, None, True), ({}, False, False), ({"bos_id": -1}, None, False)])
def test_an_imported_sentence_piece_model_begins_texts_where_it_can_and_is_not_told_otherwise(
    tiny_folder, tmp_path, options, told, begins
):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    with (source / "tokenizer.model").open("wb") as file:
        lines = iter(["some words to make a tokenizer of"] * 20)
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=file, vocab_size=40, minloglevel=2, hard_vocab_limit=False, **options
        )
    if told is not None:
        (source / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": told}))
    assert main(["convert", str(source), str(tmp_path / "run")]) == 0
    tokenizer = load(tmp_path / "run").config.data.tokenizer
    assert tokenizer.encode_prompt("some") == [1] * begins + tokenizer.encode("some").tolist()


def test_an_imported_run_that_was_moved_does_not_read_what_lies_at_its_old_place(tiny_folder, tmp_path, monkeypatch):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_special_tokens(source, BEGINS, {})
    monkeypatch.chdir(tmp_path)
    assert main(["convert", "source", "run"]) == 0
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "moved")
    add_special_tokens(source, None, {})
    assert main(["convert", "source", "run"]) == 0
    monkeypatch.chdir("/")
    tokenizer = load(tmp_path / "elsewhere" / "moved").config.data.tokenizer
    assert tokenizer.path.startswith(str(tmp_path / "elsewhere" / "moved")) and tokenizer.beginning == (1,)

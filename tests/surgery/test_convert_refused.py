"""What `jaxtrain convert` refuses: in one line, and with nothing left behind."""

import json

import huggingface_goldens as goldens
import pytest
from full_disk import files_no_larger_than
from messages import check, refusal
from tokenizer_files import add_chat, add_special_tokens, add_tokenizer

from jaxtrain.cli.main import main
from jaxtrain.train.folder import RunFolder


@pytest.mark.parametrize("name", ["chat_template.jinja", "tokenizer.json", "generation_config.json", "config.json"])
def test_a_link_out_of_the_folder_is_copied_neither_in_nor_out(tiny_folder, tmp_path, capsys, name):
    source, run = goldens.shutil.copytree(tiny_folder, tmp_path / "source"), tmp_path / "run"
    add_tokenizer(source)
    add_chat(source)
    assert main(["convert", str(source), str(run)]) == 0
    for folder, target in ((source, tmp_path / "again"), (run / "huggingface", tmp_path / "back")):
        secret = tmp_path / f"secret-{target.name}"
        (folder / name).rename(secret)
        (folder / name).symlink_to(secret)
        line = refusal(capsys, "convert", source if folder is source else run, target)
        check(line, folder / name, secret)
        assert not target.exists()


def test_what_is_neither_kind_of_folder_is_refused(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    check(refusal(capsys, "convert", tmp_path / "empty", tmp_path / "run"), tmp_path / "empty")
    check(refusal(capsys, "convert", tmp_path / "empti", tmp_path / "run"), tmp_path / "empti", "'empty'")
    assert not (tmp_path / "run").exists()


def test_an_average_of_a_model_that_has_not_trained_is_refused(tmp_path, capsys):
    """The vocabulary is too small for bytes, so there is no configuration to look for averages in."""
    assert main(["convert", str(goldens.copy("llama", tmp_path)), str(tmp_path / "model")]) == 0
    assert not (tmp_path / "model" / "config.gin").exists()
    line = refusal(capsys, "convert", tmp_path / "model", tmp_path / "back", "--weights", "ema")
    check(line, "weights='ema'", "no averages")
    assert not (tmp_path / "back").exists()


def test_a_file_beside_the_weights_that_is_damaged_is_refused_by_name(tiny_folder, tmp_path, capsys):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_tokenizer(source)
    (source / "tokenizer_config.json").write_text("{")
    line = refusal(capsys, "convert", source, tmp_path / "run")
    check(line, source / "tokenizer_config.json", "JSON", varies={"<json>": r"\(.*\)"})


DAMAGED = {
    "tokenizer.json": ("{}", "`tokenizers` JSON file", {"<tokenizers>": r"\(.*\)"}),
    "tokenizer_config.json": ('["a"]', "JSON object", None),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_tokenizer_that_is_damaged_is_refused_by_name(tiny_folder, tmp_path, capsys, name):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_tokenizer(source)
    content, fact, varies = DAMAGED[name]
    (source / name).write_text(content)
    check(refusal(capsys, "convert", source, tmp_path / "run"), source / name, fact, varies=varies)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "told, facts",
    [
        ({"add_bos_token": "yes"}, ("add_bos_token", "'yes'", "true or false")),
        ({"add_bos_token": True, "bos_token": None}, ("add_bos_token is true", "bos_token")),
    ],
    ids=["yes", "nothing"],
)
def test_a_beginning_that_cannot_be_told_is_refused_by_name(tiny_folder, tmp_path, capsys, told, facts):
    source = goldens.shutil.copytree(tiny_folder, tmp_path / "source")
    add_special_tokens(source, None, told)
    check(refusal(capsys, "convert", source, tmp_path / "run"), source / "tokenizer_config.json", *facts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("direction", ["in", "out"])
def test_a_full_disk_is_one_clear_line_and_leaves_nothing(tiny_folder, tmp_path, capsys, direction):
    source = tiny_folder
    if direction == "out":
        assert main(["convert", str(tiny_folder), str(source := tmp_path / "run")]) == 0
    before = sorted(tmp_path.iterdir())
    with files_no_larger_than(30_000):
        line = refusal(capsys, "convert", source, tmp_path / "target")
    check(line, tmp_path / "target", "File too large")
    assert sorted(tmp_path.iterdir()) == before


def test_a_configuration_that_does_not_fit_leaves_no_half_a_run(tiny_folder, tmp_path, capsys, monkeypatch):
    def fail(folder, text):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunFolder, "write_config", fail)
    line = refusal(capsys, "convert", tiny_folder, tmp_path / "run")
    check(line, tmp_path / "run", "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_exists_is_left_as_it_was(tiny_folder, tmp_path, capsys):
    (tmp_path / "config.gin").write_text("mine")
    check(refusal(capsys, "convert", tiny_folder, tmp_path), tmp_path, "exists")
    assert [file.name for file in tmp_path.iterdir()] == ["config.gin"]


def test_a_failed_import_leaves_nothing(tmp_path, capsys):
    source = goldens.copy("llama", tmp_path)
    (source / "model-00001-of-00002.safetensors").unlink()
    check(refusal(capsys, "convert", source, tmp_path / "run"), source, "model-00001-of-00002.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["llama"]


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path, capsys):
    source = goldens.copy("llama", tmp_path)
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(settings | {"model_type": "mamba"}))
    check(refusal(capsys, "convert", source, tmp_path / "run"), "'mamba'", "llama, mistral, qwen2, qwen3, gemma")


def test_a_damaged_checkpoint_is_not_exported(tiny_folder, tmp_path, capsys):
    assert main(["convert", str(tiny_folder), str(tmp_path / "run")]) == 0
    file = max((tmp_path / "run" / "checkpoints" / "0").rglob("*"), key=lambda path: path.stat().st_size)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    check(refusal(capsys, "convert", tmp_path / "run", tmp_path / "back"), tmp_path / "run", "checkpoint")
    assert not (tmp_path / "back").exists()

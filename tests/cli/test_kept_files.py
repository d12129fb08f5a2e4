"""A run goes by its own copies of the files that its configuration names, whatever becomes of the originals."""

import ast
import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from messages import check, refusal, refused
from tiny_run import content

import jaxtrain
from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.cli.tokenizer import train_tokenizer
from jaxtrain.cli.train import begin
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, TextFiles
from jaxtrain.models import presets
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Constant
from jaxtrain.paths import FilePath
from jaxtrain.pipeline.schedules.from_file import FromFile
from jaxtrain.pipeline.schedules.gpipe import GPipe
from jaxtrain.record.files import RunFiles, differences, kept_names, remarks
from jaxtrain.record.text import render
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.gradients.pipelined import Pipelined
from jaxtrain.train.phases import Phase


@pytest.fixture
def tokenizer(text, tmp_path):
    return train_tokenizer(TextFiles(glob=f"{text}/*.txt"), vocab_size=290, path=str(tmp_path / "tok.json"))


@pytest.fixture
def config(text, tokenizer) -> TrainConfig:
    return TrainConfig(
        model=presets.qwen3_tiny(),
        data=DataConfig(source=TextFiles(glob=f"{text}/*.txt"), tokenizer=tokenizer),
        optimizer=AdamW(learning_rate=Constant(peak=1e-3)),
        phases=(Phase(steps=1, batch_size=8, sequence_length=32),),
    )


def replace(file: str, text: Path) -> None:
    """Put another tokenizer in place of one."""
    train_tokenizer(TextFiles(glob=f"{text}/*.txt"), vocab_size=262, path=file)


def test_a_run_has_copies_of_its_files_and_names_them_wherever_it_lies(config, tokenizer, tmp_path):
    RunFiles.of(config).write(RunFolder(tmp_path / "run"))
    assert differences(RunFiles.of(load(tmp_path / "run").config), RunFiles.of(config)) == []
    Path(tokenizer.path).unlink()
    assert "path = '{run}/kept_files/" in (tmp_path / "run" / "config.gin").read_text()
    (tmp_path / "run").rename(tmp_path / "moved [1]")
    loaded = load(tmp_path / "moved [1]").config
    assert Path(loaded.data.tokenizer.path).parent == tmp_path / "moved [1]" / "kept_files"
    assert loaded.data.tokenizer.vocab_size == 290


def test_tables_of_schedules_are_kept_too_and_whatever_a_phase_names(config, tokenizer, text, tmp_path):
    (tmp_path / "table.txt").write_text(GPipe().table(2, 2).dump())
    other = train_tokenizer(TextFiles(glob=f"{text}/*.txt"), vocab_size=270, path=str(tmp_path / "other.json"))
    phase = dataclasses.replace(config.phases[0], data=dataclasses.replace(config.data, tokenizer=other))
    pipelined = Pipelined(microbatches=2, schedule=FromFile(path=str(tmp_path / "table.txt")))
    config = dataclasses.replace(config, gradients=pipelined, phases=(*config.phases, phase))
    RunFiles.of(config).write(RunFolder(tmp_path / "run"))
    for path in (tmp_path / "table.txt", tokenizer.path, other.path):
        Path(path).unlink()
    loaded = load(tmp_path / "run").config
    assert loaded.gradients.schedule.table(2, 2) == GPipe().table(2, 2)
    assert [phase.data and phase.data.tokenizer.vocab_size for phase in loaded.phases] == [None, 270]


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed(TextFiles):
    """A source as somebody else may write it."""

    allowed: FilePath | None = None


def test_a_new_class_that_names_a_file_is_kept_without_further_code(config, text, tmp_path):
    (tmp_path / "allowed.txt").write_text("0.txt")
    for allowed in (str(tmp_path / "allowed.txt"), None):
        source = Listed(glob=f"{text}/*.txt", allowed=allowed)
        RunFiles.of(dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))).write(
            RunFolder(tmp_path / "run")
        )
        found = load(tmp_path / "run").config.data.source.allowed
        assert found is None if allowed is None else Path(found).read_text() == "0.txt"
    assert load(tmp_path / "run").config.data.source.glob == f"{text}/*.txt"


def keys_that_name_files() -> Iterator[tuple[str, str]]:
    """Yield every field of a dataclass by the name of which it holds a path, and its annotation."""
    for unit in ("data", "models", "nn", "objectives", "optim", "pipeline", "train/hooks"):
        for source in (Path(jaxtrain.__file__).parent / unit).rglob("*.py"):
            for node in ast.walk(ast.parse(source.read_text())):
                if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                    for field in node.body:
                        if isinstance(field, ast.AnnAssign) and re.search(
                            "(^|_)(path|file|folder|glob)s?($|_)", field.target.id
                        ):
                            yield f"{node.name}.{field.target.id}", ast.unparse(field.annotation)


def test_every_key_that_names_files_says_so():
    found = dict(keys_that_name_files())
    assert {"HuggingFaceTokenizer.path", "FromFile.path", "TextFiles.glob"} <= found.keys()
    assert set(found.values()) <= {"FilePath", "FilePath | None", "Folder", "Glob"}, found


def test_patterns_are_recorded_from_the_root_and_addresses_as_they_are(config, text, tmp_path, monkeypatch):
    monkeypatch.chdir(text.parent)
    for glob, recorded in (
        (f"{text.name}/*.txt", f"{text}/*.txt"),
        (f"{text}/*.txt", f"{text}/*.txt"),
        ("memory://a/*.txt", "memory://a/*.txt"),
    ):
        source = TextFiles(glob=glob)
        RunFiles.of(dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))).write(
            RunFolder(tmp_path / "run")
        )
        assert load(tmp_path / "run").config.data.source.glob == recorded


def test_files_of_one_content_are_the_same_wherever_they_lie(config, tokenizer, text, tmp_path):
    def using(path) -> RunFiles:
        changed = dataclasses.replace(tokenizer, path=str(path))
        return RunFiles.of(dataclasses.replace(config, data=dataclasses.replace(config.data, tokenizer=changed)))

    shutil.copy(tokenizer.path, tmp_path / "copy.json")
    (tmp_path / "folder").mkdir()
    shutil.copy(tokenizer.path, tmp_path / "folder" / "tok.json")
    replace(str(tmp_path / "other.json"), text)
    assert differences(using(tokenizer.path), using(tmp_path / "folder" / "tok.json")) == []
    [changed] = differences(using(tokenizer.path), using(tmp_path / "other.json"))
    assert changed.path == "data.tokenizer.path"


VARIES = {"<digest>": r"(?<=kept_files/)\w+(?=-tok.json)"}


@pytest.mark.parametrize("damage, reason", [(b"{}", "is not the file that the run kept"), (None, "cannot be read")])
def test_a_copy_that_is_damaged_or_missing_is_refused_by_name_with_the_key_to_replace_it(
    config, tokenizer, tmp_path, damage, reason
):
    RunFiles.of(config).write(RunFolder(tmp_path / "run"))
    [copy] = (tmp_path / "run" / "kept_files").glob("*-tok.json")
    copy.unlink() if damage is None else copy.write_bytes(damage)
    with refused(ValueError, copy, reason, "data.tokenizer.path", varies=VARIES | {"<line>": r"(?<=config.gin:)\d+"}):
        load(tmp_path / "run")
    again = load(tmp_path / "run", [f"data.tokenizer.path={tokenizer.path}"]).config
    assert again.data.tokenizer == tokenizer


def test_a_file_that_is_named_in_place_of_the_copy_is_said(config, tokenizer, tmp_path):
    RunFiles.of(config).write(folder := RunFolder(tmp_path / "run"))
    assert remarks(folder, load(folder.config).config) == []
    said = [f"data.tokenizer.path: {tokenizer.path} is read, which is not the run's own copy"]
    assert remarks(folder, load(folder.config, [f"data.tokenizer.path={tokenizer.path}"]).config) == said


def test_a_damaged_list_of_origins_is_refused_by_name(config, tmp_path):
    RunFiles.of(config).write(folder := RunFolder(tmp_path / "run"))
    for damage in ("", "[]", "null", "\xff"):
        (folder.files / "origins.json").write_bytes(damage.encode("latin-1"))
        with refused(ValueError, folder.files / "origins.json", varies={"<json>": r"\(.*\)"}):
            remarks(folder, config)


def test_a_run_without_copies_is_read_as_it_is_and_has_them_when_it_is_written_again(config, tokenizer, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.write_config(render(config))
    before = load(folder.config).config
    assert before.data.tokenizer == tokenizer and remarks(folder, before) == []
    RunFiles.of(before).check_unchanged(kept_names(folder.config.read_text()), folder)
    RunFiles.of(before).write(folder)
    assert load(folder.config).config.data.tokenizer.path.startswith(str(folder.files))


# -- the commands -------------------------------------------------------------------------------------------------


@pytest.fixture
def run(tiny_run, text, tmp_path):
    """The run that tests of commands share, with a tokenizer in place of bytes; the command that makes it; the file."""
    shutil.copytree(tiny_run.folder, tmp_path / "run")
    tokenizer = train_tokenizer(TextFiles(glob=f"{text}/*.txt"), vocab_size=257, path=str(tmp_path / "tok.json"))
    changed = [f"data.tokenizer=@HuggingFaceTokenizer(path={tokenizer.path!r})"]
    folder = RunFolder(tmp_path / "run")
    RunFiles.of(load(folder.config, changed).config).write(folder)
    return folder.path, [*tiny_run.command, "--set", *changed, "--run", str(folder.path)], Path(tokenizer.path)


def swap_letters(tokenizer: Path) -> None:
    """Put a tokenizer in place of one that gives two letters each other's ids."""
    made = json.loads(tokenizer.read_text())
    vocab = made["model"]["vocab"]
    vocab["e"], vocab["("] = vocab["("], vocab["e"]
    tokenizer.write_text(json.dumps(made))


def test_evaluation_and_samples_do_not_change_with_the_file_that_was_the_tokenizer_and_say_so(
    run, tmp_path, capsys, monkeypatch
):
    """Worth its seconds: this changed the loss of 2,206 tokens to one of 2,656, and nobody was told."""
    folder, _, tokenizer = run
    commands = ["eval", str(folder)], ["generate", str(folder), "--prompt", "def", "--tokens", "4"]
    before = [(main(words), *capsys.readouterr()) for words in commands]
    assert [(code, note) for code, _, note in before] == [(0, ""), (0, "")]
    swap_letters(tokenizer)
    (tmp_path / "elsewhere").mkdir()
    folder.rename(tmp_path / "elsewhere" / "moved")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for (name, _, *rest), (_, printed, _) in zip(commands, before, strict=True):
        assert main([name, "moved", *rest]) == 0
        again = capsys.readouterr()
        assert again.out == printed
        note = f"jaxtrain: note: {tokenizer} is another file now; the run's own copy is used, moved/kept_files/"
        assert again.err.startswith(note) and again.err.count("\n") == 1
    assert main(["eval", "moved", "--set", f"data.tokenizer.path={tokenizer}"]) == 0
    other = capsys.readouterr()
    assert other.out != before[0][1], "the file matters"
    assert other.err.endswith("tok.json is read, which is not the run's own copy\n")


@pytest.mark.parametrize(
    "more", [[], ["--allow-config-change"], ["--allow-config-change", "--set", "phases[0].steps=9"]]
)
def test_training_does_not_go_on_with_another_file_under_the_same_path(run, capsys, more):
    folder, made, tokenizer = run
    swap_letters(tokenizer)
    before = content(folder)
    said = refusal(capsys, *made, *more)
    check(said, "data.tokenizer.path", tokenizer, folder, varies=VARIES)
    check(said, f"--set data.tokenizer.path={folder}/kept_files/", recorded=False)
    assert content(folder) == before


def test_another_spelling_of_the_path_is_the_same_path(run, capsys):
    folder, made, tokenizer = run
    swap_letters(tokenizer)
    link = tokenizer.with_name("link.json")
    link.symlink_to(tokenizer)
    for path in (link, tokenizer.parent / "run" / ".." / tokenizer.name):
        spelled = f"data.tokenizer=@HuggingFaceTokenizer(path={str(path)!r})"
        line = refusal(capsys, *made, "--allow-config-change", "--set", spelled)
        check(line, "data.tokenizer.path", tokenizer, folder, varies=VARIES)


def test_training_goes_on_with_the_copy_where_it_is_named_or_the_run_is(run, capsys):
    folder, made, tokenizer = run
    swap_letters(tokenizer)
    [copy] = (folder / "kept_files").glob("*-tok.json")
    for words in (["train", str(folder)], [*made, "--set", f"data.tokenizer.path={copy}"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert f"note: {tokenizer} is another file now; the run's own copy is used, {copy}" in said
        assert "going on from" in said or "nothing is left to do" in said
    assert json.loads((folder / "kept_files" / "origins.json").read_text()) == {copy.name: str(tokenizer)}


def test_a_run_that_is_begun_anew_keeps_the_file_as_it_is_now_though_the_folder_that_holds_it_is_cleared(
    config, tokenizer, text, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    begin(folder, RunFiles.of(config), None, overwrite=False)
    replace(tokenizer.path, text)
    begin(folder, RunFiles.of(load(folder.config).config), None, overwrite=True)
    assert load(folder.config).config.data.tokenizer.vocab_size == 290
    begin(folder, RunFiles.of(config), None, overwrite=True)
    assert load(folder.config).config.data.tokenizer.vocab_size == 262
    assert len(list(folder.files.glob("*-tok.json"))) == 1

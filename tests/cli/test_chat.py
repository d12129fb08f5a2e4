"""Talking to a model, and the way from a folder of Hugging Face to a chat and out again, by the page's commands."""

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from messages import check, refusal, refused
from tiny import DECODER
from tiny_run import CONFIGS, sets

from jaxtrain.cli import chat
from jaxtrain.cli.chat_template import template_of
from jaxtrain.cli.config_file import load
from jaxtrain.cli.convert import configuration
from jaxtrain.cli.finished import FinishedRun
from jaxtrain.cli.main import main
from jaxtrain.data import HuggingFaceTokenizer
from jaxtrain.data.chat.template import ChatTemplate
from jaxtrain.models.generate import Sampling
from jaxtrain.shapes import ModelState
from jaxtrain.train.folder import RunFolder

ROOT = CONFIGS.parent
SCRIPT = runpy.run_path(str(ROOT / "scripts/add_chat_tokenizer.py"))
END, END_MESSAGE = 256, 258  # as the script has them
exported = runpy.run_path(str(ROOT / "scripts/peers/exported.py"))["exported"]


@pytest.fixture
def run(tmp_path):
    """A run as the script's files make it, without weights."""
    SCRIPT["add_chat_tokenizer"](tmp_path)
    tokenizer = HuggingFaceTokenizer(path=str(tmp_path / "tokenizer.json"))
    config = configuration(replace(DECODER, vocab_size=320, max_length=128), tokenizer, None)
    return FinishedRun(config, RunFolder(tmp_path / "run"), None, 0, ModelState({}))


def _talk(run, lines, monkeypatch, *answers: list[int], **options) -> list[tuple[str, dict]]:
    """Talk to a model that gives these answers. Return the text before each answer, and how it was asked."""
    asked, left = [], list(answers)

    def stream(graph, model, prompt, **how):
        asked.append(("".join(map(_letter, prompt)), how))
        for id in left.pop(0):
            if id in how["stop_tokens"]:
                return
            yield id

    monkeypatch.setattr(chat, "stream", stream)
    tokenizer = run.config.data.tokenizer
    template = ChatTemplate(str(Path(tokenizer.path).with_name("chat_template.jinja")), tokenizer)
    options = {"system": None, "tokens": 40, "sampling": Sampling(), "seed": 0} | options
    chat.talk(run, template, lines, **options)
    return asked


def _letter(id: int) -> str:
    return chr(id) if id < 256 else {END: "<end>", END + 1: "<begin>", END_MESSAGE: "<stop>"}[id]


def test_what_was_said_stands_before_each_answer(run, monkeypatch, capsys):
    asked = _talk(run, ["Hi\n", "\n", " Who?"], monkeypatch, [*b"Ho", END_MESSAGE, 65], [*b"Me", END, 65], system="S")
    begin = "<begin>system\nS<stop>\n<begin>user\nHi<stop>\n<begin>assistant\n"
    assert [text for text, _ in asked] == [begin, begin + "Ho<stop>\n<begin>user\n Who?<stop>\n<begin>assistant\n"]
    assert capsys.readouterr().out == "Ho\nMe\n"
    assert str(asked[0][1]["key"]) != str(asked[1][1]["key"])  # the same words may be answered otherwise


def test_an_answer_takes_at_most_the_room_that_is_left(run, monkeypatch):
    [(text, how)] = _talk(run, ["x" * 60], monkeypatch, [65], tokens=100)
    prompt = len(re.sub("<.*?>", "_", text))
    assert how["tokens"] == 128 - prompt < 100
    with refused(ValueError, 129, 128):
        _talk(run, ["x" * 110], monkeypatch, [65])


def test_letters_are_written_when_they_are_whole(run):
    tokenizer = run.config.data.tokenizer
    assert list(chat.texts("aé€".encode(), tokenizer)) == ["a", "é", "€", ""]
    assert list(chat.texts("é".encode()[:1], tokenizer)) == ["\ufffd"]
    assert list(chat.texts([], tokenizer)) == [""]


def test_lines_are_taken_one_by_one_behind_a_prompt_for_those_who_type(monkeypatch, capsys):
    class Typed(io.StringIO):
        def isatty(self):
            return True

    lines = chat.lines_of(Typed("a\nb\n"))
    assert next(lines) == "a\n" and capsys.readouterr().out == "> "
    assert [*lines] == ["b\n"] and [*chat.lines_of(io.StringIO("c"))] == ["c"]


def test_the_template_that_was_imported_with_a_run_is_taken(run, tmp_path):
    imported = run.folder.path / "huggingface"
    imported.mkdir(parents=True)
    said = [{"role": "user", "content": "Hi"}]
    with refused(ValueError, run.folder.path, "--template"):
        template_of(run.config, run.folder, None)
    (tmp_path / "other.jinja").write_text("{{ messages[0].content }}<|im_end|>")
    assert template_of(run.config, run.folder, str(tmp_path / "other.jinja")).render(said) == "Hi<|im_end|>"
    told = {"bos_token": "<|im_start|>", "chat_template": "{{ bos_token }}"}
    (imported / "tokenizer_config.json").write_text(json.dumps(told))
    assert template_of(run.config, run.folder, None).render(said) == "<|im_start|>"
    (imported / "chat_template.jinja").write_text("{{ bos_token }}!")
    assert template_of(run.config, run.folder, None).render(said) == "<|im_start|>!"


SMALL = {"model.d_model": 32, "model.repeats": 1, "model.max_length": 256}  # as the tiny run has them
SMALL |= {"model.pattern[0].mixer.head_dim": 8, "model.pattern[0].mlp.hidden": 64}
SHORT = {"data.source.rows.glob": "chats.jsonl", "data.validation_fraction": 0.0, "phases[0].steps": 40}
SHORT |= {"phases[0].sequence_length": 128, "optimizer.learning_rate.warmup_steps": 1}
SHORT |= {"hooks": "(@Checkpoint(every_steps=40),)"}
GOLDEN = ROOT / "tests/golden/chat_export.json"
TASKS = ROOT / "tests/golden/harness/tasks"


def test_the_way_of_a_stranger_leads_from_own_text_to_a_chat_and_out_again(tiny_run, tmp_path, monkeypatch, capsys):
    """By the page's commands, on own files: what transformers says of the exported model, the run says, too.

    The quickstart is the tiny run that all tests share. Learned is one answer, so that rounding changes no token.
    Recorded by scripts/peers/make_chat_export_golden.py, on the folder `answering` that this test leaves.
    """
    (tmp_path / "configs").symlink_to(CONFIGS)
    shutil.copytree(tiny_run.folder, tmp_path / "runs/quickstart")
    chat = {"prompt": "Hello!", "completion": "Good day."}
    (tmp_path / "chats.jsonl").write_text(f"{json.dumps(chat)}\n" * 16)
    monkeypatch.chdir(tmp_path)
    lines = re.findall(r"^    (jaxtrain|python) (.*)$", (ROOT / "docs/chat.md").read_text(), re.MULTILINE)
    typed = [[program, *shlex.split(words)] for program, words in lines]
    assert typed[0] == ["jaxtrain", "train", "configs/quickstart.gin"]
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello!\n"))
    more = {"train": sets(SMALL | SHORT), "generate": ["--tokens", "30", "--temperature", "0"], "convert": []}
    printed = {}
    for program, command, *words in typed[1:]:
        if program == "python":
            assert command == "scripts/add_chat_tokenizer.py"
            SCRIPT["add_chat_tokenizer"](*map(Path, words))
            continue
        assert main([command, *words, *more[command]]) == 0, capsys.readouterr().err
        printed[command] = capsys.readouterr().out
    assert "next: jaxtrain generate runs/chat_tiny --chat\n" in printed["train"]
    assert load("runs/chat_tiny").config.data.source.template.startswith("runs/chat_tiny/kept_files/")
    assert words[-1] == "answering"
    theirs = json.loads(GOLDEN.read_text())
    assert printed["generate"] == f"{theirs['text']}\n"
    assert theirs["ids"][-1] == END_MESSAGE and theirs["margin"] > 1
    assert exported(Path("answering")) == theirs["exported"]
    _check_task(capsys)


def _check_task(capsys):
    """Evaluate a local task of lm-eval, where that is installed."""
    if importlib.util.find_spec("lm_eval"):
        run = Path("runs/chat_tiny").absolute()
        with contextlib.chdir(TASKS), warnings.catch_warnings(action="ignore"):  # its data are named relative to it
            assert main(["eval", str(run), "--tasks", "choices", "--task-folder", ".", "--limit", "2"]) == 0
        assert "|choices|" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--system", "--template"])
def test_what_belongs_to_a_chat_is_refused_without_one(option, capsys):
    check(refusal(capsys, "generate", "run", "--prompt", "a", option, "b"), "--system", "--chat")

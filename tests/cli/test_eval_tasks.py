"""`jaxtrain eval --tasks`: lm-eval's tasks have the results that lm-eval has with its own Hugging Face model."""

import functools
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from devices import xla_flags
from messages import check, refusal, refused
from tolerances import SAME_LOGITS

from jaxtrain.cli.main import main
from jaxtrain.train import distributed

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "golden"
HARNESS = GOLDENS / "harness"
TASKS = ("choices", "prose", "answers")
needs_lm_eval = pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # of lm-eval and what it imports


@pytest.mark.parametrize(
    ("words", "facts"),
    [
        (["--limit", "3"], ["--limit", "--tasks"]),
        (["--task-folder", "."], ["--task-folder", "--tasks"]),
        (["--tasks", "a", "--batches", "1"], ["--batches", "--tasks"]),
        (["--tasks", "a", "--shots", "-1"], ["--shots=-1", 0]),
        (["--tasks", "a", "--limit", "0"], ["--limit=0", 1]),
        (["--tasks", "a", "--task-folder", "nowhere"], ["--task-folder nowhere", ".yaml"]),
    ],
)
def test_options_that_make_no_sense_are_refused(capsys, words, facts):
    check(refusal(capsys, "eval", "runs/none", *words), *facts)


def test_tasks_need_lm_eval(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    check(refusal(capsys, "eval", "runs/none", "--tasks", "a"), "lm-eval", "jaxtrain[eval]")


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """Return a run with the weights and the tokenizer that the golden was recorded with."""
    folder = tmp_path_factory.mktemp("harness")
    shutil.copytree(GOLDENS / "huggingface" / "llama", folder / "hf")
    shutil.copy(HARNESS / "tokenizer.json", folder / "hf")
    (folder / "hf" / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    assert main(["convert", str(folder / "hf"), str(folder / "run")]) == 0
    return folder / "run"


@pytest.fixture
def at_tasks(tmp_path, monkeypatch):
    """Work in the folder of the tasks, whose data files are named relative to it, with the data sets' cache apart."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(HARNESS / "tasks")


@needs_lm_eval
def test_results_are_those_of_lm_eval_with_transformers(imported, at_tasks, tmp_path, capsys):
    """Recorded by scripts/peers/harness.py: choices, texts longer than the context, and answers until a stop."""
    words = ["--tasks", ",".join(TASKS), "--task-folder", ".", "--out", str(tmp_path / "results.json")]
    assert main(["eval", str(imported), *words]) == 0
    printed = capsys.readouterr()
    _check_results(tmp_path / "results.json")
    assert "exact_match" in printed.out and "word_perplexity" in printed.out
    assert "exceed the context of 64" in printed.err


@needs_lm_eval
def test_two_processes_have_the_results_of_one(imported, at_tasks, tmp_path):
    launch = [sys.executable, ROOT / "scripts/launch_local.py", "2", sys.executable, "-m", "jaxtrain.cli.main"]
    words = ["--tasks", ",".join(TASKS), "--task-folder", ".", "--out", tmp_path / "results.json"]
    environment = os.environ | {"XLA_FLAGS": xla_flags(devices=2)}
    done = subprocess.run([*launch, "eval", imported, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    _check_results(tmp_path / "results.json")
    assert done.stdout.count("word_perplexity") == 1, "the first process speaks for all"


def _check_results(file: Path) -> None:
    golden = json.loads((HARNESS / "golden.json").read_text())["results"]
    found = json.loads(file.read_text())["results"]
    for task in TASKS:
        for name, value in golden[task].items():
            close = math.isclose(found[task][name], value, rel_tol=SAME_LOGITS.relative)
            assert close, f"{task} {name}: {found[task][name]}, theirs {value}"


def test_processes_that_ask_for_different_things_are_refused(monkeypatch):
    """Otherwise rows of different questions would be one batch."""
    pytest.importorskip("lm_eval")
    from jaxtrain.cli.harness import _check_same

    _check_same([("a", "b")])
    monkeypatch.setattr(distributed, "of_first", lambda number: number ^ 1)
    with refused(ValueError, "different questions", recorded=False):
        _check_same([("a", "b")])


@needs_lm_eval
def test_task_that_is_not_there_or_not_supported_is_refused(imported, at_tasks, tmp_path, capsys, monkeypatch):
    from lm_eval import tasks

    own = functools.partial(tasks.TaskManager, include_defaults=False)  # reading all that come with lm-eval takes long
    monkeypatch.setattr(
        tasks, "TaskManager", lambda include_path, include_defaults=True: own(include_path=include_path)
    )
    text = (HARNESS / "tasks" / "answers.yaml").read_text().replace("task: answers", "task: beams")
    (tmp_path / "beams.yaml").write_text(text.replace("do_sample: false", "num_beams: 4"))
    (tmp_path / "lost.yaml").write_text(text.replace("beams", "lost").replace("answers.jsonl", "lost.jsonl"))

    def said(name):
        """Return the last line; others may show what lm-eval has done."""
        assert main(["eval", str(imported), "--task-folder", str(tmp_path), "--tasks", name]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    check(said("beam"), "--tasks beam", "beams", recorded=False)
    check(said("beams"), "num_beams", "do_sample", recorded=False)
    check(said("lost"), "--tasks lost", "lost.jsonl", "--download", recorded=False)

"""The quickstart from the first line to the last picture, made tiny."""

import math
import re
import shlex
import shutil
import struct

import pytest
from messages import check, refusal
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event
from tiny_run import EVALUATED_STEPS, QUICKSTART, STEPS, content

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_text import leaf_count
from jaxtrain.cli.example_prompt import example_prompt
from jaxtrain.cli.main import main
from jaxtrain.cli.train import prepare_data
from jaxtrain.data import bigram_loss
from jaxtrain.train.evaluation import SEED
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.metrics import read_metrics


def measured(folder, key):
    """Return {step: number} of one metric of a run."""
    return {record["step"]: record[key] for record in read_metrics(RunFolder(folder).metrics) if key in record}


def next_commands(run):
    """Return the command lines that the end of training proposes."""
    lines = [line.removeprefix("next:").strip() for line in run.printed.splitlines()]
    return [shlex.split(line.removeprefix("jaxtrain ")) for line in lines if line.startswith("jaxtrain ")]


def events(folder):
    """Return {metric: {step: number}} of a run's TensorBoard files, read record by record."""
    found = {}
    for file in (folder / "tensorboard").iterdir():
        content = file.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])  # then 4 bytes of checksum, the event, 4 of checksum
            event, content = Event.FromString(content[12 : 12 + length]), content[16 + length :]
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    return found


def test_the_quickstart_has_few_keys():
    """Those of doors that are shut, such as `model.sharing`, are among them."""
    assert leaf_count(load(QUICKSTART).config) <= 64


def test_training_says_how_good_it_is_where_it_is_and_what_is_next(tiny_run):
    printed = tiny_run.printed
    assert f"{load(tiny_run.folder).config.model.parameter_count:,} parameters, {STEPS} steps" in printed
    loss, bigram = measured(tiny_run.folder, "validation_loss")[STEPS], measured(tiny_run.folder, "bigram_loss")[0]
    weight = measured(tiny_run.folder, "validation_weight")[STEPS]
    text = f"validation loss {loss:.4f} nats a token, perplexity {math.exp(loss):.2f}"
    assert f"\n{text}, over tokens of total weight {weight:,.0f}\n" in printed
    assert f"step {STEPS}: {text}, " in printed
    assert [line for line in printed.splitlines() if line.startswith(f"step 1 of {STEPS}  loss ")]
    assert f"a bigram model counted on the same training split: {bigram:.4f}" in printed
    assert f"the run is in {tiny_run.folder}" in printed
    assert [command[:2] for command in next_commands(tiny_run)] == [
        [name, str(tiny_run.folder)] for name in ("generate", "eval", "plot")
    ]


def test_training_says_how_much_text_there_is_and_how_often_it_is_read(tiny_run):
    lines = tiny_run.printed.splitlines()
    assert [line for line in lines if line.startswith("20 documents, ")]
    assert [line for line in lines if line.startswith(f"the run's {STEPS} steps read ") and " epochs; " in line]


def test_the_commands_it_proposes_work(tiny_run, tmp_path, capsys):
    generate, evaluate, plot = next_commands(tiny_run)
    before = content(tiny_run.folder)
    assert main([*generate, "--tokens", "20"]) == 0
    assert capsys.readouterr().out.startswith(generate[generate.index("--prompt") + 1])
    assert main([*evaluate, "--batches", "2"]) == 0
    loss = measured(tiny_run.folder, "validation_loss")[STEPS]
    assert f"step {STEPS}: validation loss {loss:.4f} nats a token" in capsys.readouterr().out
    assert main([*plot, "--out", str(tmp_path / "plot.png")]) == 0
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert content(tiny_run.folder) == before


def test_the_proposed_prompt_is_in_the_text_that_the_run_is_evaluated_on(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXTRAIN_CACHE", str(tmp_path / "cache"))
    for number in range(40):
        (tmp_path / f"{number}.md").write_text(f"# Day {number} was fine. " + f"It was day {number}. " * 20)
    source = f"data.source=@TextFiles(glob='{tmp_path}/*.md')"
    assert example_prompt(load(QUICKSTART, [source, "hooks[1].prompt='It was '"]).config) == "It was "
    assert re.fullmatch(r"Day \d+ was", example_prompt(load(QUICKSTART, [source]).config))


def test_the_bigram_model_is_measured_on_what_the_last_phase_is_evaluated_on(text):
    phases = "(@Phase(steps=1,batch_size=8,sequence_length=32), @Phase(steps=1,batch_size=2,sequence_length=16))"
    changes = [f"data.source=@TextFiles(glob='{text}/*.txt')", f"phases={phases}", "hooks[0].batches=1"]
    changes += ["optimizer.learning_rate.warmup_steps=1"]
    config = load(QUICKSTART, changes).config
    last = bigram_loss(config.data, batch_size=2, sequence_length=16, seed=SEED, num_batches=1)
    assert prepare_data(config, Console(quiet=True)) == last


def test_a_step_and_the_best_are_used_by_name(tiny_run, tmp_path, capsys):
    losses = measured(tiny_run.folder, "validation_loss")
    best = min(losses, key=losses.get)
    for words, step in ((["--step", "2"], 2), (["--best"], best)):
        assert main(["eval", str(tiny_run.folder), "--batches", "2", *words]) == 0
        assert f"step {step}: validation loss {losses[step]:.4f} nats a token" in capsys.readouterr().out
    assert main(["convert", str(tiny_run.folder), str(tmp_path / "exported"), "--step", "2"]) == 0
    assert f"of step 2 of {tiny_run.folder}" in capsys.readouterr().out
    check(refusal(capsys, "eval", tiny_run.folder, "--step", 7), "step 7", "2, 3")
    check(refusal(capsys, "convert", tmp_path / "exported", tmp_path / "again", "--step", 2), "--step", "export")


def test_metrics_have_every_step(tiny_run):
    steps = list(range(1, STEPS + 1))
    for key in ("loss", "nll", "learning_rate", "gradient_norm", "weight"):
        assert list(measured(tiny_run.folder, key)) == steps, key
    assert all(2 < loss < 10 for loss in measured(tiny_run.folder, "loss").values())
    assert list(measured(tiny_run.folder, "validation_loss")) == list(EVALUATED_STEPS)
    assert measured(tiny_run.folder, "bigram_loss").keys() == {0}


def test_metrics_have_the_seconds_since_the_start(tiny_run):
    seconds = list(measured(tiny_run.folder, "seconds").values())
    assert len(seconds) == STEPS and seconds[0] > 0 and seconds == sorted(seconds)


def test_a_finished_run_says_how_to_train_longer(tiny_run, tmp_path, capsys):
    folder = shutil.copytree(tiny_run.folder, tmp_path / "run")
    assert main([*tiny_run.command, "--run", str(folder)]) == 0
    printed = capsys.readouterr().out
    assert f"the run has made its {STEPS} steps: nothing is left to do" in printed
    command = f"jaxtrain train {folder} --allow-config-change --set phases."
    assert f": {command}0.steps={2 * STEPS}" in printed and f": {command}1='@Phase(steps={STEPS}, " in printed
    assert f"step {STEPS} of" not in printed and "trained to" not in printed


def test_tensorboard_has_what_metrics_have(tiny_run):
    found = events(tiny_run.folder)
    for key in ("loss", "learning_rate", "validation_loss"):
        assert found[key] == pytest.approx(measured(tiny_run.folder, key)), key


def test_samples_are_kept(tiny_run):
    assert f"step {STEPS}" in RunFolder(tiny_run.folder).samples.read_text(encoding="utf-8")


def test_the_operative_configuration_alone_reproduces_the_run(tiny_run, tmp_path, monkeypatch):
    config = tmp_path / "elsewhere" / "config.gin"
    config.parent.mkdir()
    config.write_bytes(RunFolder(tiny_run.folder).config.read_bytes())
    monkeypatch.chdir(config.parent)
    again = tmp_path / "again"
    assert main(["train", str(config), "--run", str(again)]) == 0
    for key in ("loss", "gradient_norm", "validation_loss", "bigram_loss"):
        assert measured(again, key) == measured(tiny_run.folder, key), key
    assert load(again).config == load(tiny_run.folder).config

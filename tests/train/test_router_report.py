"""The hook `RouterReport`: counts of held-out text, the same after a crash, and the picture of them."""

import dataclasses
import io
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from matplotlib.image import imread
from messages import check, refusal, refused
from rich.console import Console
from tiny import DECODER, random_model, training_batch, variant
from tolerances import EXACT, assert_close

from jaxtrain.cli.main import main
from jaxtrain.cli.plot_experts import fullest_of_groups, loads, read_routed, together
from jaxtrain.cli.train_report import conclude
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, Mixture, Weighted
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.stacks import Stack
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.routers import ByTask
from jaxtrain.nn.moe.selections import ExpertChoice
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Checkpoint, RouterReport
from jaxtrain.train.loop import Result
from jaxtrain.train.routed import by_layer, counting_step, read, written

EXPERTS = 4
MIXTURE = MixtureConfig(experts=EXPERTS, top_k=2, expert=GatedMLPConfig(hidden=8))
CHOICE = dataclasses.replace(MIXTURE, selection=ExpertChoice())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_corpus(tmp_path_factory.mktemp("routed") / "corpus")


def _two_tasks(*data: DataConfig) -> DataConfig:
    sources = tuple(Weighted(source=own.source, weight=1.0, task=n) for n, own in enumerate(data))
    return DataConfig(source=Mixture(sources=sources), validation_fraction=0.3)


def _config(data, **changes):
    block = dataclasses.replace(variant().pattern[0], mlp=MIXTURE)
    hooks = (RouterReport(every_steps=2, batches=2), Checkpoint(every_steps=2))
    return runs.tiny_run(data, model=variant(vocab_size=320, pattern=(block,)), steps=5, hooks=hooks, **changes)


@pytest.fixture(scope="module")
def result(data, tmp_path_factory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("routed") / "whole"
    return folder, _config(data, mesh=MeshConfig(expert=2, fsdp=1)).train(folder, devices=jax.devices()[:2])


@pytest.fixture(scope="module")
def whole(result) -> Path:
    return result[0]


def _said(result: tuple[Path, Result], config: TrainConfig) -> str:
    """Return what the command says at the end of a run."""
    text = io.StringIO()
    conclude(result[1], config, RunFolder(result[0]), None, 1.0, Console(file=text, width=200), ())
    return text.getvalue()


def test_the_end_of_a_run_names_what_can_be_done_with_it(data, result, tmp_path):
    """Counts are drawn where there are some. Tasks are cut out of a model, and one by later tokens writes nothing."""
    config, folder = _config(data), result[0]
    assert f"plot {folder} --experts\n" in (text := _said(result, config)) and f"generate {folder} " in text
    assert "--experts" not in _said((tmp_path, result[1]), config)
    for mlp, cut in ((dataclasses.replace(MIXTURE, router=ByTask(tasks=2)), True), (CHOICE, False)):
        block = dataclasses.replace(config.model.pattern[0], mlp=mlp)
        model = dataclasses.replace(config.model, first=(block,))
        text = _said(result, dataclasses.replace(config, model=model, data=_two_tasks(data, data)))
        assert "generate" not in text and f"next: jaxtrain eval {folder}\n" in text
        assert (f"convert {folder} {folder}_task0 --task 0\n" in text) == cut


def test_a_run_has_the_counts_of_every_layer(whole):
    files = RunFolder(whole).routing_files()
    assert list(files) == [2, 4, 5]
    (record,) = (record for record in runs.steps_of(whole) if record["step"] == 4)
    counts = read(files[4])
    assert list(counts) == ["0", "1"]
    for layer, own in counts.items():
        assert own["load"].sum() == 2 * own["tokens"] == np.diag(own["together"]).sum() > 0
        assert record[f"validation_fullest_expert_{layer}"] == own["load"].max() / own["load"].mean()
        assert 0 < record[f"validation_router_entropy_{layer}"] <= np.log(EXPERTS)
        assert record[f"validation_dropped_{layer}"] == 0


def test_a_resumed_run_on_another_mesh_counts_the_same(data, whole, tmp_path):
    """It crashes after step 3, and somebody has left counts of a step 4 there; step 2 is saved."""
    config, folder = _config(data, mesh=MeshConfig()), RunFolder(tmp_path / "resumed")
    alone = {"devices": jax.devices()[:1], "allow_config_change": True}
    with pytest.raises(runs.Crash):
        dataclasses.replace(config, hooks=(*config.hooks, runs.CrashAfter(step=3))).train(folder.path, **alone)
    folder.add_routing(4, b"of another run")
    config.train(folder.path, **alone)
    desired = RunFolder(whole).routing_files()
    assert list(folder.routing_files()) == list(desired)
    for step, path in folder.routing_files().items():
        for layer, own in read(path).items():
            other = read(desired[step])[layer]
            assert_close(own["tokens"], other["tokens"], EXACT)
            assert np.abs(own["load"] - other["load"]).max() <= 1, "a tie may fall otherwise by rounding"


def test_the_picture_has_the_loads_and_the_pairs(whole, capsys):
    assert main(["plot", str(whole), "--experts"]) == 0
    assert capsys.readouterr().out == f"wrote {whole / 'experts.png'}\n"
    height, width, _ = imread(whole / "experts.png").shape
    assert width >= 1200 and height >= 1200
    run = read_routed(whole)
    own = run.counts[5]["1"]
    assert_close(loads(run.counts, "1")[:, 2], own["load"] / own["load"].mean(), EXACT)
    shares = together(own)
    assert shares[1, 2] == own["together"][1, 2] / own["load"][1] and np.isnan(np.diag(shares)).all()
    assert list(run.numbers["validation_router_entropy_"]["0"][0]) == [2, 4, 5]


def test_of_many_experts_the_fullest_of_each_group_are_drawn():
    """Two layers of 300 experts and one of ten are drawn by twos."""
    own = np.random.default_rng(0).random((300, 3))
    drawn, group = fullest_of_groups([own, own[:10], own])
    assert group == 2 and [len(rows) for rows in drawn] == [150, 5, 150]
    assert_close(drawn[0], own.reshape(150, 2, 3).max(axis=1), EXACT)
    assert_close(fullest_of_groups([own])[0][0], own, EXACT)


def test_numbers_of_layers_that_an_earlier_phase_had_are_not_drawn(whole, tmp_path):
    folder = RunFolder(tmp_path)
    for step, path in RunFolder(whole).routing_files().items():
        folder.add_routing(step, path.read_bytes())
    lines = (whole / "metrics.jsonl").read_text()
    old = '{"step": 1, "loss": 2.0, "validation_router_entropy_2": 0.5}\n'
    (tmp_path / "metrics.jsonl").write_text(old + lines)
    assert list(read_routed(tmp_path).numbers["validation_router_entropy_"]) == ["0", "1"]


def test_a_run_without_counts_and_several_runs_are_refused(whole, tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    check(refusal(capsys, "plot", tmp_path, "--experts"), tmp_path, "RouterReport")
    check(refusal(capsys, "plot", whole, tmp_path, "--experts"), "--experts", 2)


def test_a_damaged_file_of_counts_is_named(tmp_path):
    path = tmp_path / "7.npz"
    path.write_bytes(b"nothing")
    with refused(ValueError, str(path)):
        read(path)
    path.write_bytes(written({"0": {"load": np.ones(2)}}))
    with refused(ValueError, str(path)):
        read(path)


def test_experts_by_task_are_counted_by_the_tasks_of_the_rows_on_stages_as_well(data):
    """Rows are of task 0 and 1 in turn; a task has the two experts with the greatest logits of its row."""
    block = dataclasses.replace(variant().pattern[0], mlp=dataclasses.replace(MIXTURE, router=ByTask(tasks=2)))
    config, batch = variant(pattern=(block,)), training_batch(8, runs.LENGTH, vocab_size=64)
    RouterReport(every_steps=1).check("hooks[0]", config, data.tokenizer)
    model = random_model(config)
    mesh = MeshConfig(stage=2, fsdp=1).build(jax.devices()[:2])
    with jax.set_mesh(mesh):
        found = by_layer([counting_step(abstract_model(config).graph, mesh)(model, batch)], config.stacks)
    real = [(batch.segment_ids[batch.tasks == task] > 0).sum() for task in (0, 1)]
    assert min(real) > 0 and list(found) == ["0", "1"]
    for layer, own in found.items():
        desired = np.zeros(EXPERTS)
        for task, logits in enumerate(model.params["stacks"]["blocks"]["blocks"][0]["mlp"]["of_tasks"][int(layer), :2]):
            desired[np.argsort(-logits)[:2]] += real[task]
        assert_close(own["load"], desired, EXACT)


def test_layers_are_numbered_through_the_pattern():
    def counts(repeats: int) -> dict:
        return {name: np.ones((repeats, 2)) for name in ("load", "dropped", "tokens", "entropy", "together", "moved")}

    found = by_layer(
        [{"blocks": {"0": {"mlp": counts(6)}, "1": {"mixer": counts(6)}}}] * 2,
        {"blocks": Stack(DECODER.pattern * 2, 6)},
    )
    assert list(found) == [
        "0",
        "1.mixer",
        "2",
        "3.mixer",
        "4",
        "5.mixer",
        "6",
        "7.mixer",
        "8",
        "9.mixer",
        "10",
        "11.mixer",
    ]
    assert_close(found["10"]["load"], np.full(2, 2.0), EXACT)


def test_a_model_without_experts_has_no_such_report(data):
    with refused(ValueError, "hooks[0]", "RouterReport"):
        runs.tiny_run(data, hooks=(RouterReport(every_steps=2),))

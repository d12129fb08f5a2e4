"""The hook `RouterReport`: counts of held-out text, the same after a crash, and the picture of them."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
import runs
from matplotlib.image import imread
from messages import check, refusal, refused
from tiny import DECODER, variant
from tolerances import EXACT, assert_close

from jaxtrain.cli.main import main
from jaxtrain.cli.plot_experts import loads, read_routed, together
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.stacks import Stack
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.hooks import Checkpoint, RouterReport
from jaxtrain.train.routed import by_layer, read, written

EXPERTS = 4
MIXTURE = MixtureConfig(experts=EXPERTS, top_k=2, expert=GatedMLPConfig(hidden=8))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return runs.write_corpus(tmp_path_factory.mktemp("routed") / "corpus")


def _config(data, **changes):
    block = dataclasses.replace(variant().pattern[0], mlp=MIXTURE)
    hooks = (RouterReport(every_steps=2, batches=2), Checkpoint(every_steps=2))
    return runs.tiny_run(data, model=variant(vocab_size=320, pattern=(block,)), steps=5, hooks=hooks, **changes)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("routed") / "whole"
    _config(data, mesh=MeshConfig(expert=2, fsdp=1)).train(folder, devices=jax.devices()[:2])
    return folder


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

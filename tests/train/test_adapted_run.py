"""A run of adapters around the weights of another run: what is trained, what is stored, and on any mesh."""

import dataclasses

import jax
import numpy as np
import pytest
import runs
from messages import refused
from tiny import bytes_of, size_of, variant
from tolerances import EXACT, SAME_LOSS_ON_ANY_MESH, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.lora import LoRA
from jaxtrain.nn.linear.nf4 import NF4
from jaxtrain.nn.trainable import Adapters, Except
from jaxtrain.pipeline.schedules.zb_h1 import ZBH1
from jaxtrain.train.gradients.pipelined import Pipelined
from jaxtrain.train.initial import FromRun

BASE = variant(vocab_size=320)


def _adapted(linear: LinearConfig) -> DecoderConfig:
    block = BASE.pattern[0]
    mixer, mlp = (dataclasses.replace(layer, linear=linear) for layer in (block.mixer, block.mlp))
    return variant(vocab_size=320, pattern=(dataclasses.replace(block, mixer=mixer, mlp=mlp),), trainable=Adapters())


QLORA = _adapted(LoRA(rank=4, base=NF4(block=16)))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A trained run and its data."""
    folder = tmp_path_factory.mktemp("base")
    data = runs.write_corpus(folder / "corpus")
    runs.train(runs.tiny_run(data, steps=4), folder / "run")
    return data, folder / "run"


def _run(base, **changes):
    data, folder = base
    return runs.tiny_run(data, **({"model": QLORA, "initial": FromRun(path=str(folder)), "steps": 4} | changes))


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    """The folder of a run of adapters, and its last state."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return folder, runs.train(_run(base), folder).state


def test_the_first_loss_is_that_of_the_other_run_and_the_bits_of_its_weights_stay(base, tmp_path):
    adapted = _run(base, model=_adapted(LoRA(rank=4)))
    state = runs.train(adapted, tmp_path / "run").state
    runs.train(_run(base, model=BASE), tmp_path / "whole")
    assert runs.losses(tmp_path / "run")[0] == pytest.approx(runs.losses(tmp_path / "whole")[0], abs=1e-6)
    data, folder = base
    before = runs.train(runs.tiny_run(data, steps=4), folder).state.params
    kernel = state.model.frozen["stacks"]["blocks"]["blocks"][0]["mlp"]["up"]["base"]["kernel"]
    assert_close(kernel, np.asarray(before["stacks"]["blocks"]["blocks"][0]["mlp"]["up"]["kernel"]), EXACT)
    assert runs.losses(tmp_path / "run")[-1] != runs.losses(tmp_path / "whole")[-1]


def test_the_optimizer_has_eight_bytes_for_each_trained_parameter_and_nothing_else(adapted):
    _, state = adapted
    counters = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim == 0]
    assert bytes_of(state.opt_state) - bytes_of(counters) == 8 * size_of(state.params)
    assert size_of(state.params) == size_of(abstract_model(QLORA).shapes.params) < size_of(state.model.frozen) / 4


def test_a_pipeline_has_the_losses_of_one_device(adapted, base, tmp_path):
    """Stages and fsdp; tensor too in test_same_loss.py."""
    gradients = Pipelined(microbatches=2, schedule=ZBH1())
    runs.train(_run(base, mesh=MeshConfig(stage=2, fsdp=2, data=2), gradients=gradients), tmp_path / "mesh")
    found, desired = (np.array(runs.losses(folder)) for folder in (tmp_path / "mesh", adapted[0]))
    assert_close(found, desired, SAME_LOSS_ON_ANY_MESH)


def test_it_goes_on_exactly_and_writes_its_frozen_weights_once(base, tmp_path):
    whole = runs.train(_run(base, steps=6, save_every=2), tmp_path / "whole")
    with pytest.raises(runs.Crash):
        crashing = _run(base, steps=6, save_every=2)
        crashing = dataclasses.replace(crashing, hooks=(*crashing.hooks, runs.CrashAfter(step=4)))
        runs.train(crashing, tmp_path / "crashed")
    resumed = runs.train(_run(base, steps=6, save_every=2), tmp_path / "crashed")
    assert_close(runs.host_copy(resumed.state), runs.host_copy(whole.state), EXACT)
    assert len(list((tmp_path / "whole" / "checkpoints" / "frozen").iterdir())) == 1


def test_a_run_may_begin_with_the_merged_weights_of_an_adapted_one(adapted, base, tmp_path):
    initial = FromRun(path=str(adapted[0]), model=QLORA)
    merged, again = _run(base, model=BASE, initial=initial), _run(base, initial=initial)
    for name, config in (("merged", merged), ("again", again)):
        runs.train(config, tmp_path / name)
    first, same = (runs.losses(tmp_path / name)[0] for name in ("merged", "again"))
    assert first == pytest.approx(same, abs=1e-5)


def test_a_run_of_another_architecture_is_refused(base, tmp_path):
    with refused(ValueError, "embedding.table", "(320, 32)", "(320, 16)"):
        narrow = dataclasses.replace(BASE, d_model=16, trainable=Except(names=("embedding.*",)))
        runs.train(_run(base, initial=FromRun(path=str(base[1]), model=BASE), model=narrow), tmp_path / "run")

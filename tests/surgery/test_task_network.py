"""The network of a task has its own experts alone, and says of the task what the whole model says, bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest
from messages import check, refusal, refused
from tiny import random_model, size_of, training_batch, variant
from tolerances import EXACT, assert_close

from jaxtrain.cli.config_file import load
from jaxtrain.cli.main import main
from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, Mixture, TextFiles, Weighted, open_rows
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.sharing import SharedLayers
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.nn.moe.routers import ByTask, Equal, Softmax
from jaxtrain.nn.moe.selections import BySkills
from jaxtrain.nn.param import merge
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Constant
from jaxtrain.surgery.task_network import of_task
from jaxtrain.train.phases import Phase

TASKS = MixtureConfig(
    experts=4,
    top_k=2,
    expert=GatedMLPConfig(hidden=24),
    router=ByTask(tasks=3),
    shared=GatedMLPConfig(hidden=8),
    balances=(RouterBias(rate=0.1),),
    scale=1.5,
)
SKILLS = dataclasses.replace(
    TASKS, router=Equal(), selection=BySkills(skills=((0, 3), (1,), (1, 2))), balances=(), shared=None
)
BLOCK = variant().pattern[0]
BATCH = training_batch(3, 12, vocab_size=64)


def _decoder(*layers, **changes):
    return variant(pattern=tuple(dataclasses.replace(BLOCK, mlp=layer) for layer in layers), **changes)


def _logits(config, model, batch):
    graph = abstract_model(config).graph
    return jax.jit(lambda model: merge(graph, model)(batch))(model)


@pytest.mark.parametrize("task", [0, 1])
def test_its_logits_are_those_of_the_whole_model_and_its_parameters_the_shared_ones_and_its_experts(task):
    """Task 0 has two skills in the second block of the pattern, and task 1 has one. Another block comes before it."""
    config = _decoder(TASKS, SKILLS, first=(dataclasses.replace(BLOCK, mlp=TASKS),))
    model = random_model(config)
    batch = BATCH._replace(tasks=np.full((3, 12), task, np.int32))
    small, state = of_task(config, model, task)
    assert small.task_count is None and small.first[0].mlp.experts == 2 and small.pattern[1].mlp.experts == 2 - task
    assert jax.tree.map(np.shape, state) == jax.tree.map(lambda leaf: leaf.shape, abstract_model(small).shapes)
    assert_close(_logits(small, state, BATCH._replace(tasks=None)), _logits(config, model, batch), EXACT)
    of_expert, chosen = 3 * 32 * 24, 3 * 2 + 2 * small.pattern[1].mlp.experts
    routing = 3 * (3 * 4)  # the rows of the tasks, of the first block and of both repeats
    assert size_of(model.params) - size_of(state.params) == (5 * 4 - chosen) * of_expert + routing - chosen


def test_tasks_of_blocks_before_the_pattern_are_known():
    first = dataclasses.replace(BLOCK, mlp=dataclasses.replace(TASKS, router=ByTask(tasks=2)))
    assert variant(first=(BLOCK, first)).task_count == _decoder(TASKS, first=(first,)).task_count == 2


def test_blocks_before_the_pattern_have_the_experts_of_the_task_as_well():
    """Two of them, which differ in nothing but in how experts are chosen, so they are repeats of one afterwards."""
    others = dataclasses.replace(TASKS, router=Equal(), selection=BySkills(skills=((0, 3), (1, 2))), balances=())
    first = tuple(dataclasses.replace(BLOCK, mlp=layer) for layer in (TASKS, others))
    config = variant(first=first)
    assert config.task_count == 2 and variant(first=first[:1]).task_count == 3
    model = random_model(config)
    small, state = of_task(config, model, 1)
    assert small.task_count is None and small.stacks["first"].repeats == 2
    assert jax.tree.map(np.shape, state) == jax.tree.map(lambda leaf: leaf.shape, abstract_model(small).shapes)
    batch = BATCH._replace(tasks=np.full((3, 12), 1, np.int32))
    assert_close(_logits(small, state, BATCH._replace(tasks=None)), _logits(config, model, batch), EXACT)


@pytest.mark.parametrize(
    ("config", "task", "facts"),
    [
        (variant(), 0, ("task=0",)),
        (_decoder(TASKS), 3, ("task=3", 2)),
        (_decoder(dataclasses.replace(SKILLS, router=Softmax())), 0, ("model.pattern[0].mlp", "@ByTask()")),
        (_decoder(TASKS, sharing=SharedLayers()), 0, ("task=0", "model.sharing=SharedLayers()")),
    ],
    ids=["none", "number", "by tokens", "shared"],
)
def test_a_model_without_such_a_task_is_refused(config, task, facts):
    with refused(ValueError, *facts):
        of_task(config, random_model(config), task)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TrainConfig:
    """A model of two tasks, which are two kinds of text."""
    folder = tmp_path_factory.mktemp("text")
    for name in ("letters", "digits"):
        (folder / name).mkdir()
        for number in range(12):
            text = f"{'abcdef' if name == 'letters' else '123456'} {number} " * 12
            (folder / name / f"{number}.txt").write_text(text)
    parts = [TextFiles(glob=f"{folder}/{name}/*.txt") for name in ("letters", "digits")]
    letters, digits = (Weighted(source=part, weight=1.0, task=1 - n) for n, part in enumerate(parts))
    return TrainConfig(
        model=_decoder(dataclasses.replace(TASKS, router=ByTask(tasks=2)), vocab_size=257, repeats=1),
        data=DataConfig(source=Mixture(sources=(letters, digits))),
        optimizer=AdamW(learning_rate=Constant(peak=1e-2)),
        phases=(Phase(steps=2, batch_size=8, sequence_length=32),),
        writers=(),
    )


def test_the_rows_of_a_source_are_of_its_task(config):
    rows = open_rows(config.data, split="train", sequence_length=32, seed=0)
    for index in range(8):
        row = rows[index]
        letters = any(chr(token) in "abcdef" for token in row.tokens)
        assert (row.tasks == int(letters)).all() and row.tasks.shape == (32,)


def test_a_run_is_made_of_a_task_and_generates(config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config.train("run")
    assert main(["convert", "run", "digits", "--task", "0"]) == 0
    small = load("digits").config.model
    assert f"{small.parameter_count:,} parameters" in capsys.readouterr().out
    assert main(["generate", "digits", "--prompt", "12", "--tokens", "3", "--temperature", "0"]) == 0
    capsys.readouterr()
    check(refusal(capsys, "generate", "run", "--prompt", "12", "--tokens", "3"), "ByTask(tasks=2)", "--task")
    check(refusal(capsys, "convert", "run", "other", "--task", "2"), "task=2", 1)
    check(refusal(capsys, "convert", "run", "other", "--task", "0", "--dtype", "float16"), "--dtype", "--task")
    check(refusal(capsys, "convert", "text", "other", "--task", "0"), "text")


@pytest.mark.parametrize("task", [None, 2])
def test_text_without_a_task_of_the_model_is_refused(task, config):
    first, second = config.data.source.sources
    source = Mixture(sources=(first, dataclasses.replace(second, task=task)))
    with refused(ValueError, "data.source", "source 1", f"task={task}", "Weighted(source=..., task=0)"):
        dataclasses.replace(config, data=dataclasses.replace(config.data, source=source))


def test_a_task_below_zero_is_refused(config):
    with refused(ValueError, "task=-1"):
        dataclasses.replace(config.data.source.sources[0], task=-1)

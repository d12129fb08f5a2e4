"""Mixture-of-Students: a student of fewer layers whose teacher stops part-way, by a phase with its own objective."""

import dataclasses

import jax
import pytest
import runs
from messages import refused
from tiny import RandomTeacher, variant
from tolerances import EXACT, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.objectives.distill import Distill
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.train.phases import Phase

MIXTURE = MixtureConfig(experts=4, top_k=1, expert=GatedMLPConfig(hidden=16))
BLOCK = dataclasses.replace(variant().pattern[0], mlp=MIXTURE)
TEACHER = RandomTeacher(model=variant(vocab_size=320, pattern=(BLOCK,), repeats=3))
STUDENT = variant(vocab_size=320, pattern=(BLOCK,), repeats=1)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """A run of two taught steps and two alone, and its configuration."""
    folder = tmp_path_factory.mktemp("staged")
    taught = Phase(steps=2, batch_size=8, sequence_length=runs.LENGTH)
    config = runs.tiny_run(
        runs.write_corpus(folder / "corpus"),
        save_every=1,
        model=dataclasses.replace(STUDENT, teacher=TEACHER),
        objective=Distill(),
        phases=(taught, dataclasses.replace(taught, objective=NextToken())),
    )
    state = config.trainer(folder / "run", devices=jax.devices()[:1]).train().state
    return config, folder / "run", runs.host_copy(state)


def test_a_teacher_teaches_in_its_phase_alone(staged):
    _, folder, _ = staged
    steps = runs.steps_of(folder)
    assert ["soft" in step for step in steps] == [True, True, False, False]
    assert [step["loss"] == step["nll"] for step in steps] == [False, False, True, True]
    assert steps[2]["nll"] < steps[0]["nll"]


def test_a_phase_without_it_does_not_run_it(staged):
    config, *_ = staged
    mesh = MeshConfig().build(jax.devices()[:1])

    def products(config, number):
        program = config.recipe.program(config.recipe.spans[number], mesh)
        return str(program.trace().jaxpr).count("dot_general")

    alone = dataclasses.replace(config, model=STUDENT, objective=NextToken())
    assert products(config, 1) == products(alone, 1) < products(config, 0)


def test_it_goes_on_exactly_behind_the_border(staged, tmp_path):
    config, _, whole = staged
    crashing = dataclasses.replace(config, hooks=(*config.hooks, runs.CrashAfter(step=2)))
    with pytest.raises(runs.Crash):
        crashing.trainer(tmp_path / "run", devices=jax.devices()[:1]).train()
    resumed = config.trainer(tmp_path / "run", devices=jax.devices()[:1]).train()
    assert_close(runs.host_copy(resumed.state), whole, EXACT)


def test_a_phase_that_asks_for_a_teacher_needs_one(staged):
    config, *_ = staged
    phase = dataclasses.replace(config.phases[0], objective=Distill())
    with refused(ValueError, "phases[0].objective=Distill"):
        dataclasses.replace(config, model=STUDENT, objective=NextToken(), phases=(phase,))

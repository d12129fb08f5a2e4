"""A teacher of several models: what they predict together, over a mesh, and in how much memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxpr_dots import largest
from messages import refused
from tiny import RandomTeacher, packed_batch, random_model, random_params, variant
from tolerances import SAME_GRADIENT, SAME_LOGITS, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.trees import taught
from jaxtrain.nn.heads import CappedHead
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.param import merge
from jaxtrain.nn.trainable import OnlyNorms
from jaxtrain.objectives.distill import Distill
from jaxtrain.shapes import ModelState
from jaxtrain.train.gradients import Loss
from jaxtrain.train.teachers import Ensemble

VOCAB = 256  # so that logits are the largest arrays
HEADS = AttentionConfig(heads=8, kv_heads=8, head_dim=4)  # as many as the devices of a test
PATTERN = (dataclasses.replace(variant().pattern[0], mixer=HEADS),)
MEMBER = variant(vocab_size=VOCAB, d_model=16, repeats=1, pattern=PATTERN, head=CappedHead(cap=5.0, linear=Dense()))
SEEDS = (7, 8, 9)
TEACHER = Ensemble(teachers=tuple(RandomTeacher(model=MEMBER, seed=seed) for seed in SEEDS))
ALONE = variant(vocab_size=VOCAB, repeats=1, pattern=PATTERN)
STUDENT = dataclasses.replace(ALONE, teacher=TEACHER)
BATCH = packed_batch([[20], [9, 11], [15], [20]] * 2, 20, vocab_size=VOCAB)
OBJECTIVE = Distill(temperature=3.0, hard=0.0)


@pytest.fixture(scope="module")
def logits():
    """The logits of each member, as a model of its own."""
    graph = abstract_model(MEMBER).graph
    each = jax.jit(lambda state: merge(graph, state)(BATCH))
    return np.stack([each(random_model(MEMBER, seed)) for seed in SEEDS])


@pytest.fixture(scope="module")
def model():
    """The arrays of the student and of its teacher, on the host."""
    arrays = TEACHER.arrays(MeshConfig(fsdp=1).build(jax.devices()[:1]))
    return taught(ModelState(random_params(ALONE)), jax.tree.map(np.asarray, arrays))


def _loss(model: ModelState, objective: Distill = OBJECTIVE) -> Loss:
    return Loss.of_batch(abstract_model(STUDENT).graph, objective, model, BATCH)


def test_they_teach_the_geometric_mean_of_their_probabilities(logits, model):
    """With the vocabulary split over eight devices, value and gradient are those of the formula on one."""
    powers = np.prod(jax.nn.softmax(logits / 3.0, axis=-1) ** np.float32(1 / len(SEEDS)), axis=0)
    geometric = powers / np.sum(powers, axis=-1, keepdims=True)
    graph = abstract_model(ALONE).graph

    def formula(params):
        student = jax.nn.log_softmax(merge(graph, ModelState(params))(BATCH) / 3.0)
        divergence = 9.0 * jnp.sum(geometric * (jnp.log(geometric) - student), axis=-1)
        return jnp.sum(divergence * BATCH.weights) / jnp.sum(BATCH.weights)

    def taught(model):
        loss = _loss(model)
        batch = OBJECTIVE.prepared(loss.model(model.params), BATCH)
        return jax.value_and_grad(lambda params: loss(params, batch, None)[0])(model.params)

    with jax.set_mesh(MeshConfig(fsdp=1, tensor=8).build()):
        value, gradient = jax.jit(taught)(model)
    desired, desired_gradient = jax.jit(jax.value_and_grad(formula))(model.params)
    assert_close(value, np.asarray(desired), SAME_SUMS)
    assert_close(gradient, desired_gradient, SAME_GRADIENT)


def test_the_likeliest_words_are_those_of_the_mean_on_a_mesh(logits, model):
    objective = dataclasses.replace(OBJECTIVE, top_k=4)
    with jax.set_mesh(MeshConfig(data=2, fsdp=2, tensor=2).build()):
        hints = jax.jit(lambda model: objective.prepared(_loss(model).model(model.params), BATCH).hints)(model)
    mean = logits.mean(axis=0)
    words = np.argsort(-mean, axis=-1)[..., :4]
    np.testing.assert_array_equal(hints["words"], words)
    assert_close(hints["logits"], np.take_along_axis(mean, words, axis=-1), SAME_LOGITS)


def test_their_loss_is_at_most_the_mean_of_their_losses(logits):
    def nll(logits):
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), BATCH.targets[..., None], axis=-1)

    assert np.all(nll(logits.mean(axis=0)) <= np.mean([nll(own) for own in logits], axis=0) + 1e-6)


def test_logits_exist_of_one_row_at_a_time_or_of_one_member(logits, model):
    student = _loss(model).model(model.params)
    hidden = jax.eval_shape(lambda: student.teacher.hidden(BATCH).y)
    assert largest(student.teacher.head.logits, hidden) == logits[0].size
    assert largest(lambda: dataclasses.replace(OBJECTIVE, top_k=4).prepared(student, BATCH)) < logits[0].size


def test_each_counts_with_the_operations_of_its_forward():
    taught = STUDENT.flops_per_token(20) - ALONE.flops_per_token(20)
    assert taught == pytest.approx(len(SEEDS) * MEMBER.flops_per_token(20) / 3)


def test_models_of_other_architectures_are_refused():
    other = RandomTeacher(model=dataclasses.replace(MEMBER, repeats=2))
    with refused(ValueError, "teachers[2]", "model.repeats is 2", 1):
        Ensemble(teachers=(*TEACHER.teachers[:2], other))
    trained_otherwise = RandomTeacher(model=dataclasses.replace(MEMBER, dropout=0.1, trainable=OnlyNorms()))
    assert Ensemble(teachers=(*TEACHER.teachers, trained_otherwise)).members == 4


@pytest.mark.parametrize("teachers", [TEACHER.teachers[:1], (TEACHER, TEACHER)], ids=["one", "of ensembles"])
def test_fewer_than_two_and_ensembles_of_ensembles_are_refused(teachers):
    with refused(ValueError, "teachers", recorded=False):
        Ensemble(teachers=teachers)

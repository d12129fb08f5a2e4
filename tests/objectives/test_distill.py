"""Distillation: its gradient at high temperatures, its value, and both over a split vocabulary."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from messages import refused
from tiny import RandomTeacher, packed_batch, random_model, random_params, variant
from tolerances import SAME_GRADIENT, SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.trees import taught
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.objectives.distill import Distill, divergence
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.shapes import ModelState
from jaxtrain.train.gradients import Loss

HEADS = AttentionConfig(heads=8, kv_heads=8, head_dim=4)  # as many as the devices of a test
PATTERN = (dataclasses.replace(variant().pattern[0], mixer=HEADS),)
TEACHER = RandomTeacher(model=variant(d_model=48, repeats=1, pattern=PATTERN))
ALONE = variant(pattern=PATTERN)
STUDENT = dataclasses.replace(ALONE, teacher=TEACHER)
MODEL = taught(ModelState(random_params(ALONE)), random_model(TEACHER.model, seed=7))
BATCH = packed_batch([[20], [9, 11], [15], [20]] * 2, 20, vocab_size=64)


@pytest.mark.parametrize(("temperature", "error"), [(10.0, 0.048), (100.0, 0.005)])
def test_the_gradient_at_a_high_temperature_is_the_difference_of_the_logits_over_their_number(temperature, error):
    """Hinton et al. (2015), equation 4. The error is of first order in logits over temperature; these are below 1."""
    random = np.random.default_rng(0)
    student, teacher = (x - x.mean(-1, keepdims=True) for x in random.uniform(-1, 1, (2, 1, 64, 100)))
    gradient = jax.grad(lambda z: jnp.sum(divergence(z, teacher, temperature)))(jnp.asarray(student, jnp.float32))
    limit = (student - teacher) / 100
    assert np.linalg.norm(gradient - limit) / np.linalg.norm(limit) < error


def test_it_is_the_divergence_from_the_teacher_and_the_loss_of_the_targets():
    objective = Distill(temperature=3.0, hard=0.25)
    loss = Loss.of_batch(abstract_model(STUDENT).graph, objective, MODEL, _prepared(objective))
    model = loss.model(MODEL.params)
    value, terms = jax.jit(lambda batch: loss(MODEL.params, batch, None))(_prepared(objective))
    z, v = jax.jit(lambda: [jax.nn.log_softmax(m(BATCH) / 3.0) for m in (model, model.teacher)])()
    kl = 9.0 * (np.exp(v) * (v - z)).sum(-1)
    hard = Loss.of_batch(abstract_model(ALONE).graph, NextToken(), ModelState(MODEL.params), BATCH)
    nll = jax.jit(lambda params: hard(params, BATCH, None)[0])(MODEL.params)
    soft = (kl * BATCH.weights).sum() / BATCH.weights.sum()
    assert float(value) == pytest.approx(float(0.75 * soft + 0.25 * nll), rel=1e-5)
    assert float(terms.reported["nll"]) / BATCH.weights.sum() == pytest.approx(float(nll), rel=1e-5)


def _prepared(objective: Distill):
    loss = Loss.of_batch(abstract_model(STUDENT).graph, objective, MODEL, BATCH)
    return jax.jit(lambda: objective.prepared(loss.model(MODEL.params), BATCH))()


def _value_and_gradient(objective: Distill, model: ModelState = MODEL):
    loss = Loss.of_batch(abstract_model(STUDENT).graph, objective, model, BATCH)

    def both(params):
        batch = objective.prepared(loss.model(params), BATCH)
        return jax.value_and_grad(loss, has_aux=True)(params, batch, None)

    (value, _), gradient = jax.jit(both)(model.params)
    return value, gradient


def test_the_likeliest_words_of_all_are_all():
    value, gradient = _value_and_gradient(Distill(top_k=64))
    desired, desired_gradient = _value_and_gradient(Distill())
    assert_close(value, np.asarray(desired), SAME_SUMS)
    assert_close(gradient, desired_gradient, SAME_GRADIENT)


def test_the_likeliest_words_are_a_distribution_of_their_own():
    prepared = _prepared(Distill(top_k=4))
    assert {name: hint.shape for name, hint in prepared.hints.items()} == dict.fromkeys(("logits", "words"), (8, 20, 4))
    value, _ = _value_and_gradient(Distill(top_k=1, hard=0.0))
    assert float(value) == pytest.approx(0.0, abs=1e-6)


def test_a_vocabulary_split_over_eight_devices_has_the_value_and_the_gradient_of_one():
    desired, desired_gradient = _value_and_gradient(Distill())
    mesh = MeshConfig(fsdp=1, tensor=8).build()
    with jax.set_mesh(mesh):
        placed = jax.device_put(MODEL.params["output"], jax.NamedSharding(mesh, jax.P("tensor")))
        value, gradient = _value_and_gradient(Distill(), MODEL._replace(params={**MODEL.params, "output": placed}))
    assert_close(value, np.asarray(desired), SAME_SUMS)
    assert_close(gradient, desired_gradient, SAME_GRADIENT)


def test_a_model_without_a_teacher_is_refused():
    with refused(ValueError, "objective=Distill(...)", "model.teacher"):
        Distill().check(variant())


def test_more_words_than_there_are_are_refused():
    with refused(ValueError, "objective.top_k=65", "model.vocab_size=64"):
        Distill(top_k=65).check(STUDENT)


def test_a_teacher_of_another_vocabulary_is_refused():
    with refused(ValueError, "vocab_size=64", "vocab_size=50"):
        variant(vocab_size=50, teacher=TEACHER)


@pytest.mark.parametrize(("own", "teachers"), [(1, 8), (8, 1)])
def test_tables_padded_to_other_multiples_change_nothing(own, teachers):
    teacher = RandomTeacher(model=variant(vocab_size=60, repeats=1, vocab_multiple=teachers))
    student = variant(vocab_size=60, repeats=1, vocab_multiple=own)
    model = taught(ModelState(random_params(student)), random_model(teacher.model, seed=7))
    taught_student, batch = dataclasses.replace(student, teacher=teacher), packed_batch([[20]], 20, vocab_size=60)
    loss = Loss.of_batch(abstract_model(taught_student).graph, Distill(hard=0.0), model, batch)

    @jax.jit
    def both(params):
        merged = loss.model(params)
        value, _ = loss(params, Distill().prepared(merged, batch), None)
        return value, *(jax.nn.log_softmax(own(batch)[..., :60] / 2.0) for own in (merged, merged.teacher))

    value, z, v = both(model.params)
    desired = 4.0 * (np.exp(v) * (v - z)).sum(-1)
    assert float(value) == pytest.approx(float((desired * batch.weights).sum() / batch.weights.sum()), rel=1e-4)

"""Evaluation where the weights lie in stages: right, and one layer at a time from its stage to all."""

import jax
from tiny import random_params, training_batch, variant
from tolerances import SAME_SUMS, assert_close

from jaxtrain.mesh import MeshConfig
from jaxtrain.models.decoder import abstract_model
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.planning.collectives import collectives
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import shardings
from jaxtrain.train.step import make_evaluation_step

MODEL = variant(repeats=8)


def test_evaluation_on_stages_equals_that_on_one_device_and_gathers_one_layer_at_a_time():
    graph, _, axes = abstract_model(MODEL)
    model, batch = ModelState(random_params(MODEL)), training_batch(8, 16, vocab_size=MODEL.vocab_size)
    step = make_evaluation_step(graph, NextToken())
    mesh = MeshConfig(stage=4, fsdp=2).build()
    with jax.set_mesh(mesh):
        compiled = step.lower(jax.device_put(model, shardings(axes, model, mesh)), batch).compile()
        found = compiled(jax.device_put(model, shardings(axes, model, mesh)), batch)
    assert_close(found, step(model, batch), SAME_SUMS)
    of_one_layer = max(leaf[0].nbytes for leaf in jax.tree.leaves(model.params["stacks"]["blocks"]))
    gathered = [item.bytes for item in collectives(compiled.as_text()).items if item.kind == "all-gather"]
    assert max(gathered) == of_one_layer

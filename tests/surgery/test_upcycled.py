"""A dense model becomes a mixture of experts that computes the same."""

import dataclasses

import huggingface_goldens as goldens
import jax
import numpy as np
import pytest
from messages import refused
from tiny import variant
from tolerances import SAME_SUMS, assert_close

from jaxtrain.config import TrainConfig
from jaxtrain.data import DataConfig, StandardLibrary
from jaxtrain.mesh import MeshConfig
from jaxtrain.models.trees import together
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mixture import MixtureConfig
from jaxtrain.nn.moe.balances import RouterBias
from jaxtrain.nn.moe.selections import ExpertChoice
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.schedules import Constant
from jaxtrain.surgery.huggingface import import_folder, open_folder
from jaxtrain.train.folder import RunFolder
from jaxtrain.train.initial import FromHuggingFace, Random, Upcycled
from jaxtrain.train.initial.upcycled import dense
from jaxtrain.train.phases import Phase


def upcycled(folder, mesh=None, **changes):
    """Return the folder's model with experts in all layers, and its arrays."""
    dense = open_folder(folder)[0]
    [block] = dense.pattern
    mixture = MixtureConfig(**{"experts": 4, "top_k": 2, "expert": block.mlp, **changes})
    config = dataclasses.replace(dense, pattern=(dataclasses.replace(block, mlp=mixture),))
    initial = Upcycled(weights=FromHuggingFace(path=str(folder)))
    return config, initial(config, (mesh or MeshConfig()).build(), jax.random.key(0))


def test_the_mixture_computes_what_the_dense_model_did():
    """On a mesh that splits the experts, each of which is the dense layer, with a router that has been drawn."""
    folder = goldens.GOLDENS / "llama"
    config, model = upcycled(folder, MeshConfig(fsdp=2, expert=4), balances=(RouterBias(rate=0.1),))
    arrays = jax.tree.map(np.asarray, together(model))
    mlp, of_dense = (tree["stacks"]["blocks"]["blocks"][0]["mlp"] for tree in (arrays, import_folder(folder)[1]))
    for name in ("gate", "up", "down"):
        for expert in range(4):
            np.testing.assert_array_equal(mlp["experts"][name]["kernel"][:, expert], of_dense[name]["kernel"])
    assert len(np.unique(mlp["router"])) == mlp["router"].size
    tokens, _ = goldens.golden("llama")
    before = goldens.logits(open_folder(folder)[0], import_folder(folder)[1], tokens)
    assert_close(goldens.logits(config, arrays, tokens), before, SAME_SUMS)


def test_blocks_before_the_pattern_are_copied_from_repeats_of_one():
    """The dense model has two layers that are alike, and the new one a dense layer and a mixture in their place."""
    [block] = variant().pattern
    mixture = dataclasses.replace(block, mlp=MixtureConfig(experts=4, top_k=2, expert=block.mlp))
    config, mesh, key = variant(first=(block, mixture)), MeshConfig(fsdp=1).build(jax.devices()[:1]), jax.random.key(0)
    model, before = Upcycled(weights=Random())(config, mesh, key), Random()(dense(config), mesh, key)
    kernel = before.params["stacks"]["first"]["blocks"][0]["mlp"]["up"]["kernel"]
    layers = model.params["stacks"]["first"]["blocks"]
    np.testing.assert_array_equal(layers[0]["mlp"]["up"]["kernel"], kernel[:1])
    for expert in range(4):
        np.testing.assert_array_equal(layers[1]["mlp"]["experts"]["up"]["kernel"][:, expert], kernel[1:])


@pytest.mark.parametrize(
    "changes",
    [{"top_k": 1}, {"renormalise": False}, {"scale": 2.0}, {"zero_experts": 1}, {"selection": ExpertChoice()}],
    ids=lambda changes: next(iter(changes)),
)
def test_copies_that_add_up_to_something_else_are_refused(changes):
    [(name, _)] = changes.items()
    with refused(ValueError, f"model.pattern[0].mlp.{name}", "initial=Upcycled"):
        upcycled(goldens.GOLDENS / "llama", **changes)


def test_an_expert_that_is_another_layer_than_the_weights_is_refused():
    with refused(ValueError, "initial=Upcycled", "mlp.expert"):
        upcycled(goldens.GOLDENS / "llama", expert=GatedMLPConfig(hidden=8))


def test_a_model_without_a_mixture_is_refused():
    config = open_folder(goldens.GOLDENS / "llama")[0]
    with refused(ValueError, "initial=Upcycled", "mixture"):
        Upcycled(weights=FromHuggingFace(path="none"))(config, MeshConfig().build(), jax.random.key(0))


def test_a_start_that_is_refused_leaves_no_run(tmp_path):
    config = TrainConfig(
        model=variant(vocab_size=320),
        data=DataConfig(source=StandardLibrary()),
        optimizer=AdamW(learning_rate=Constant(peak=1e-3)),
        phases=(Phase(steps=1, batch_size=8, sequence_length=16),),
        initial=Upcycled(weights=Random()),
    )
    with refused(ValueError, "initial=Upcycled", "mixture"):
        config.train(tmp_path / "run")
    assert not RunFolder(tmp_path / "run").is_used

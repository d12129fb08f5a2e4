"""What is trained: chosen by kind or by path; the rest is frozen."""

import jax
import pytest
from messages import refused
from tiny import variant

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.embeddings import NormalisedEmbedding
from jaxtrain.nn.heads import TransformedHead
from jaxtrain.nn.trainable import Adapters, Except, Only, OnlyNorms, Trainable


def _config(trainable: Trainable, **changes) -> DecoderConfig:
    return variant(trainable=trainable, **changes)


def _trained(trainable: Trainable, **changes) -> set[str]:
    """Return the names of trained parameters, having seen that all others are frozen."""
    shapes = abstract_model(_config(trainable, **changes)).shapes
    whole = jax.tree.leaves(abstract_model(variant(**changes)).shapes.params)
    assert len(jax.tree.leaves(shapes.params)) + len(jax.tree.leaves(shapes.frozen)) == len(whole)
    return {".".join(str(key.key) for key in path) for path, _ in jax.tree_util.tree_leaves_with_path(shapes.params)}


def test_norms_alone():
    of_blocks = {f"stacks.blocks.blocks.0.{name}.scale" for name in ("mixer_norm", "mlp_norm")}
    assert _trained(OnlyNorms()) == of_blocks | {"final_norm.scale"}
    encoder = {"embedding": NormalisedEmbedding(), "head": TransformedHead()}
    others = {"final_norm.scale", "embedding_norm.scale", "transform.norm.scale"}
    assert _trained(OnlyNorms(), **encoder) == of_blocks | others


def test_paths_by_patterns_and_all_but_those():
    assert _trained(Only(names=("output.*", "final_norm.*"))) == {"output.kernel", "final_norm.scale"}
    others = _trained(Except(names=("output.*", "*.mlp.*")))
    assert "embedding.table" in others and "output.kernel" not in others and not any(".mlp." in name for name in others)


def test_a_choice_of_nothing_is_refused():
    with refused(ValueError, "trainable=Adapters()", 12):
        abstract_model(_config(Adapters()))


def test_a_choice_of_everything_is_refused():
    with refused(ValueError, "trainable=Only(names=('*',))", 12, "Everything()"):
        abstract_model(_config(Only(names=("*",))))


@pytest.mark.parametrize("kind", [Only, Except])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest(kind):
    with refused(ValueError, "'embeding.*'", "embedding.table"):
        abstract_model(_config(kind(names=("output.*", "embeding.*"))))

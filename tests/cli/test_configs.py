"""Every configuration of the repository can be read and makes a model, and those of published models are they."""

import dataclasses
from pathlib import Path

import jax
import pytest

from jaxtrain.cli.config_file import load
from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.presets import llama2_7b, llama31_8b, llama31_70b
from jaxtrain.nn.remat import NoRemat

FILES = sorted(path for path in Path("configs").glob("*.gin") if path.stem != "base")  # which the others include
PUBLISHED = {"llama2_7b": llama2_7b, "llama31_8b": llama31_8b, "llama31_70b": llama31_70b}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_configuration_makes_a_model(file):
    model = load(file).config.model
    _, (shapes, *_), _ = abstract_model(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == model.parameter_count
    if file.stem in PUBLISHED:
        assert dataclasses.replace(model, compute_dtype="float32", remat=NoRemat()) == PUBLISHED[file.stem]()


def test_no_published_configuration_is_passed_over():
    assert PUBLISHED.keys() <= {file.stem for file in FILES}

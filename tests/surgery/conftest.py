"""A small folder in the form of Hugging Face transformers; a test that changes it does so in a copy."""

import jax
import numpy as np
import pytest

from jaxtrain.models import presets
from jaxtrain.models.decoder import abstract_model
from jaxtrain.surgery.huggingface import export_folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A Qwen 3 whose vocabulary has room for bytes."""
    config = presets.qwen3_tiny()
    folder = tmp_path_factory.mktemp("tiny") / "qwen3"
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: random.standard_normal(leaf.shape, np.float32), abstract_model(config).shapes.params
    )
    export_folder(config, params, folder)
    return folder

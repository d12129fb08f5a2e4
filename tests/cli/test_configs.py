"""Every configuration of the repository can be read and makes a model, and those of published models are they."""

import dataclasses
from pathlib import Path

import jax
import pytest

from jaxtrain.cli.config_file import load
from jaxtrain.cli.config_tree import MOVED
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
        published = PUBLISHED[file.stem]()
        as_published = {"compute_dtype": "float32", "remat": NoRemat(), "vocab_tile": published.vocab_tile}
        assert dataclasses.replace(model, **as_published) == published


def test_no_published_configuration_is_passed_over():
    assert PUBLISHED.keys() <= {file.stem for file in FILES}


@pytest.mark.parametrize("key", MOVED)
def test_a_key_that_an_earlier_run_recorded_is_refused_with_what_to_do(key, tmp_path):
    recorded = tmp_path / "config.gin"
    recorded.write_text(f"include '{Path('configs/llama31_8b.gin').resolve()}'\n{key} = None\n")
    with pytest.raises(ValueError, match=rf"config.gin:2: \S+ has no key '\w+'; it has moved: {MOVED[key]}$"):
        load(recorded)

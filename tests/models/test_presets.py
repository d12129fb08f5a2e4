"""Presets have the published sizes, and the counts are those of the parameters that exist."""

import inspect
import math

import jax
import pytest

from jaxtrain.models import presets
from jaxtrain.models.decoder import DecoderConfig, abstract_model

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama31_8b": 8_030_261_248,
    "llama31_70b": 70_553_706_496,
    "mistral_7b": 7_241_732_096,
    "qwen3_600m": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gpt2_small": 124_439_808,
}
BUILDERS = {
    name: function
    for name, function in inspect.getmembers(presets, inspect.isfunction)
    if function.__module__ == presets.__name__ and not inspect.signature(function).parameters
}


def test_every_preset_is_of_a_published_size_or_tiny():
    assert set(BUILDERS) == set(PUBLISHED) | {name for name in BUILDERS if name.endswith("_tiny")}
    families = {name.rstrip("0123456789").split("_")[0] for name in BUILDERS if name.endswith("_tiny")}
    assert len(families) == 5


def test_windows_that_cannot_take_turns_are_refused():
    with pytest.raises(ValueError, match="layers=3: must be even"):
        presets.gemma2(d_model=64, layers=3, heads=4, kv_heads=2, head_dim=32, hidden=160)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_parameter_count(name):
    assert BUILDERS[name]().parameter_count == PUBLISHED[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_the_count_is_that_of_the_parameters_that_exist(name):
    config: DecoderConfig = BUILDERS[name]()
    _, (shapes, *_), _ = abstract_model(config)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes)) == config.parameter_count

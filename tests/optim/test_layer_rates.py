"""Rates by depth and by name, on the parameters of decoders."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.tree_util import keystr, tree_leaves_with_path
from messages import refused
from optimizer_cases import RATES
from tiny import DECODER, variant
from tolerances import CLOSED_FORM, assert_close

from jaxtrain.models.decoder import abstract_model
from jaxtrain.models.sharing import SharedLayers
from jaxtrain.optim.adamw import AdamW
from jaxtrain.optim.layer_rates import LayerRates
from jaxtrain.optim.schedule_free import ScheduleFree


class _Follower(AdamW):
    """Moves by the gradient itself."""

    def build(self, rate, axes):
        return optax.identity()


INNER = _Follower(learning_rate=RATES)


def _factors(optimizer: LayerRates, config) -> dict[str, list[float]]:
    """Return the factors by which updates of a decoder's parameters are multiplied, by layer."""
    _, (shapes, *_), (axes, *_) = abstract_model(config)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    tx = optimizer.build(RATES.build(1), axes)
    updates, _ = tx.update(ones, tx.init(ones), ones)
    found = {}
    for path, leaf in tree_leaves_with_path(updates):
        name = keystr(path, simple=True, separator=".")
        rows = leaf.reshape(len(leaf) if name.startswith("stacks") else 1, -1)
        assert (rows == rows[:, :1]).all()
        found[name] = [float(row[0]) for row in rows]
    return found


def test_each_layer_below_has_half_of_the_rate():
    """Of three layers first, and two repeats of two blocks."""
    block = DECODER.pattern[0]
    config = variant(first=(block,) * 3, pattern=(block, block), repeats=2)
    found = _factors(LayerRates(optimizer=INNER, by_depth=0.5), config)
    layers = found["stacks.first.blocks.0.mlp.up.kernel"]
    for repeat in range(2):
        layers = [*layers, *(found[f"stacks.blocks.blocks.{j}.mlp.up.kernel"][repeat] for j in range(2))]
    assert layers == [0.5**above for above in (6, 5, 4, 3, 2, 1, 0)]
    assert found["stacks.blocks.blocks.0.mixer_norm.scale"] == [0.125, 0.5]
    assert found["embedding.table"] == [0.5**7] and found["output.kernel"] == found["final_norm.scale"] == [1.0]


def test_names_have_factors_of_which_the_first_that_matches_counts():
    optimizer = LayerRates(optimizer=INNER, factors=(("*.mlp_norm.scale", 64.0), ("*scale", 2.0)))
    found = _factors(optimizer, DECODER)
    assert {name.split(".")[-2]: set(own) for name, own in found.items() if name.endswith("scale")} == {
        "mlp_norm": {64.0},
        "mixer_norm": {2.0},
        "final_norm": {2.0},
    }
    assert {tuple(own) for name, own in found.items() if not name.endswith("scale")} <= {(1.0,), (1.0, 1.0)}


def test_weight_decay_is_multiplied_with_the_rate():
    _, (shapes, *_), (axes, *_) = abstract_model(DECODER)
    params = jax.tree.map(lambda leaf: np.ones(leaf.shape, np.float32), shapes)
    inner = AdamW(learning_rate=RATES, weight_decay=0.5)
    tx = LayerRates(optimizer=inner, factors=(("output.kernel", 0.25),)).build(RATES.build(1), axes)
    updates, _ = tx.update(jax.tree.map(np.zeros_like, params), tx.init(params), params)
    assert_close(updates["output"]["kernel"], params["output"]["kernel"] * np.float32(-0.25 * 0.01), CLOSED_FORM)


def test_what_cannot_be_is_refused():
    _, _, (axes, *_) = abstract_model(DECODER)
    with refused(ValueError, "factors: 'embeding.*'", "embedding.table"):
        LayerRates(optimizer=INNER, factors=(("embeding.*", 0.1),)).build(RATES.build(1), axes)
    _, _, (shared, *_) = abstract_model(dataclasses.replace(DECODER, sharing=SharedLayers()))
    with refused(ValueError, "by_depth=0.5", "one for all layers"):
        LayerRates(optimizer=INNER, by_depth=0.5).build(RATES.build(1), shared)
    with refused(ValueError, "optimizer=ScheduleFree", "LayerRates"):
        LayerRates(optimizer=ScheduleFree(learning_rate=RATES))
    with pytest.raises(ValueError, match="by_depth=0.0: must be above 0"):
        LayerRates(optimizer=INNER, by_depth=0.0)
    with refused(ValueError, "factors: '*' has -1.0", "at least 0"):
        LayerRates(optimizer=INNER, factors=(("*", -1.0),))

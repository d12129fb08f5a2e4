"""Masks against the set of keys that each query sees, counted one by one."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from messages import refused
from test_attention import PLAIN, L, _batch, _context, _layer, _x
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.cli.config_types import subclasses
from jaxtrain.nn.masks import Bidirectional, BidirectionalWindow, Causal, Mask, SlidingWindow, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Dilated(Mask):
    """Every second key back, Beltagy et al. (2020), section 3.1: what kernels know no name for."""

    @property
    def span(self) -> Span:
        return Span(causal=True, window=6)

    def hidden(self, distance: jax.Array) -> jax.Array:
        return distance % 2 != 0


SEEN = {  # by the distance behind the query
    Causal(): lambda d: d >= 0,
    SlidingWindow(window=5): lambda d: 0 <= d <= 4,
    Bidirectional(): lambda d: True,
    BidirectionalWindow(window=4): lambda d: -3 <= d <= 3,
    Dilated(): lambda d: d in (0, 2, 4),
}


def test_every_mask_has_its_case():
    shipped = {cls.__name__ for cls in subclasses(Mask).values() if cls.__module__.startswith("jaxtrain.")}
    assert shipped == {type(mask).__name__ for mask in SEEN} - {"Dilated"}


@pytest.mark.parametrize("mask", SEEN, ids=lambda mask: type(mask).__name__)
def test_mean_keys_and_sight_are_counted(mask):
    distance = np.arange(9)[:, None] - np.arange(9)[None]
    seen = np.vectorize(SEEN[mask], otypes=[bool])(distance)
    np.testing.assert_array_equal(mask.seen(jnp.asarray(distance)), seen)
    for length in (9, 3):  # the second is shorter than the windows
        assert mask.mean_keys(length) == pytest.approx(seen[:length, :length].sum() / length, rel=1e-12)


@pytest.mark.parametrize("mask", [BidirectionalWindow(window=4), Dilated()], ids=lambda mask: type(mask).__name__)
def test_a_query_attends_to_the_keys_that_it_sees(mask):
    """By the kernel, and where nothing ahead is seen by a cache, against a softmax over the keys of the list."""
    layer, x = _layer(dataclasses.replace(PLAIN, mask=mask)), _x()
    segments, documents = _batch().segment_ids, _batch().segment_ids > 0
    q, k, v = (np.asarray(own(x), np.float64) for own in (layer.query, layer.key, layer.value))
    seen = np.vectorize(SEEN[mask], otypes=[bool])(np.arange(L)[:, None] - np.arange(L)[None])
    seen = seen & (segments[:, :, None] == segments[:, None, :])
    scores = np.where(seen[:, None], np.einsum("blhk,bshk->bhls", q, k) / 6**0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    y = np.einsum("bhls,bshk->blhk", weights / weights.sum(-1, keepdims=True), v)
    desired = np.einsum("blhk,hkd->bld", y, np.asarray(layer.output.dense(), np.float64))

    def both(layer, x):
        context = _context()
        whole = layer(x, context).y
        if not mask.span.causal:
            return [whole]
        cached = layer(x, context._replace(cache_index=jnp.zeros((), jnp.int32)), layer.initial_state(2, L, x.dtype))
        return [whole, cached.y]

    for y in nnx.jit(both)(layer, x):
        assert_close(y[documents], desired[documents], CLOSED_FORM_LAYER)


def test_a_kernel_by_name_takes_no_mask_with_holes():
    with refused(ValueError, "mask=", "Dilated()", "implementation='tpu'"):
        dataclasses.replace(PLAIN, mask=Dilated(), implementation="tpu")

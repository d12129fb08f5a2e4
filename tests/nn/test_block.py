"""How the layers of a block are joined to the residual stream, against the formulas of their papers."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import packed_batch
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.joins import (
    FeedForwardNorm,
    Join,
    OutputNorm,
    Parallel,
    ParallelSharedNorm,
    PostNorm,
    PreNorm,
    SandwichNorm,
    ScaledPreNorm,
)
from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig

D, L = 8, 6
NORMS = ("mixer_norm", "mixer_post_norm", "mlp_norm", "mlp_post_norm")
LAYERS = {"mixer": AttentionConfig(heads=2, kv_heads=2, head_dim=4), "mlp": GatedMLPConfig(hidden=12)}


def pre_norm(x, f, g, n):
    x = x + f(n["mixer_norm"](x))
    return x + g(n["mlp_norm"](x))


def both(x, f, g, n):
    x = x + n["mixer_post_norm"](f(n["mixer_norm"](x)))
    return x + n["mlp_post_norm"](g(n["mlp_norm"](x)))


def of_outputs(x, f, g, n):
    x = x + n["mixer_post_norm"](f(x))
    return x + n["mlp_post_norm"](g(x))


def behind(x, f, g, n):
    x = n["mixer_post_norm"](x + f(x))
    return n["mlp_post_norm"](x + g(x))


def of_mlp(x, f, g, n):
    x = x + f(x)
    return x + g(n["mlp_norm"](x))


def parallel(x, f, g, n):
    return x + f(n["mixer_norm"](x)) + g(n["mlp_norm"](x))


def shared(x, f, g, n):
    h = n["mixer_norm"](x)
    return x + f(h) + g(h)


def scaled(x, f, g, n):
    x = x + 0.3 * f(n["mixer_norm"](x))
    return x + 0.3 * g(n["mlp_norm"](x))


FORMULAS = {
    PreNorm(): pre_norm,
    SandwichNorm(): both,
    OutputNorm(): of_outputs,
    PostNorm(): behind,
    FeedForwardNorm(): of_mlp,
    Parallel(): parallel,
    ParallelSharedNorm(): shared,
    ScaledPreNorm(scale=0.3): scaled,
}


@pytest.mark.parametrize("join, formula", FORMULAS.items(), ids=map(repr, FORMULAS))
def test_a_block_is_the_formula_of_its_join(join, formula):
    config = BlockConfig(**LAYERS, join=join)
    block = config.build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    norms = {name: getattr(block, name) for name in NORMS if name in vars(block)}
    assert norms.keys() == set(join.norms)
    for name in norms:
        getattr(block, name).scale[...] = 1 + 0.3 * random.standard_normal(D, np.float32)
    batch = packed_batch([[L], [4, 2]], L, vocab_size=5)
    context = TokenContext(batch.positions, batch.segment_ids, batch.positions, batch.segment_ids)
    x = random.standard_normal((2, L, D), np.float32)
    layers = (lambda h: block.mixer(h, context).y), (lambda h: block.mlp(h, context).y)
    desired = formula(x, *layers, norms)
    assert_close(jax.jit(lambda x: block(x, context).y)(x), desired, CLOSED_FORM_LAYER)


@dataclass(frozen=True, kw_only=True)
class Halved(Join):
    """A join that leaves out a layer, and calls the other one twice."""

    norms: ClassVar[tuple[str, ...]] = ()

    def __call__(self, x, mixer, mlp, own):
        return mixer(mixer(x))


def test_a_join_that_does_not_call_each_layer_once_is_refused():
    block = BlockConfig(**LAYERS, join=Halved()).build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))
    batch = packed_batch([[L]], L, vocab_size=5)
    context = TokenContext(batch.positions, batch.segment_ids, batch.positions, batch.segment_ids)
    with refused(ValueError, "join=Halved()", "mixer 2 times", "mlp 0 times"):
        jax.eval_shape(lambda x: block(x, context).y, jax.ShapeDtypeStruct((1, L, D), np.float32))


@dataclass(frozen=True, kw_only=True)
class Twice(Join):
    """A join with a norm under the name of a layer."""

    norms: ClassVar[tuple[str, ...]] = ("mlp",)

    def __call__(self, x, mixer, mlp, own):
        return x + mixer(x) + mlp(x)


def test_a_join_whose_part_has_the_name_of_a_layer_is_refused():
    with refused(ValueError, "mlp", "Block"):
        BlockConfig(**LAYERS, join=Twice()).build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))

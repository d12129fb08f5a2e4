"""How the layers of a block are joined to the residual stream, against the formulas of their papers."""

import jax
import numpy as np
import pytest
from flax import nnx
from messages import refused
from tiny import packed_batch
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
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


def parallel(x, f, g, n):
    return x + f(n["mixer_norm"](x)) + g(n["mlp_norm"](x))


def shared(x, f, g, n):
    h = n["mixer_norm"](x)
    return x + f(h) + g(h)


def scaled(x, f, g, n):
    x = x + 0.3 * f(n["mixer_norm"](x))
    return x + 0.3 * g(n["mlp_norm"](x))


FORMULAS = {
    "pre-norm": ({}, pre_norm, {"mixer_norm", "mlp_norm"}),
    "norms of both sides": ({"post_norm": True}, both, set(NORMS)),
    "norms of outputs": (
        {"pre_norm": False, "post_norm": True},
        of_outputs,
        {"mixer_post_norm", "mlp_post_norm"},
    ),
    "parallel": ({"parallel": True}, parallel, {"mixer_norm", "mlp_norm"}),
    "parallel, one norm": ({"parallel": True, "shared_norm": True}, shared, {"mixer_norm"}),
    "scaled": ({"residual_scale": 0.3}, scaled, {"mixer_norm", "mlp_norm"}),
}


@pytest.mark.parametrize("options, formula, norms", FORMULAS.values(), ids=FORMULAS)
def test_a_block_is_its_formula(options, formula, norms):
    config = BlockConfig(**LAYERS, **options)
    block = config.build(D, norm=RMSNormConfig(), dropout=0.0, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    assert {name for name in NORMS if hasattr(block, name)} == norms
    for name in norms:
        getattr(block, name).scale[...] = 1 + 0.3 * random.standard_normal(D, np.float32)
    batch = packed_batch([[L], [4, 2]], L, vocab_size=5)
    context = TokenContext(batch.positions, batch.segment_ids, batch.positions, batch.segment_ids)
    x = random.standard_normal((2, L, D), np.float32)
    layers = (lambda h: block.mixer(h, context).y), (lambda h: block.mlp(h, context).y)
    desired = formula(x, *layers, {name: getattr(block, name) for name in norms})
    assert_close(jax.jit(lambda x: block(x, context).y)(x), desired, CLOSED_FORM_LAYER)


@pytest.mark.parametrize(
    "options, facts",
    [
        ({"pre_norm": False}, ("pre_norm=False", "post_norm=True")),
        ({"shared_norm": True}, ("shared_norm=True", "parallel")),
        ({"parallel": True, "shared_norm": True, "pre_norm": False, "post_norm": True}, ("shared_norm=True",)),
        ({"residual_scale": 0.0}, ("residual_scale=0.0", "above 0")),
    ],
    ids=["no norms", "shared by layers in turn", "shared by none", "nothing added"],
)
def test_blocks_that_do_not_train_are_refused(options, facts):
    with refused(ValueError, *facts):
        BlockConfig(**LAYERS, **options)

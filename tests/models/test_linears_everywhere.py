"""Another kind of linear goes into every layer and the head: the same decoder as with the matrices it stands for."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from tiny import packed_batch, random_params, variant
from tolerances import SAME_LOGITS, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.linear.base import LinearConfig
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.linear.low_rank import LowRank
from jaxtrain.nn.mixers.attention import LINEARS, AttentionConfig
from jaxtrain.nn.mixers.decay import ChannelDecay, StepDecay
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.shapes import ParamTree

HEADS, STATE = {"heads": 4, "kv_heads": 2, "head_dim": 8}, {"value_dim": 12, "chunk_size": 16}


def _decoder(linear: LinearConfig) -> DecoderConfig:
    mixers = (
        AttentionConfig(**HEADS, biases=LINEARS, linear=linear),
        LinearAttentionConfig(**HEADS, **STATE, decay=ChannelDecay(linear=linear), linear=linear),
        DeltaRuleConfig(**HEADS, **STATE, decay=StepDecay(linear=linear), linear=linear),
    )
    mlps = (
        GatedMLPConfig(hidden=48, linear=linear),
        MLPConfig(hidden=48, bias=True, linear=linear),
        MLPConfig(hidden=48, linear=linear),
    )
    pattern = tuple(BlockConfig(mixer=mixer, mlp=mlp) for mixer, mlp in zip(mixers, mlps, strict=True))
    return variant(pattern=pattern)


def _multiplied_out(params: ParamTree) -> ParamTree:
    """Return the parameters with one kernel for each stack of pairs of thin matrices."""
    if not isinstance(params, dict):
        return params
    if "factors" not in params:
        return {key: _multiplied_out(own) for key, own in params.items()}
    kernel = jax.vmap(functools.partial(jnp.tensordot, axes=1))(params["factors"]["a"], params["factors"]["b"])
    return {"kernel": kernel} | {key: own for key, own in params.items() if key == "bias"}


def _logits(config: DecoderConfig, params: ParamTree) -> jax.Array:
    graph, _, _ = abstract_model(config)
    batch = packed_batch([[20], [9, 11]], 20, vocab_size=64)
    return jax.jit(lambda params: nnx.merge(graph, params)(batch))(params)


def test_a_decoder_of_another_linear_is_the_decoder_of_its_matrices():
    params = random_params(_decoder(LowRank(rank=8)))
    dense = _multiplied_out(params)
    shapes = abstract_model(_decoder(Dense())).shapes.params
    assert jax.tree.map(lambda leaf: leaf.shape, dense) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    assert_close(_logits(_decoder(LowRank(rank=8)), params), _logits(_decoder(Dense()), dense), SAME_LOGITS)

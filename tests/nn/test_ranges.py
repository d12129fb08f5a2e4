"""Numbers of layers that no model can have are refused where they are written, before anything is computed."""

import dataclasses
import math
import re

import pytest

from jaxtrain.nn.embeddings import ScaledEmbedding
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import CappedHead, ScaledHead
from jaxtrain.nn.joins import ScaledPreNorm
from jaxtrain.nn.masks import BidirectionalWindow, SlidingWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.delta_rule import DeltaRuleConfig
from jaxtrain.nn.mixers.linear_attention import LinearAttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.norms.layer_norm import LayerNormConfig
from jaxtrain.nn.norms.rms_norm import OffsetRMSNormConfig, RMSNormConfig
from jaxtrain.nn.positions import InterleavedRotary, PartialRotary, Rotary
from jaxtrain.nn.rope import LinearScaling, Llama3Scaling

ATTENTION = AttentionConfig(heads=4, kv_heads=2, head_dim=8)
SCORES, WINDOWS = Scores(softcap=1.0, scale=1.0), (SlidingWindow, BidirectionalWindow)
ROTARY = (Rotary(), PartialRotary(fraction=0.5), InterleavedRotary())
RECURRENT = [kind(heads=4, kv_heads=2, head_dim=8, value_dim=8) for kind in (LinearAttentionConfig, DeltaRuleConfig)]
AT_LEAST_1, ABOVE_0, NOT_NEGATIVE = "must be at least 1", "must be above 0", "must not be negative"

REFUSED = [
    *((ATTENTION, name, value, AT_LEAST_1) for name in ("heads", "kv_heads", "head_dim") for value in (0, -4)),
    *((SCORES, name, value, ABOVE_0) for name in ("softcap", "scale") for value in (0.0, -1.0, math.nan, 1e-50)),
    *((kind(window=3), "window", value, "must be from 1 to") for kind in WINDOWS for value in (0, -1, 1 << 31)),
    *((mixer, name, 0, AT_LEAST_1) for mixer in RECURRENT for name in ("heads", "kv_heads", "head_dim", "value_dim")),
    *((mixer, "chunk_size", value, "must be a multiple of 16") for mixer in RECURRENT for value in (0, 24)),
    (RECURRENT[0], "implementation", "foo", "linear_attention has xla, tpu, gpu, reference"),
    (RECURRENT[1], "implementation", "foo", "delta_rule has xla, tpu, gpu, reference"),
    *((kind(hidden=8), "hidden", value, AT_LEAST_1) for kind in (MLPConfig, GatedMLPConfig) for value in (0, -4)),
    *((kind(), "epsilon", -1.0, NOT_NEGATIVE) for kind in (RMSNormConfig, OffsetRMSNormConfig, LayerNormConfig)),
    *((RMSNormConfig(), "epsilon", value, NOT_NEGATIVE) for value in (1e-45, 1e39)),
    *((rotary, "theta", value, ABOVE_0) for rotary in ROTARY for value in (0.0, -1.0, math.inf)),
    (LinearScaling(factor=2.0), "factor", 0.0, ABOVE_0),
    *((Llama3Scaling(), name, 0.0, ABOVE_0) for name in ("factor", "low")),
    (Llama3Scaling(), "high", 1.0, "must be above low=1.0"),
    (Llama3Scaling(), "original_length", 0, AT_LEAST_1),
    *((CappedHead(cap=30.0), "cap", value, ABOVE_0) for value in (0.0, -30.0)),
    *((kind(scale=2.0), "scale", 0.0, ABOVE_0) for kind in (ScaledHead, ScaledEmbedding, ScaledPreNorm)),
]


@pytest.mark.parametrize("config, name, value, rule", REFUSED)
def test_number_out_of_range_is_refused_by_name(config, name, value, rule):
    with pytest.raises(ValueError, match=re.escape(f"{name}={value!r}: ") + ".*" + re.escape(rule)):
        dataclasses.replace(config, **{name: value})

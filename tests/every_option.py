"""A decoder with all that families differ in: norms, biases, positions, multipliers, sinks."""

from tiny import variant

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.rope import RopeConfig, YarnScaling

HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 8}
YARN = YarnScaling(factor=4.0, original_length=8, fast=2.0, slow=0.1)


def _pattern(implementation: str | None = None) -> tuple[BlockConfig, ...]:
    parallel = BlockConfig(
        mixer=AttentionConfig(
            **HEADS,
            rope=RopeConfig(scaling=YARN, fraction=0.5, interleaved=True),
            bias=True,
            output_bias=False,
            sinks=True,
            window=5,
            implementation=implementation,
        ),
        mlp=MLPConfig(hidden=64, bias=True),
        parallel=True,
        shared_norm=True,
        residual_scale=0.5,
    )
    of_outputs = BlockConfig(
        mixer=AttentionConfig(
            **HEADS,
            rope=None,
            qk_norm=RMSNormConfig(epsilon=0.1),
            joint_qk_norm=True,
            sinks=True,
            implementation=implementation,
        ),
        mlp=GatedMLPConfig(hidden=64, bias=True),
        pre_norm=False,
        post_norm=True,
    )
    return parallel, of_outputs


ALL = variant(pattern=_pattern(), repeats=2, embedding_scale=3.0, logit_scale=0.3)
BY_NAME = variant(pattern=_pattern("xla"), repeats=2, embedding_scale=3.0, logit_scale=0.3)

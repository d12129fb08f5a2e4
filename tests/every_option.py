"""A decoder with all that families differ in: joins, norms, biases, positions, heads, sinks."""

from tiny import variant

from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.embeddings import LearnedPositions
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.heads import TransformedHead
from jaxtrain.nn.joins import ParallelSharedNorm, PostNorm
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.nn.masks import SlidingWindow
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.mixers.scores import Scores
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.positions import InterleavedRotary, NoPositions
from jaxtrain.nn.qk_norms import AllHeads
from jaxtrain.nn.rope import YarnScaling

HEADS = {"heads": 4, "kv_heads": 2, "head_dim": 8}
YARN = YarnScaling(factor=4.0, original_length=8, fast=2.0, slow=0.1)


def _pattern(implementation: str | None = None) -> tuple[BlockConfig, ...]:
    parallel = BlockConfig(
        mixer=AttentionConfig(
            **HEADS,
            positions=InterleavedRotary(scaling=YARN, fraction=0.5),
            mask=SlidingWindow(window=5),
            scores=Scores(sinks=True),
            biases=("query", "key", "value"),
            implementation=implementation,
        ),
        mlp=MLPConfig(hidden=64, bias=True),
        join=ParallelSharedNorm(),
    )
    behind = BlockConfig(
        mixer=AttentionConfig(
            **HEADS,
            positions=NoPositions(),
            qk_norm=AllHeads(norm=RMSNormConfig(epsilon=0.1)),
            scores=Scores(sinks=True),
            implementation=implementation,
        ),
        mlp=GatedMLPConfig(hidden=64, bias=True),
        join=PostNorm(),
    )
    return parallel, behind


OUTER = {"embedding": LearnedPositions(normalised=True), "head": TransformedHead(linear=Dense())}
ALL = variant(pattern=_pattern(), repeats=2, **OUTER)
BY_NAME = variant(pattern=_pattern("xla"), repeats=2, **OUTER)

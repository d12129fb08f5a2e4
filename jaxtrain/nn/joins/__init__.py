"""How the layers of a block are joined to the residual stream, one way in each file."""

from jaxtrain.nn.joins.base import Branch, Join
from jaxtrain.nn.joins.feed_forward_alone import FeedForwardAlone
from jaxtrain.nn.joins.feed_forward_norm import FeedForwardNorm
from jaxtrain.nn.joins.mixer_alone import MixerAlone
from jaxtrain.nn.joins.output_norm import OutputNorm
from jaxtrain.nn.joins.parallel import Parallel
from jaxtrain.nn.joins.parallel_shared_norm import ParallelSharedNorm
from jaxtrain.nn.joins.post_norm import PostNorm
from jaxtrain.nn.joins.pre_norm import PreNorm
from jaxtrain.nn.joins.sandwich_norm import SandwichNorm
from jaxtrain.nn.joins.scaled_pre_norm import ScaledPreNorm

__all__ = [
    "Branch",
    "FeedForwardAlone",
    "FeedForwardNorm",
    "Join",
    "MixerAlone",
    "OutputNorm",
    "Parallel",
    "ParallelSharedNorm",
    "PostNorm",
    "PreNorm",
    "SandwichNorm",
    "ScaledPreNorm",
]

"""What tells attention where its tokens are, one way in each file."""

from jaxtrain.nn.positions.alibi import ALiBi
from jaxtrain.nn.positions.base import Positions
from jaxtrain.nn.positions.interleaved_rotary import InterleavedRotary
from jaxtrain.nn.positions.no_positions import NoPositions
from jaxtrain.nn.positions.partial_rotary import PartialRotary
from jaxtrain.nn.positions.rotary import Rotary
from jaxtrain.nn.positions.rotary_embedding import RotaryEmbedding

__all__ = [
    "ALiBi",
    "InterleavedRotary",
    "NoPositions",
    "PartialRotary",
    "Positions",
    "Rotary",
    "RotaryEmbedding",
]

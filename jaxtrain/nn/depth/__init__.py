"""How often a token passes through a block, one way in each file."""

from jaxtrain.nn.depth.base import Depth, Layers
from jaxtrain.nn.depth.mixture_of_depths import MixtureOfDepths

__all__ = ["Depth", "Layers", "MixtureOfDepths"]

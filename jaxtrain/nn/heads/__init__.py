"""How hidden states become logits, one way in each file."""

from jaxtrain.nn.heads.base import HeadConfig
from jaxtrain.nn.heads.capped_head import CappedHead
from jaxtrain.nn.heads.head import Head
from jaxtrain.nn.heads.linear_head import LinearHead
from jaxtrain.nn.heads.scaled_head import ScaledHead
from jaxtrain.nn.heads.tied_head import TiedHead
from jaxtrain.nn.heads.transformed_head import TransformedHead

__all__ = ["CappedHead", "Head", "HeadConfig", "LinearHead", "ScaledHead", "TiedHead", "TransformedHead"]

"""Norms of queries and keys, one in each file."""

from jaxtrain.nn.qk_norms.all_heads import AllHeads
from jaxtrain.nn.qk_norms.base import QKNorm
from jaxtrain.nn.qk_norms.per_head import PerHead

__all__ = ["AllHeads", "PerHead", "QKNorm"]

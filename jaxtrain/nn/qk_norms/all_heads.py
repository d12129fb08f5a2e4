"""A norm over all heads of queries, and of keys, together. OLMo 2 (2024), arXiv:2501.00656."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.qk_norms.base import QKNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class AllHeads(QKNorm):
    """All heads normalised together. Every element of every head has a scale."""

    norm: NormConfig = RMSNormConfig()
    paper: ClassVar[str] = "arXiv:2501.00656"

    def build(self, heads: int, head_dim: int) -> nnx.Module:
        return self.norm.build(heads * head_dim)

    def __call__(self, norm: Callable, x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
        return norm(x.reshape(*x.shape[:2], -1)).reshape(x.shape)

"""A norm of each head of queries and keys. Dehghani et al. (2023), arXiv:2302.05442; Qwen 3, arXiv:2505.09388."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.norms.base import NormConfig
from jaxtrain.nn.norms.rms_norm import RMSNormConfig
from jaxtrain.nn.qk_norms.base import QKNorm


@dataclass(frozen=True, kw_only=True, slots=True)
class PerHead(QKNorm):
    """Each head normalised by itself. All heads have the same scale."""

    norm: NormConfig = RMSNormConfig()
    paper: ClassVar[str] = "arXiv:2302.05442"

    def build(self, heads: int, head_dim: int) -> nnx.Module:
        return self.norm.build(head_dim)

    def __call__(self, norm: Callable, x: Float[Array, "B L H K"]) -> Float[Array, "B L H K"]:
        return norm(x)

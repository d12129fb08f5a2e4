"""Norms of outputs. Liu et al. (2021, Swin v2), arXiv:2111.09883; OLMo 2 (2024), arXiv:2501.00656."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputNorm(Join):
    """What each layer adds is normalised: x + norm(mixer(x)), then x + norm(mlp(x))."""

    norms: ClassVar[tuple[str, ...]] = ("mixer_post_norm", "mlp_post_norm")
    paper: ClassVar[str] = "arXiv:2501.00656"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = x + mixer(x, own["mixer_post_norm"])
        return x + mlp(x, own["mlp_post_norm"])

"""Pre-norm of the feed-forward layer alone. Warner et al. (2024, ModernBERT), arXiv:2412.13663, section 2.1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForwardNorm(Join):
    """The mixer reads the stream as it is, such as a normalised embedding: x + mixer(x), then x + mlp(norm(x))."""

    norms: ClassVar[tuple[str, ...]] = ("mlp_norm",)
    paper: ClassVar[str] = "arXiv:2412.13663"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = x + mixer(x)
        return x + mlp(own["mlp_norm"](x))

"""A feed-forward layer without a mixer, behind a norm. Zhou et al. (2023, Brainformers), arXiv:2306.00008."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class FeedForwardAlone(Join):
    """The block is a feed-forward layer alone: x + mlp(norm(x)), with mixer=NoMixer()."""

    layers: ClassVar[tuple[str, ...]] = ("mlp",)
    norms: ClassVar[tuple[str, ...]] = ("mlp_norm",)
    paper: ClassVar[str] = "arXiv:2306.00008"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        return x + mlp(own["mlp_norm"](x))

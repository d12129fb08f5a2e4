"""A mixer without a feed-forward layer, behind a norm. Zhou et al. (2023, Brainformers), arXiv:2306.00008."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class MixerAlone(Join):
    """The block is a mixer alone: x + mixer(norm(x)), with mlp=NoFeedForward()."""

    layers: ClassVar[tuple[str, ...]] = ("mixer",)
    norms: ClassVar[tuple[str, ...]] = ("mixer_norm",)
    paper: ClassVar[str] = "arXiv:2306.00008"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        return x + mixer(own["mixer_norm"](x))

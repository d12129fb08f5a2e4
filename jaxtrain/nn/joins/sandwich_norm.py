"""Norms on both sides of a layer. Ding et al. (2021, CogView), arXiv:2105.13290; Gemma 2 (2024), arXiv:2408.00118."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class SandwichNorm(Join):
    """What each layer reads and what it adds is normalised: x + norm(mixer(norm(x))), then the same of mlp."""

    norms: ClassVar[tuple[str, ...]] = ("mixer_norm", "mixer_post_norm", "mlp_norm", "mlp_post_norm")
    paper: ClassVar[str] = "arXiv:2105.13290"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = x + mixer(own["mixer_norm"](x), own["mixer_post_norm"])
        return x + mlp(own["mlp_norm"](x), own["mlp_post_norm"])

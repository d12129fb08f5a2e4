"""Parallel layers, each with a norm. Black et al. (2022, GPT-NeoX), arXiv:2204.06745."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class Parallel(Join):
    """Both layers read the stream before the block: x + mixer(norm(x)) + mlp(norm(x)), with two norms."""

    norms: ClassVar[tuple[str, ...]] = ("mixer_norm", "mlp_norm")
    paper: ClassVar[str] = "arXiv:2204.06745"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        return x + mixer(own["mixer_norm"](x)) + mlp(own["mlp_norm"](x))

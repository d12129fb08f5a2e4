"""Pre-norm. Xiong et al. (2020), arXiv:2002.04745."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class PreNorm(Join):
    """Each layer reads the normalised stream: x + mixer(norm(x)), then x + mlp(norm(x))."""

    norms: ClassVar[tuple[str, ...]] = ("mixer_norm", "mlp_norm")
    paper: ClassVar[str] = "arXiv:2002.04745"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = x + mixer(own["mixer_norm"](x))
        return x + mlp(own["mlp_norm"](x))

"""Pre-norm with scaled additions. Granite Team, IBM (2024), Granite 3.0 Language Models."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join
from jaxtrain.ranges import check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class ScaledPreNorm(Join):
    """Pre-norm, and `scale` multiplies what each layer adds: x + scale * mixer(norm(x)), then the same of mlp."""

    scale: float
    norms: ClassVar[tuple[str, ...]] = ("mixer_norm", "mlp_norm")
    paper: ClassVar[str] = "github.com/ibm-granite/granite-3.0-language-models"

    def __post_init__(self):
        check_positive(self, "scale")

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = x + mixer(own["mixer_norm"](x), self._scaled)
        return x + mlp(own["mlp_norm"](x), self._scaled)

    def _scaled(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        return x * self.scale

"""Low-rank adaptation. Hu et al. (2021), arXiv:2106.09685; its scale by the root of the rank, Kalajdzievski (2023),
arXiv:2312.03732.

`trainable = Adapters()` of the model freezes the base. Left out: dropout of the adapter's input.
"""

from dataclasses import dataclass
from typing import ClassVar

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.linear.adapted import Adapted
from jaxtrain.nn.linear.base import LinearConfig, Side
from jaxtrain.nn.linear.dense import Dense
from jaxtrain.ranges import check_at_least_one, check_positive


@dataclass(frozen=True, kw_only=True, slots=True)
class LoRA(LinearConfig):
    """base(x) + scale x a b + bias, with b zero at the start.

    The scale is alpha / rank, or alpha / sqrt(rank) with `root_of_rank` (rsLoRA).
    """

    rank: int
    alpha: float = 16.0
    root_of_rank: bool = False
    base: LinearConfig = Dense()
    paper: ClassVar[str] = "arXiv:2106.09685"

    def __post_init__(self):
        check_at_least_one(self, "rank")
        check_positive(self, "alpha")

    @property
    def scale(self) -> float:
        return self.alpha / (self.rank**0.5 if self.root_of_rank else self.rank)

    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "_LoRA":
        return _LoRA(self, inputs, outputs, bias=bias, outputs_first=outputs_first, rngs=rngs)

    def check_head(self) -> None:
        self.base.check_head()


class _LoRA(Adapted):
    def product(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        return self.base.product(x) + self.config.scale * self.update(x)

    def dense(self) -> Float[Array, "..."]:
        return self.base.dense() + self.config.scale * self.update.dense()

    def set_dense(self, matrix: Float[Array, "..."]) -> None:
        """Give the base the matrix, less what the adapter adds to it."""
        self.base.set_dense(matrix - self.config.scale * self.update.dense())

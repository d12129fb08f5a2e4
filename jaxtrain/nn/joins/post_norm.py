"""Post-norm. Vaswani et al. (2017), arXiv:1706.03762; Devlin et al. (2018, BERT), arXiv:1810.04805."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class PostNorm(Join):
    """The stream is normalised behind each layer: norm(x + mixer(x)), then norm(x + mlp(x))."""

    norms: ClassVar[tuple[str, ...]] = ("mixer_post_norm", "mlp_post_norm")
    normalises_stream: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1706.03762"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        x = own["mixer_post_norm"](x + mixer(x))
        return own["mlp_post_norm"](x + mlp(x))

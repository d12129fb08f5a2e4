"""Parallel layers with one norm. GPT-J (Wang and Komatsuzaki, 2021); PaLM (2022), arXiv:2204.02311."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from jaxtyping import Array, Float

from jaxtrain.nn.joins.base import Branch, Join


@dataclass(frozen=True, kw_only=True, slots=True)
class ParallelSharedNorm(Join):
    """Both layers read one norm of the stream before the block: x + mixer(norm(x)) + mlp(norm(x))."""

    norms: ClassVar[tuple[str, ...]] = ("mixer_norm",)
    paper: ClassVar[str] = "arXiv:2204.02311"

    def __call__(
        self, x: Float[Array, "B L D"], mixer: Branch, mlp: Branch, own: Mapping[str, Any]
    ) -> Float[Array, "B L D"]:
        read = own["mixer_norm"](x)
        return x + mixer(read) + mlp(read)

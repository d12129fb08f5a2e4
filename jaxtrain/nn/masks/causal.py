"""Causal attention. Vaswani et al. (2017), arXiv:1706.03762."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.masks.base import Mask, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Causal(Mask):
    """A query sees the keys up to its own position."""

    paper: ClassVar[str] = "arXiv:1706.03762"

    @property
    def span(self) -> Span:
        return Span(causal=True)

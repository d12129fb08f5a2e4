"""Bidirectional attention. Devlin et al. (2018), arXiv:1810.04805."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.masks.base import Mask, Span


@dataclass(frozen=True, kw_only=True, slots=True)
class Bidirectional(Mask):
    """A query sees all keys of its document, those ahead of it too, so nothing can be generated."""

    paper: ClassVar[str] = "arXiv:1810.04805"

    @property
    def span(self) -> Span:
        return Span(causal=False)

"""Bidirectional attention in a sliding window. Beltagy et al. (2020), arXiv:2004.05150."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.masks.base import Mask, Span, check_window


@dataclass(frozen=True, kw_only=True, slots=True)
class BidirectionalWindow(Mask):
    """A query sees its own key, and `window` - 1 keys on each side: 2 * window - 1 in all."""

    window: int
    paper: ClassVar[str] = "arXiv:2004.05150"

    def __post_init__(self):
        check_window(self.window)

    @property
    def span(self) -> Span:
        return Span(causal=False, window=self.window)

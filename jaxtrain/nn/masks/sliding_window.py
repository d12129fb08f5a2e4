"""Causal attention in a sliding window. Beltagy et al. (2020), arXiv:2004.05150; Mistral 7B, arXiv:2310.06825."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.masks.base import Mask, Span, check_window


@dataclass(frozen=True, kw_only=True, slots=True)
class SlidingWindow(Mask):
    """A query sees the last `window` keys, its own among them."""

    window: int
    paper: ClassVar[str] = "arXiv:2004.05150"

    def __post_init__(self):
        check_window(self.window)

    @property
    def span(self) -> Span:
        return Span(causal=True, window=self.window)

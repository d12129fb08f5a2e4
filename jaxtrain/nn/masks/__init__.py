"""Attention masks: which keys a query sees, one in each file."""

from jaxtrain.nn.masks.base import Mask, Span
from jaxtrain.nn.masks.bidirectional import Bidirectional
from jaxtrain.nn.masks.bidirectional_window import BidirectionalWindow
from jaxtrain.nn.masks.causal import Causal
from jaxtrain.nn.masks.sliding_window import SlidingWindow

__all__ = ["Bidirectional", "BidirectionalWindow", "Causal", "Mask", "SlidingWindow", "Span"]

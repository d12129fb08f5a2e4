"""What is asked of a model at every place of a packed row, one kind in each file."""

from jaxtrain.data.examples.base import Examples
from jaxtrain.data.examples.masked_tokens import MaskedTokens
from jaxtrain.data.examples.next_tokens import NextTokens

__all__ = ["Examples", "MaskedTokens", "NextTokens"]

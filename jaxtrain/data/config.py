"""The configuration of data: the text to train on, and how it is turned into rows of tokens."""

import dataclasses

from jaxtrain.data.examples import Examples, NextTokens
from jaxtrain.data.packing import BestFit, Packing
from jaxtrain.data.sources.base import Source, Text
from jaxtrain.data.tokenizers import ByteTokenizer, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class DataConfig:
    """A source or a mixture, the share of it held out for validation, its tokenizer, packing and examples."""

    source: Text
    validation_fraction: float = 0.05
    tokenizer: Tokenizer = ByteTokenizer()
    packing: Packing = BestFit()
    examples: Examples = NextTokens()

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction={self.validation_fraction} must be at least 0 and below 1.")

    @property
    def sources(self) -> tuple[Source, ...]:
        """The single source, or those of the mixture."""
        return self.source.parts

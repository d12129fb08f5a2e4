"""Masked language modelling. Devlin et al. (2018), arXiv:1810.04805; 30% masked, MosaicBERT (2023), arXiv:2312.17482.

The end of a document is no token of a row, so it is neither shown nor asked for.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.data.examples.base import Examples
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class MaskedTokens(Examples):
    """A part `rate` of the tokens ask for themselves. Of these most are hidden by the token `mask`.

    A part `random` of them is another token, drawn from the vocabulary, and a part `kept` is shown. The objective is
    the same as for next tokens: the mean of -log p(target) over the tokens that ask.
    """

    mask: int
    rate: float = 0.3
    random: float = 0.1
    kept: float = 0.1
    keeps_weights: ClassVar[bool] = False  # those of a row are the next tokens'
    paper: ClassVar[str] = "arXiv:1810.04805"

    def __post_init__(self):
        if self.mask < 0:
            raise ValueError(f"mask={self.mask}: give the id of a token")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate={self.rate}: must be above 0 and at most 1")
        if not (self.random >= 0 and self.kept >= 0 and self.random + self.kept <= 1):
            raise ValueError(
                f"random={self.random} and kept={self.kept}: parts of the tokens that ask, at most 1 in all"
            )

    def __call__(self, row: Batch, *, vocab_size: int, rng: np.random.Generator) -> Batch:
        tokens = np.asarray(row.tokens)
        asks, part = rng.random((2, len(tokens)))
        chosen = (np.asarray(row.segment_ids) != 0) & (asks < self.rate)
        shown = np.where(part < 1 - self.random - self.kept, self.mask, tokens)
        drawn = rng.integers(0, vocab_size, len(tokens), dtype=np.int32)
        shown = np.where(part >= 1 - self.random, drawn, shown)
        shown = np.where(chosen, shown, tokens).astype(np.int32)
        return row._replace(tokens=shown, targets=tokens, weights=chosen.astype(np.float32))  # type: ignore[arg-type]

    def check(self, model: DecoderConfig) -> None:
        if self.mask >= model.vocab_size:
            raise ValueError(
                f"mask={self.mask}: model.vocab_size={model.vocab_size} has no such token; give one below it"
            )

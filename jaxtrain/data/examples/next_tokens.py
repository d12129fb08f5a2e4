"""Next tokens: a row as it is packed."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from jaxtrain.data.examples.base import Examples
from jaxtrain.models.decoder import DecoderConfig
from jaxtrain.shapes import Batch


@dataclass(frozen=True, kw_only=True, slots=True)
class NextTokens(Examples):
    """Every token asks for the next one of its document."""

    asks_for_next: ClassVar[bool] = True
    paper: ClassVar[str] = "common practice"

    def __call__(self, row: Batch, *, vocab_size: int, rng: np.random.Generator) -> Batch:
        return row

    def check(self, model: DecoderConfig) -> None:
        for key, block in model.named_blocks.items():
            if not block.mixer.causal:
                raise ValueError(
                    f"model.{key}.mixer: causal=False, it sees the tokens that it is asked for; set "
                    "data.examples to MaskedTokens(mask=...), or give it a causal mask"
                )

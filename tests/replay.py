"""Router replay: selections that write down the experts of a forward pass, and that give them again in another one.

So two precisions, or two dispatches, are compared with the same routing. For one device, without recomputation.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import numpy as np
from jax.experimental import io_callback
from jaxtyping import Array, Float

from jaxtrain.nn.layer import TokenContext
from jaxtrain.nn.moe.selections import Selection, TopK


class Tape:
    """The choices of the layers of one forward pass, in their order."""

    def __init__(self):
        self.choices: list[np.ndarray] = []
        self._again: Iterator[np.ndarray] = iter(())

    def write(self, chosen: jax.Array) -> None:
        self.choices.append(np.asarray(chosen))

    def rewind(self) -> None:
        self._again = iter(self.choices)

    def read(self) -> np.ndarray:
        return next(self._again)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded(Selection):
    """Chooses as `TopK`, and writes it down."""

    tape: Tape = field(compare=False)
    paper: ClassVar[str] = "common practice"

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        chosen = TopK()(scores, top_k, context)
        io_callback(self.tape.write, None, chosen, ordered=True)
        return chosen


@dataclass(frozen=True, kw_only=True, slots=True)
class Replayed(Selection):
    """Gives what was written down, layer by layer."""

    tape: Tape = field(compare=False)
    paper: ClassVar[str] = "common practice"

    def __call__(self, scores: Float[Array, "B L E"], top_k: int, context: TokenContext) -> Float[Array, "B L E"]:
        return io_callback(self.tape.read, jax.ShapeDtypeStruct(scores.shape, scores.dtype), ordered=True)

"""Stacks: blocks whose parameters are stacked over their repeats, and run in a scan or unrolled."""

from typing import NamedTuple

from jaxtrain.nn.block import BlockConfig

# A compiled train step of a stack of so many blocks takes about as long to compile unrolled as with a scan, and each
# further block half a second to a second more (docs/log.md, A small decoder on CPU).
MOST_UNROLLED = 4


class Stack(NamedTuple):
    """Blocks, and how often they are repeated."""

    blocks: tuple[BlockConfig, ...]
    repeats: int

    @property
    def is_shallow(self) -> bool:
        """Whether the program stays small with its repeats unrolled."""
        return len(self.blocks) * self.repeats <= MOST_UNROLLED


def shortest(blocks: tuple[BlockConfig, ...]) -> Stack:
    """Return the fewest blocks that give these when they are repeated, and the number of repeats."""
    for length in range(1, len(blocks) + 1):
        repeats, rest = divmod(len(blocks), length)
        if not rest and blocks[:length] * repeats == blocks:
            return Stack(blocks[:length], repeats)
    raise ValueError("a stack has at least one block")

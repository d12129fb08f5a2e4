"""Stacks: blocks whose parameters are stacked over their repeats, and run in a scan."""

from typing import NamedTuple

from jaxtrain.nn.block import BlockConfig


class Stack(NamedTuple):
    """Blocks, and how often they are repeated."""

    blocks: tuple[BlockConfig, ...]
    repeats: int


def shortest(blocks: tuple[BlockConfig, ...]) -> Stack:
    """Return the fewest blocks that give these when they are repeated, and the number of repeats."""
    for length in range(1, len(blocks) + 1):
        repeats, rest = divmod(len(blocks), length)
        if not rest and blocks[:length] * repeats == blocks:
            return Stack(blocks[:length], repeats)
    raise ValueError("a stack has at least one block")

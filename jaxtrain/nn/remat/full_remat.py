"""Blocks computed again from their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed, policies, to_host


@dataclass(frozen=True, kw_only=True, slots=True)
class FullRemat(RematPolicy):
    """Keep only the input of each block; with `offload`, in host memory.

    With `vocab_tile`, logits are not kept either: they exist for so many rows of the head at a time.
    """

    vocab_tile: int | None = None
    offload: bool = False
    recomputes: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1604.06174"

    def __post_init__(self):
        if self.vocab_tile is not None and self.vocab_tile < 1:
            raise ValueError(f"vocab_tile={self.vocab_tile}: must be at least 1, or None for the whole vocabulary")

    def wrap(self, body: Callable) -> Callable:
        return checkpointed(body, to_host("block_input") if self.offload else policies.nothing_saveable)

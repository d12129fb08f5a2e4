"""Blocks recomputed from their inputs."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed, policies, to_host


@dataclass(frozen=True, kw_only=True, slots=True)
class FullRemat(RematPolicy):
    """Save only the input of each block; with `offload`, in host memory."""

    offload: bool = False
    recomputes: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1604.06174"

    def wrap(self, body: Callable) -> Callable:
        return checkpointed(body, to_host("block_input") if self.offload else policies.nothing_saveable)

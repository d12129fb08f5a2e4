"""The products with weights saved."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed, policies


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveDots(RematPolicy):
    """Save the result of every matrix product with weights; recompute scores and elementwise work."""

    paper: ClassVar[str] = "arXiv:2205.05198"

    def wrap(self, body: Callable) -> Callable:
        return checkpointed(body, policies.dots_with_no_batch_dims_saveable)

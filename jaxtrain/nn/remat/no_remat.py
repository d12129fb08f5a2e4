"""No remat."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRemat(RematPolicy):
    """Save all residuals; recompute nothing."""

    paper: ClassVar[str] = "common practice"

    def wrap(self, body: Callable) -> Callable:
        return body

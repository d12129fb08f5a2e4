"""No remat: nothing that costs more than a copy is computed twice."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed
from jaxtrain.nn.remat.costly import costly


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRemat(RematPolicy):
    """Save all residuals; in a scan on one device, recompute those that are elementwise in others."""

    paper: ClassVar[str] = "common practice"
    needs_scan: ClassVar[bool] = False

    def wrap(self, body: Callable) -> Callable:
        return body

    def in_scan(self, body: Callable) -> Callable:
        """Return the body under jax.checkpoint, which saves a third of the bytes (docs/log.md).

        Automatic differentiation saves the input of each linear anew, the weights, and several values of each norm and
        activation. Without a scan XLA finds that they are the same, or follow from one another.
        """
        return checkpointed(body, costly)

"""The base class of remat policies: what a block saves for its backward pass, and what it recomputes.

Chen et al. (2016), arXiv:1604.06174.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax

from jaxtrain.technique import Technique

policies = jax.checkpoint_policies


class RematPolicy(Technique):
    """Which residuals a block saves for its backward pass; it recomputes the others.

    `recomputes`: the backward pass recomputes the whole forward of a block. `needs_scan`: without a scan around blocks
    XLA would undo the remat.
    """

    __slots__ = ()
    recomputes: ClassVar[bool] = False
    needs_scan: ClassVar[bool] = True

    @property
    def offload(self) -> bool:
        """Whether saved residuals are in host memory."""
        return False

    @abstractmethod
    def wrap(self, body: Callable) -> Callable:
        """Return the body of a block, with the residuals that the policy saves."""

    def in_scan(self, body: Callable) -> Callable:
        """Return the body of a scan over blocks on one device. A scan copies each residual into a stack, and back."""
        return self.wrap(body)


def checkpointed(body: Callable, policy: Callable) -> Callable:
    """Return the body under jax.checkpoint. The scan around blocks already keeps XLA from undoing the remat."""
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def to_host(*names: str) -> Callable:
    """Return the jax.checkpoint policy that saves these values, in host memory, and no others."""
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )

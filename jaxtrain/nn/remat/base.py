"""What a remat policy is: what a block keeps for its backward pass, and what it computes again.

Chen et al. (2016), arXiv:1604.06174.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar

import jax

from jaxtrain.technique import Technique

policies = jax.checkpoint_policies


class RematPolicy(Technique):
    """What a block keeps for its backward pass.

    `offload`: something waits in host memory. `recomputes`: the backward pass runs the whole forward of a block again.
    """

    __slots__ = ()
    offload: ClassVar[bool] = False
    recomputes: ClassVar[bool] = False

    @abstractmethod
    def wrap(self, body: Callable) -> Callable:
        """Return the body of a block, differentiated as the policy says."""


def checkpointed(body: Callable, policy: Callable) -> Callable:
    """Return a checkpointed body; blocks run inside a scan, which already keeps the compiler from undoing the remat."""
    return jax.checkpoint(body, policy=policy, prevent_cse=False)


def to_host(*names: str) -> Callable:
    """Return the policy that keeps these values in host memory, and no others."""
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )

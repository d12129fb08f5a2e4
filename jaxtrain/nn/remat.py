"""What a block keeps for its backward pass, and what it computes again (Chen et al., 2016, arXiv:1604.06174)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import jax

policies = jax.checkpoint_policies


def _to_host(*names: str):
    return policies.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=list(names),
        offload_src="device",
        offload_dst="pinned_host",
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NoRemat:
    """Keep everything."""

    offload: ClassVar[bool] = False

    def wrap(self, body: Callable) -> Callable:
        return body


class _Policy:
    """A checkpointed body; blocks run inside a scan, which already keeps the compiler from undoing the remat."""

    __slots__ = ()
    offload: ClassVar[bool] = False  # whether anything waits in host memory

    def policy(self):
        raise NotImplementedError

    def wrap(self, body: Callable) -> Callable:
        return jax.checkpoint(body, policy=self.policy(), prevent_cse=False)


@dataclass(frozen=True, kw_only=True, slots=True)
class FullRemat(_Policy):
    """Keep only the input of each block; with `offload`, in host memory."""

    offload: bool = False

    def policy(self):
        return _to_host("block_input") if self.offload else policies.nothing_saveable


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOutputs(_Policy):
    """Keep the outputs of mixers and feed-forward layers as well."""

    def policy(self):
        return policies.save_only_these_names("mixer_output", "mlp_output")


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveDots(_Policy):
    """Keep the result of every matrix product with weights; recompute scores and elementwise work."""

    def policy(self):
        return policies.dots_with_no_batch_dims_saveable


@dataclass(frozen=True, kw_only=True, slots=True)
class OffloadOutputs(_Policy):
    """Keep the outputs of mixers and feed-forward layers in host memory."""

    offload: ClassVar[bool] = True

    def policy(self):
        return _to_host("mixer_output", "mlp_output")


RematPolicy = NoRemat | FullRemat | SaveOutputs | SaveDots | OffloadOutputs

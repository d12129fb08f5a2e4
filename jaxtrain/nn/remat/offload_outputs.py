"""The outputs of mixers and feed-forward layers saved in host memory."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed, to_host


@dataclass(frozen=True, kw_only=True, slots=True)
class OffloadOutputs(RematPolicy):
    """Save the outputs of mixers and feed-forward layers in host memory."""

    offload: ClassVar[bool] = True
    paper: ClassVar[str] = "arXiv:1602.08124"

    def wrap(self, body: Callable) -> Callable:
        return checkpointed(body, to_host("mixer_output", "mlp_output"))

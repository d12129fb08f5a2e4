"""The outputs of mixers and feed-forward layers saved."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed, policies


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveOutputs(RematPolicy):
    """Save the outputs of mixers and feed-forward layers as well."""

    paper: ClassVar[str] = "arXiv:1604.06174"

    def wrap(self, body: Callable) -> Callable:
        return checkpointed(body, policies.save_only_these_names("mixer_output", "mlp_output"))

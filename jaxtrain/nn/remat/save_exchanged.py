"""What came from other devices saved, so that nothing is sent again for the backward pass.

Singh et al. (2023), arXiv:2303.06318: communication-aware checkpointing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtrain.nn.remat.base import RematPolicy, checkpointed, policies


@dataclass(frozen=True, kw_only=True, slots=True)
class SaveExchanged(RematPolicy):
    """Save what mixtures received by `Exchange`, and the outputs of mixers and feed-forward layers."""

    paper: ClassVar[str] = "arXiv:2303.06318"

    def wrap(self, body: Callable) -> Callable:
        return checkpointed(body, policies.save_only_these_names("exchanged", "mixer_output", "mlp_output"))
